"""Reads what a class declares from its source, with :mod:`ast`, so that planning imports no torch.

The workflow must plan in seconds, and each Slurm job parses it again: names, needs and options of
projectors, controls and superpixel sources are read; a class is imported only when it is used.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from harness.plugins.codehash import imported_module, module_file, parse_source

__all__ = ["Declaration", "declarations"]

# Bases whose ``Config`` has no options, and bases of a ``Config`` itself.
_PLAIN = {"Projector", "Control", "SuperpixelSource", "ProjectorConfig", "SuperpixelConfig", "BaseModel"}


@dataclass(frozen=True)
class Declaration:
    """A class as its file declares it; subclasses name the literal class attributes that they read.

    Attributes:
        name: the literal ``name``.
        path: its source file.
        class_name: the class in that file.
        module: dotted module, or ``None`` for a lone file named by its path.
        declared: those of ``ATTRIBUTES`` that the class sets.
        options: names of the fields of its ``Config``, inherited ones included; ``None`` where a base
            cannot be followed.
    """

    ATTRIBUTES: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    path: Path
    class_name: str
    module: str | None
    declared: dict[str, Any] = field(default_factory=dict)
    options: frozenset[str] | None = None

    def check(self) -> None:
        """Refuse attributes that this kind of class cannot have, with a ``ValueError``."""


_D = TypeVar("_D", bound=Declaration)


def declarations(path: Path, module: str | None, kind: type[_D]) -> tuple[_D, ...]:
    """The classes of a file that have a literal ``name``, each as a ``kind``.

    Args:
        path: the file.
        module: its dotted name, if it has one.
        kind: of declaration.

    Raises:
        ValueError: the file is no Python, or an attribute is no literal or cannot be; the message names it.
    """
    return _read(path, module, kind, path.stat().st_mtime_ns)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _File:
    """A parsed source file, with its dotted module if it has one."""

    path: Path
    module: str | None
    tree: ast.Module


def _parsed(path: Path, module: str | None) -> _File:
    return _File(path, module, _parsed_once(path, path.stat().st_mtime_ns))


@cache
def _parsed_once(path: Path, _changed_ns: int) -> ast.Module:
    return parse_source(path)


@cache
def _read(path: Path, module: str | None, kind: type[_D], _changed_ns: int) -> tuple[_D, ...]:
    found = []
    file = _parsed(path, module)
    for node in file.tree.body:
        if isinstance(node, ast.ClassDef):
            own = _literals(node, kind, path)
            if isinstance(own.get("name"), str):
                declared = _inherited(node, file, kind) | own
                found.append(kind(own["name"], path, node.name, module, declared, _options(node, file)))
                found[-1].check()
    return tuple(found)


def _literals(node: ast.ClassDef, kind: type[Declaration], path: Path) -> dict[str, Any]:
    """The attributes of a ``kind`` that the body of a class sets itself."""
    literals: dict[str, Any] = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(target, ast.Name) and target.id in kind.ATTRIBUTES and getattr(item, "value", None):
            try:
                literals[target.id] = ast.literal_eval(item.value)  # type: ignore[attr-defined]
            except ValueError as error:
                raise ValueError(f"{path}: {node.name}.{target.id} must be a literal") from error
    return literals


def _inherited(node: ast.ClassDef, file: _File, kind: type[Declaration]) -> dict[str, Any]:
    """What the bases of a class set, the nearest first, as far as they can be followed."""
    declared: dict[str, Any] = {}
    for base in node.bases:
        if found := _class(base, file):
            above, its_file = found
            inherited = _inherited(above, its_file, kind) | _literals(above, kind, its_file.path)
            declared = inherited | declared
    return declared


def _options(node: ast.ClassDef, file: _File) -> frozenset[str] | None:
    """Fields of the ``Config`` of a class, of which only the first base counts."""
    own = next((item for item in node.body if isinstance(item, ast.ClassDef) and item.name == "Config"), None)
    fields = [a.target.id for a in own.body if _is_field(a)] if own else []  # type: ignore[attr-defined]
    bases = (own or node).bases
    base = bases[0] if bases else None
    if isinstance(base, ast.Attribute) and base.attr == "Config":
        base = base.value
    words = _dotted(base)
    if words and words[-1] in _PLAIN:
        return frozenset(fields)
    found = _class(base, file)
    inherited = _options(*found) if found else None
    return None if inherited is None else inherited | frozenset(fields)


def _is_field(item: ast.stmt) -> bool:
    return isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)


def _dotted(node: ast.expr | None) -> list[str]:
    """The words of a name such as ``module.Class``; none where it is something else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (words := _dotted(node.value)):
        return [*words, node.attr]
    return []


def _class(base: ast.expr | None, file: _File) -> tuple[ast.ClassDef, _File] | None:
    """The class that a base names, written in this file or in another one, with its file."""
    words = _dotted(base)
    if not words or words[-1] in _PLAIN:
        return None
    if len(words) == 1:
        return _class_called(words[0], file)
    *modules, name = words
    for node in file.tree.body:
        for bound, module in _modules(node, file):
            if modules[: len(bound)] == bound:
                full = ".".join([module, *modules[len(bound) :]])
                if (path := module_file(full)) is not None:
                    return _class_called(name, _parsed(path, full))
    return None


def _modules(node: ast.stmt, file: _File) -> Iterator[tuple[list[str], str]]:
    """The words that an import binds, with the dotted module that each may stand for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield [alias.asname] if alias.asname else alias.name.split("."), alias.name
    elif isinstance(node, ast.ImportFrom) and (origin := imported_module(node, file.module, file.path)):
        for alias in node.names:
            yield [alias.asname or alias.name], f"{origin}.{alias.name}"


def _class_called(name: str, file: _File) -> tuple[ast.ClassDef, _File] | None:
    """The class called ``name`` in a file, defined there or imported from another, and the file it is in."""
    for node in file.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, file
        if isinstance(node, ast.ImportFrom):
            original = next((a.name for a in node.names if (a.asname or a.name) == name), None)
            origin = imported_module(node, file.module, file.path) if original else None
            path = module_file(origin) if origin else None
            if original and path:
                return _class_called(original, _parsed(path, origin))
    return None
