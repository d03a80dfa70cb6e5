"""The files under config/ that the repository ships, merged and resolved as Snakemake would."""

from pathlib import Path

import yaml
from shipped import is_shipped

from harness.config import RunConfig
from harness.config.resolve import load_study, resolve_study
from harness.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(filter(is_shipped, (ROOT / "config").glob("*.yaml")))
STUDIES = sorted(filter(is_shipped, (ROOT / "config" / "studies").glob("*.yaml")))


def merged(*paths: Path) -> dict:
    """Several ``--configfile`` on top of the default, as Snakemake merges them."""
    raw: dict = {}
    for path in (ROOT / "config" / "default.yaml", *paths):
        for key, value in yaml.safe_load(path.read_text()).items():
            both = isinstance(value, dict) and isinstance(raw.get(key), dict)
            raw[key] = {**raw[key], **value} if both else value
    return raw


def default(**changes) -> list[RunConfig]:
    return resolve_study(load_study({**merged(), **changes}), ROOT)


def planned(*paths: Path, **changes) -> Plan:
    """The plan of the default study under ``paths``, with some keys changed."""
    return Plan.from_raw({**merged(*paths), **changes}, ROOT)
