"""Code hashes follow what is computed, not how it is written down."""

import subprocess
import sys

import pytest

from harness.codehash import code_hash, module_closure

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
    closure = module_closure("harness.training")
    assert {"harness.training", "harness.models.ris", "harness.seeds"} <= set(closure)
    assert not {"harness.config", "harness.study", "harness.plan", "harness.discovery"} & set(closure)
    # the harness never names a projector: training one does not hang on another
    assert not [name for name in closure if name.startswith(("svp", "baselines"))]


def test_a_projector_hangs_on_its_own_package_only():
    closure = module_closure("baselines.avg_pool")
    assert "baselines._layers" in closure and "harness.projector" in closure
    assert not {"baselines.c_abstractor", "harness.training"} & set(closure)


def test_following_imports_imports_nothing():
    code = (
        "import sys; from harness.codehash import code_hash; "
        "code_hash('harness.training', 'harness.prediction', 'svp.projector', 'baselines.c_abstractor'); "
        "assert not {'torch', 'harness.training', 'svp.projector'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match="harness.nothing"):
        code_hash("harness.nothing")
