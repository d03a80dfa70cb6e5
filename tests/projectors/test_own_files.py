"""Mistakes in a projector's file of one's own are one sentence that names the file."""

import json
import sys

import pytest

from harness.cli import main
from harness.plugins.discovery import get_projector, load_projector

HEAD = "from harness.projector import Projector\n\n\nclass Mine(Projector):\n    name = 'mine'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + '    needs = ("levels")\n', r"mine.py: Mine.needs must be a tuple such as \(\"levels\",\)"),
        (HEAD + '    needs = ("level",)\n', "Mine.needs: unknown word 'level'; did you mean 'levels'"),
        (HEAD + "    budgets = 36\n", r"Mine.budgets must be a tuple such as \(36,\)"),
        (HEAD + '    acts_on = "trainin"\n', "Mine.acts_on: unknown word 'trainin'; did you mean 'training'"),
        (HEAD + "    def forward(self:\n", "mine.py, line 6: .*; mend it, or move the file away"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_when_it_is_read(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        get_projector(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import nowhere_at_all", "mine.py, line 1 cannot be imported: ModuleNotFoundError: No module named"),
        ("x = undefined", "mine.py, line 1 cannot be imported: NameError: name 'undefined'"),
    ],
)
def test_a_file_that_cannot_be_imported_says_where(tmp_path, line, message):
    (tmp_path / "mine.py").write_text(f"{line}\n{HEAD}")
    assert get_projector(str(tmp_path / "mine.py")).name == "mine"  # its declaration is read, not run
    with pytest.raises(ValueError, match=message):
        load_projector(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('class Mine:\n    name = "mine"\n', "mine.py: Mine is no subclass of harness.projector.Projector"),
        (
            HEAD + "    class Config:\n        heads = 4\n",
            "Config is no subclass of harness.projector.ProjectorConfig",
        ),
    ],
)
def test_a_class_that_cannot_be_a_projector_is_refused(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_projector(str(tmp_path / "mine.py"))


@pytest.fixture
def lone_imports(monkeypatch):
    """What importing a lone file leaves behind is taken back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def with_helper(folder, value):
    folder.mkdir()
    (folder / "my_layers.py").write_text(f"VALUE = {value}\n")
    (folder / "mine.py").write_text(f"import my_layers\n{HEAD}    value = my_layers.VALUE\n")
    return str(folder / "mine.py")


def test_a_file_finds_its_helpers_beside_it(tmp_path, lone_imports):
    assert load_projector(with_helper(tmp_path / "a", 3)).value == 3


def test_a_helper_that_another_hides_is_refused(tmp_path, lone_imports):
    load_projector(with_helper(tmp_path / "a", 3))
    with pytest.raises(ValueError, match=r"b/my_layers.py is hidden by .*a/my_layers.py; give it a name"):
        load_projector(with_helper(tmp_path / "b", 4))


def test_the_program_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(HEAD + "    def forward(self:\n")
    (tmp_path / "mine.yaml").write_text(f"rows: [mlp, {tmp_path / 'mine.py'}]")
    monkeypatch.setattr("sys.argv", ["svp", "plan", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert said.startswith("svp: ") and len(said.splitlines()) == 1 and "line 6" in said


def test_the_doctor_tells_it_as_a_finding(tmp_path, monkeypatch, capsys):
    """Its exit status is 0 or 2: anything else is a bug of the doctor's."""
    (tmp_path / "mine.py").write_text(HEAD + "    def forward(self:\n")
    (tmp_path / "mine.yaml").write_text(f"rows: [mlp, {tmp_path / 'mine.py'}]")
    for file, said in (("mine.yaml", "line 6"), ("nowhere.yaml", "nowhere.yaml")):
        monkeypatch.setattr("sys.argv", ["svp", "doctor", str(tmp_path / file), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        (finding,) = json.loads(capsys.readouterr().out)["findings"]
        assert ended.value.code == 2
        assert finding["status"] == "wrong" and said in finding["check"] and finding["mend"]
