"""`svp new-projector` writes a short file that is a projector at once."""

import shlex
from pathlib import Path

import pytest
import torch
from shipped import ROOT, is_shipped, shipped_projectors

from harness.cli import app
from harness.plugins.discovery import get_projector, load_projector
from harness.plugins.new_projector import write_projector
from harness.projector import ImageFeatures, Interface


def test_the_written_file_is_found_built_and_run(tmp_path):
    path = write_projector("my_idea", tmp_path)
    assert len(path.read_text().splitlines()) <= 40
    assert get_projector(str(path)).name == "my_idea"
    projector = load_projector(str(path))(Interface(8, 12, (4, 4), budget=5))
    image = ImageFeatures(torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), (4, 4))
    tokens = projector(image)
    assert tokens.embeddings.shape == (10, 12) and tokens.lengths.tolist() == [5, 5]


def test_the_written_file_passes_the_contract_tests_as_it_stands(tmp_path):
    path, contract = write_projector("my_idea", tmp_path), Path(__file__).with_name("test_contract.py")
    # In this process: another one would spend most of its time on imports.
    command = [str(contract), "--projector", str(path), "-p", "no:cacheprovider", "--assert=plain"]
    assert pytest.main(command) == pytest.ExitCode.OK


def test_the_command_that_is_printed_is_the_one_that_passes(tmp_path, capsys):
    app(["new-projector", "my_idea", "--folder", str(tmp_path / "my ideas")])
    printed = shlex.split(capsys.readouterr().err.split("try it: ")[1])
    contract = "tests/projectors/test_contract.py"
    assert printed == ["pytest", contract, "--projector", str(tmp_path / "my ideas" / "my_idea.py")]


def test_a_projector_and_a_study_of_ones_own_are_not_the_repositorys():
    assert is_shipped(ROOT / "baselines" / "mlp.py") and "mlp" in shipped_projectors()
    if (ROOT / ".git").exists():
        assert not is_shipped(ROOT / "baselines" / "my_idea.py")
        assert not is_shipped(ROOT / "config" / "studies" / "mine_alone.yaml")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("My-Idea", "lower-case"),
        ("_", "lower-case"),
        ("_1", "lower-case"),
        ("avg_pool", "exists"),
        ("none", "another use for 'none' or 'None'"),
        ("true", "another use for 'true' or 'True'"),
        ("false", "another use"),
        ("class", "another use"),
        ("visual_tokens", "another use for 'visual_tokens' or 'VisualTokens'"),
        ("image_features", "another use"),
        ("projector", "another use"),
        ("value__error", "lower-case"),
        ("exception", "another use"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        write_projector(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    write_projector("my_idea", tmp_path)
    with pytest.raises(ValueError, match="exists"):
        write_projector("my_idea", tmp_path)
