"""Finds projectors, controls and superpixel sources by folder and entry point, without importing them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from harness.plugins.codehash import helper_folders, module_closure
from harness.plugins.declarations import Declaration, declarations

if TYPE_CHECKING:
    from harness.projector import Projector
    from harness.superpixels.source import SuperpixelSource

_D = TypeVar("_D", bound=Declaration)

__all__ = [
    "ProjectorInfo",
    "SourceInfo",
    "find_projectors",
    "find_sources",
    "get_projector",
    "get_source",
    "load_projector",
    "load_source",
    "nearest",
]


class ProjectorInfo(Declaration):
    """A projector's or control's declaration, as written in its file."""

    ATTRIBUTES = (
        *("name", "kind", "reference", "licence", "departs", "budgets", "needs"),
        *("superpixel_source", "acts_on", "starts_from"),
    )

    # Literals of the right kind: a word for each that chooses, any of its words for each that lists.
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "kind": ("projector", "control"),
        "acts_on": ("training", "run", "superpixels"),
        "needs": (
            "levels",
            "cls_attention",
            "keys",
            "last_cls_attention",
            "last_keys",
            "superpixels",
            "encoder_tokens",
            "expression",
        ),
    }

    def check(self) -> None:
        """Refuse words that nothing knows, and a string or a number where a tuple belongs.

        Raises:
            ValueError: with the file, the attribute and the mend.
        """
        where = f"{self.path}: {self.class_name}"
        for listed, example in (("needs", '("levels",)'), ("budgets", "(36,)")):
            value = self.declared.get(listed, ())
            if not isinstance(value, tuple | list):
                raise ValueError(f"{where}.{listed} must be a tuple such as {example}, not {value!r}")
        for said in ("departs", "starts_from"):
            value = self.declared.get(said, "")
            if not isinstance(value, str) or value.endswith("."):
                raise ValueError(f"{where}.{said} must be a string without a full stop, not {value!r}")
        for name, known in self.WORDS.items():
            value = self.declared.get(name, ())
            for word in value if name == "needs" else [value] if name in self.declared else []:
                if word not in known:
                    raise ValueError(
                        f"{where}.{name}: unknown word {word!r}{nearest(str(word), list(known))}"
                    )

    @property
    def needs(self) -> tuple[str, ...]:
        """What it reads beyond the patches."""
        return tuple(self.declared.get("needs", ()))

    @property
    def kind(self) -> str:
        """``projector`` or ``control``."""
        return str(self.declared.get("kind", "projector"))

    @property
    def acts_on(self) -> str:
        """``training``: it is trained; ``run`` or ``superpixels``: a control at prediction time."""
        return str(self.declared.get("acts_on", "training"))

    @property
    def departs(self) -> str:
        """In what it is not the published projector: the end of a sentence that begins with its name."""
        return str(self.declared.get("departs", ""))

    @property
    def starts_from(self) -> str:
        """Which published weights it can start from, in words; empty where there are none."""
        return str(self.declared.get("starts_from", ""))

    @property
    def superpixel_source(self) -> str | None:
        """Its fixed superpixel source, or ``None`` for the study's own."""
        return self.declared.get("superpixel_source")


class SourceInfo(Declaration):
    """A superpixel source's declaration, as written in its file."""

    ATTRIBUTES = ("name", "reference", "needs_sam")

    @property
    def needs_sam(self) -> bool:
        """Whether it is built with a SAM."""
        return bool(self.declared.get("needs_sam", False))


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or the list of all."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


@cache
def _packages(group: str) -> tuple[str, ...]:
    return tuple(sorted({point.value for point in entry_points(group=group)}))


@cache
def _folders(package: str) -> tuple[Path, ...]:
    spec = importlib.util.find_spec(package)
    return tuple(map(Path, (spec.submodule_search_locations or ()) if spec else ()))


def _found(packages: tuple[str, ...], kind: type[_D], what: str) -> dict[str, _D]:
    found: dict[str, _D] = {}
    for package in packages:
        for path in sorted(path for folder in _folders(package) for path in folder.glob("*.py")):
            for info in declarations(path, f"{package}.{path.stem}", kind):
                if info.name in found:
                    first = found[info.name].path
                    raise ValueError(f"{what} '{info.name}' is declared in {first} and {path}")
                found[info.name] = info
    return found


