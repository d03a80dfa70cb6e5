"""Code hashes follow what is computed, not how it is written down."""

import subprocess
import sys

import pytest

from harness.plugins.codehash import code_hash, module_closure
from harness.plugins.declarations import declarations
from harness.plugins.discovery import ProjectorInfo, get_projector

BASE = '''"""A module."""
from harness.projector import Projector


class Mine(Projector):
    """A projector."""

    name = "mine"

    def scale(self, x):
        return 2 * x
'''


def digest(tmp_path, text, name="mine.py"):
    # a folder each: files are read once a process
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / name).write_text(text)
    return code_hash(folder / name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another word."""'),
        ('    """A projector."""\n', ""),
        ("return 2 * x", "return (2\n            * x)  # twice"),
        ("\n\n\nclass", "\n# why\nclass"),
    ],
)
def test_words_and_layout_leave_it(tmp_path, old, new):
    assert digest(tmp_path, BASE) == digest(tmp_path, BASE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [("2 * x", "3 * x"), ("2 * x", "x * 2"), ('name = "mine"', 'name = "yours"'), ("def scale", "def other")],
)
def test_what_is_computed_changes_it(tmp_path, old, new):
    assert digest(tmp_path, BASE) != digest(tmp_path, BASE.replace(old, new))


def test_a_string_that_is_no_docstring_counts(tmp_path):
    text = BASE + '\n    prompt = "a"\n'
    assert digest(tmp_path, text) != digest(tmp_path, text.replace('"a"', '"b"'))


def test_the_closure_follows_imports_and_stops_at_the_schema():
    closure = module_closure("harness.training.loop")
    assert {"harness.training.loop", "harness.models.ris", "harness.seeds"} <= set(closure)
    assert not {
        "harness.config",
        "harness.config.resolve",
        "harness.planning.plan",
        "harness.plugins.discovery",
    } & set(closure)
    # the harness never names a projector: training one does not hang on another
    assert not [name for name in closure if name.startswith(("svp", "baselines"))]


def test_a_projector_hangs_on_its_own_package_only():
    closure = module_closure("baselines.avg_pool")
    assert "baselines._layers" in closure and "harness.projector" in closure
    assert not {"baselines.c_abstractor", "harness.training.loop"} & set(closure)


def test_following_imports_imports_nothing():
    code = (
        "import sys; from harness.plugins.codehash import code_hash; "
        "code_hash('harness.training.loop', 'harness.prediction'); "
        "code_hash('svp.projector', 'baselines.c_abstractor'); "
        "assert not {'torch', 'harness.training.loop', 'svp.projector'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package beside the repository, as somebody else would write one."""
    folder = tmp_path / f"own_{abs(hash(str(tmp_path)))}"  # modules are found once a process
    (folder / "deep").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "base.py": "from baselines.token_packer import TokenPacker\nfrom . import layers\n",
        "layers.py": "SIZE = 1\n",
        "relative.py": "from .base import TokenPacker\nclass A(TokenPacker):\n    name = 'a'\n",
        "module.py": "import baselines.token_packer as tp\nclass A(tp.TokenPacker):\n    name = 'a'\n",
        "whole.py": "import baselines.token_packer\n"
        "class A(baselines.token_packer.TokenPacker):\n    name = 'a'\n",
        "sibling.py": "from . import base as b\nclass A(b.TokenPacker):\n    name = 'a'\n",
        "deep/__init__.py": "from ..base import TokenPacker\n",
        "deep/below.py": "from . import TokenPacker\nclass A(TokenPacker):\n    name = 'a'\n",
        "own_options.py": "from baselines import token_packer as tp\nclass A(tp.TokenPacker):\n"
        "    name = 'a'\n    class Config(tp.TokenPacker.Config):\n        more: int = 1\n",
    }.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["relative", "module", "whole", "sibling", "deep.below", "own_options"])
def test_declarations_follow_a_base_however_it_is_imported(package, name):
    path = package.joinpath(*name.split(".")).with_suffix(".py")
    (info,) = declarations(path, f"{package.name}.{name}", ProjectorInfo)
    assert info.needs == ("levels",)
    known = get_projector("token_packer").options
    assert info.options == known | ({"more"} if name == "own_options" else set())


@pytest.mark.parametrize("name", ["relative", "sibling", "deep.below"])
def test_the_closure_follows_relative_imports(package, name):
    own = package.name
    assert {f"{own}.base", f"{own}.layers", "baselines.token_packer"} <= set(module_closure(f"{own}.{name}"))


def test_helpers_of_a_lone_file_change_its_hash(tmp_path, monkeypatch):
    def found(helper, nested):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))  # files are read once a process
        (folder / "my" / "parts").mkdir(parents=True)
        (folder / "my" / "mine.py").write_text("import torch\nimport helper\nfrom my.parts import nested\n")
        (folder / "my" / "helper.py").write_text(helper)
        (folder / "my" / "parts" / "nested.py").write_text(nested)
        monkeypatch.chdir(folder)
        closure = module_closure(folder / "my" / "mine.py")
        assert set(closure) == {str(folder / "my" / "mine.py"), "helper", "my.parts.nested"}
        return code_hash(folder / "my" / "mine.py")

    assert found("A = 1", "B = 1") == found("A = 1  # why", "B = 1")
    assert len({found("A = 1", "B = 1"), found("A = 2", "B = 1"), found("A = 1", "B = 2")}) == 3


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match="harness.nothing"):
        code_hash("harness.nothing")
