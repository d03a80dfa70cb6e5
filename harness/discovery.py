"""Finds projectors by folder and entry point, reading their declarations without importing torch.

The workflow must plan in well under a second and each Slurm job parses it again, so names, needs
and budgets are read from the source with :mod:`ast`; the class is imported only when it is used.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.projector import Projector

__all__ = ["ProjectorInfo", "find_projectors", "get_projector", "nearest", "load_projector"]

_DECLARED = ("name", "kind", "reference", "licence", "budgets", "needs", "superpixel_source", "acts_on")


@dataclass(frozen=True)
class ProjectorInfo:
    """A projector's declaration, as written in its file.

    Attributes:
        name: the projector's name.
        path: its source file.
        class_name: the class in that file.
        module: dotted module, or ``None`` for a lone file named by its path.
        declared: its literal class attributes (``kind``, ``needs``, ``budgets`` …).
        options: names of the fields of its ``Config``; ``None`` where it is inherited.
    """

    name: str
    path: Path
    class_name: str
    module: str | None
    declared: dict[str, Any] = field(default_factory=dict)
    options: frozenset[str] | None = None

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
    def superpixel_source(self) -> str | None:
        """Its fixed superpixel source, or ``None`` for the study's own."""
        return self.declared.get("superpixel_source")


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or the list of all."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def _option_names(node: ast.ClassDef) -> frozenset[str] | None:
    for item in node.body:
        if isinstance(item, ast.ClassDef) and item.name == "Config":
            fields = [
                a.target.id
                for a in item.body
                if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
            ]
            plain = all(isinstance(b, ast.Name) and b.id == "ProjectorConfig" for b in item.bases)
            return frozenset(fields) if plain else None
    plain = all(isinstance(b, ast.Name) and b.id in ("Projector", "Control") for b in node.bases)
    return frozenset() if plain else None


def _declarations(path: Path, module: str | None) -> tuple[ProjectorInfo, ...]:
    return _read_declarations(path, module, path.stat().st_mtime_ns)


@cache
def _read_declarations(path: Path, module: str | None, _changed_ns: int) -> tuple[ProjectorInfo, ...]:
    found = []
    for node in ast.parse(path.read_text(), filename=str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        literals: dict[str, Any] = {}
        for item in node.body:
            target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
            if isinstance(target, ast.Name) and target.id in _DECLARED and getattr(item, "value", None):
                try:
                    literals[target.id] = ast.literal_eval(item.value)  # type: ignore[attr-defined, union-attr]
                except ValueError as error:
                    raise ValueError(f"{path}: {node.name}.{target.id} must be a literal") from error
        if isinstance(literals.get("name"), str):
            found.append(
                ProjectorInfo(literals["name"], path, node.name, module, literals, _option_names(node))
            )
    return tuple(found)


@cache
def _package_folders() -> tuple[tuple[str, Path], ...]:
    folders = []
    for point in entry_points(group="svp.projectors"):
        spec = importlib.util.find_spec(point.value)
        if spec and spec.submodule_search_locations:
            folders.append((point.value, Path(next(iter(spec.submodule_search_locations)))))
    return tuple(sorted(folders))


def find_projectors() -> dict[str, ProjectorInfo]:
    """Every projector of every registered package, by name.

    Raises:
        ValueError: two files declare the same name.
    """
    found: dict[str, ProjectorInfo] = {}
    for package, folder in _package_folders():
        for path in sorted(folder.glob("*.py")):
            for info in _declarations(path, f"{package}.{path.stem}"):
                if info.name in found:
                    raise ValueError(
                        f"projector '{info.name}' is declared in {found[info.name].path} and {path}"
                    )
                found[info.name] = info
    return found


def get_projector(name: str) -> ProjectorInfo:
    """The projector called ``name``, or at ``package.module:Class``, or in ``path/to/file.py``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"projector file {name} does not exist")
        infos = _declarations(path.resolve(), None)
        if len(infos) != 1:
            raise ValueError(
                f"{name} must declare exactly one projector with a literal 'name', found {len(infos)}"
            )
        return infos[0]
    if ":" in name:
        module, class_name = name.split(":", 1)
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"projector module {module} cannot be found")
        for info in _declarations(Path(spec.origin), module):
            if info.class_name == class_name:
                return info
        raise ValueError(f"{spec.origin} declares no projector class {class_name}")
    known = find_projectors()
    if name not in known:
        raise ValueError(f"unknown projector '{name}'{nearest(name, list(known))}")
    return known[name]


def load_projector(name: str) -> type[Projector]:
    """Import the class of a projector (see :func:`get_projector` for what ``name`` may be)."""
    info = get_projector(name)
    if info.module is not None:
        return getattr(importlib.import_module(info.module), info.class_name)
    module_name = f"_projector_{info.path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, info.path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{info.path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return getattr(module, info.class_name)