def find_projectors() -> dict[str, ProjectorInfo]:
    """Every projector and control of every registered package, by name.

    Raises:
        ValueError: two files declare the same name, or an attribute is not a literal.
    """
    return _found(_packages("svp.projectors"), ProjectorInfo, "projector")


def find_sources(*packages: str) -> dict[str, SourceInfo]:
    """Every superpixel source of ``packages`` (default: the registered ones), by name.

    Raises:
        ValueError: two files declare the same name, or an attribute is not a literal.
    """
    return _found(packages or _packages("svp.superpixel_sources"), SourceInfo, "superpixel source")


def get_source(name: str, *packages: str) -> SourceInfo:
    """The superpixel source called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = find_sources(*packages)
    if name not in known:
        raise ValueError(f"unknown superpixel source '{name}'{nearest(name, list(known))}")
    return known[name]


def load_source(name: str, *packages: str) -> type[SuperpixelSource]:
    """Import the class of a superpixel source (see :func:`get_source`)."""
    info = get_source(name, *packages)
    return getattr(_imported(info), info.class_name)


def get_projector(name: str) -> ProjectorInfo:
    """The projector called ``name``, or at ``package.module:Class``, or in ``path/to/file.py``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"projector file {name} does not exist")
        infos = declarations(path.resolve(), None, ProjectorInfo)
        if len(infos) != 1:
            raise ValueError(
                f"{name} must declare exactly one projector with a literal 'name', found {len(infos)}"
            )
        return infos[0]
    if ":" in name:
        module, class_name = name.split(":", 1)
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:  # of the package that should hold it
            spec = None
        if spec is None or spec.origin is None:
            raise ValueError(
                f"projector module {module} cannot be found; name its file instead, such as path/to/file.py"
            )
        for info in declarations(Path(spec.origin), module, ProjectorInfo):
            if info.class_name == class_name:
                return info
        raise ValueError(f"{spec.origin} declares no projector class {class_name}")
    known = find_projectors()
    if name not in known:
        raise ValueError(f"unknown projector '{name}'{nearest(name, list(known))}")
    return known[name]


def load_projector(name: str) -> type[Projector]:
    """Import the class of a projector (see :func:`get_projector` for what ``name`` may be).

    Raises:
        ValueError: there is none, its code fails, or what is trained is no ``Projector`` with a ``Config``.
    """
    info = get_projector(name)
    found = getattr(_imported(info), info.class_name)
    if info.acts_on == "training":
        from harness.projector import Projector, ProjectorConfig  # imports torch

        where = f"{info.path}: {info.class_name}"
        if not issubclass(found, Projector):
            raise ValueError(f"{where} is no subclass of harness.projector.Projector; make it one")
        if not issubclass(found.Config, ProjectorConfig):
            raise ValueError(
                f"{where}.Config is no subclass of harness.projector.ProjectorConfig; make it one"
            )
    return found


def _check_helpers(path: Path) -> None:
    """Refuse a lone file whose helper is hidden by another module: its hash would be of what does not run."""
    for name, helper in module_closure(path).items():
        taken = getattr(sys.modules.get(name), "__file__", None)
        if taken is not None and Path(taken).resolve() != helper.resolve():
            raise ImportError(f"its helper {helper} is hidden by {taken}; give it a name of its own")


def _imported(info: Declaration) -> ModuleType:
    """The module of a declaration, imported.

    Raises:
        ValueError: its code fails; the message names the line.
    """
    try:
        if info.module is not None:
            return importlib.import_module(info.module)
        module_name = f"_projector_{info.path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, info.path)
        if spec is None or spec.loader is None:
            raise ImportError("it is no module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        for folder in map(str, helper_folders(info.path)):  # last, so that its helpers hide nothing
            if folder not in sys.path:
                sys.path.append(folder)
        spec.loader.exec_module(module)
        _check_helpers(info.path)
        return module
    except Exception as error:  # whatever a file of somebody's own raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {f.lineno}" for f in frames if Path(f.filename) == info.path]
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{info.path}{lines[-1] if lines else ''} cannot be imported: {told}") from error
