"""One set of requirements, written in three places for three tools."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [*PROJECT["dependencies"], *EXTRAS["workflow"], *EXTRAS["dev"]]


def test_conda_environment_names_the_same_requirements():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in packages if isinstance(entry, dict))
    assert sorted(map(str, map(Requirement, pip))) == sorted(map(str, map(Requirement, WANTED)))
    assert f"python{PROJECT['requires-python']}" in packages


def test_the_lock_pins_every_requirement_to_a_version_that_it_admits():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = dict(m.groups() for line in lines if (m := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)))
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    for requirement in map(Requirement, WANTED):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


def test_the_lock_names_no_machine():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"file:|https?://|^-i|--index|/home/", text, flags=re.M)
