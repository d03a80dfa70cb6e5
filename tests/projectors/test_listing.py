"""`svp projectors`: what is found, in words and as JSON."""

import json
import re
from pathlib import Path

from harness.cli import app

ROOT = Path(__file__).resolve().parents[2]
# Of every class that names itself, read without the harness.
DECLARED = sorted(
    name
    for folder in ("baselines", "svp")
    for file in (ROOT / folder).glob("*.py")
    for name in re.findall(r'^    name(?:: .*)? = "(\w+)"', file.read_text(), re.MULTILINE)
)


def test_the_text_names_every_projector_once(capsys):
    app(["projectors"])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == DECLARED
    linear = next(line for line in lines if line.startswith("linear "))
    assert linear.split(maxsplit=2)[1:] == ["projector", "LLaVA, arXiv 2304.08485; haotian-liu/LLaVA"]


def test_the_json_names_every_projector_once_with_the_same_keys(capsys):
    app(["projectors", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert sorted(one["name"] for one in listed) == DECLARED
    keys = {
        "name",
        "kind",
        "reference",
        "licence",
        "departs",
        "starts_from",
        "budgets",
        "needs",
        "parameters",
    }
    assert all(set(one) == keys for one in listed)
    found = {one["name"]: one for one in listed}
    assert found["linear"] == {
        "name": "linear",
        "kind": "projector",
        "reference": "LLaVA, arXiv 2304.08485; haotian-liu/LLaVA",
        "licence": "Apache-2.0",
        "departs": "",
        "starts_from": "",
        "budgets": [576],
        "needs": [],
        "parameters": {f"1024x{width}": 1024 * width + width for width in (4096, 2048, 896)},
    }
    assert found["token_packer"]["needs"] == ["levels"] and found["token_packer"]["budgets"] == [144, 64, 36]
    assert {one["kind"] for one in listed} == {"projector", "control"}
    # Controls of a finished run, or of superpixels, have nothing to learn.
    no_layers = {name for name, one in found.items() if not one["parameters"]}
    assert no_layers == {"text_blind", "image_blind", "reordered", "oracle"}
