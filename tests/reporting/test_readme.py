"""The README shows what a command made, and nothing else."""

import shutil
from pathlib import Path

import pytest

from harness.reporting.digest import write_digest
from harness.reporting.snapshot import show_in_readme

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_committed_snapshot():
    table = ROOT / "results" / "reference" / "default" / "tables" / "main.md"
    if not table.is_file():
        pytest.skip("no snapshot of the default study is committed")
    assert table.read_text().strip() in (ROOT / "README.md").read_text()


def test_the_page_of_snapshots_is_theirs(tmp_path):
    committed = ROOT / "results" / "reference"
    shutil.copytree(committed, tmp_path / "reference")
    assert write_digest(tmp_path / "reference").read_text() == (committed / "README.md").read_text()


def test_only_the_part_between_the_markers_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("top\n<!-- main table -->\nold\n<!-- end of main table -->\nbottom\n")
    show_in_readme(readme, "| a |\n|---|\n")
    assert (
        readme.read_text() == "top\n<!-- main table -->\n| a |\n|---|\n<!-- end of main table -->\nbottom\n"
    )
    show_in_readme(readme, "| b |")
    assert readme.read_text() == "top\n<!-- main table -->\n| b |\n<!-- end of main table -->\nbottom\n"


def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("no markers\n")
    with pytest.raises(ValueError, match="README.md must hold"):
        show_in_readme(tmp_path / "README.md", "x")
