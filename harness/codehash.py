"""Hashes of the source that a stage depends on, so that edited code does not keep its old numbers.

Snakemake does not see a change in an imported package. Each rule therefore carries in ``params`` a
hash of its module and of everything of this project that the module imports, comments, docstrings
and formatting stripped: editing a comment reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

__all__ = ["code_hash", "module_closure", "module_file"]

# The schema carries values, and the values that matter stand in ``params`` themselves.
_NOT_FOLLOWED = (
    "harness.config",
    "harness.study",
    "harness.plan",
    "harness.cli",
    "harness.declarations",
    "harness.discovery",
    "harness.codehash",
    "harness.triggers",
)
_OURS = ("harness", "svp", "baselines")


@cache
def module_file(module: str) -> Path | None:
    """The source of a dotted module, which is not imported; ``None`` where there is none."""
    # Only the top package goes through the import system: finding a submodule imports its parents.
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def _parsed(path: Path) -> tuple[str, frozenset[str]]:
    """The stripped source of a file as text, and what it imports."""
    tree = ast.parse(path.read_text(), filename=str(path))
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree), frozenset(imports)


def module_closure(entry: str | Path) -> dict[str, Path]:
    """The files that ``entry`` (a dotted module or a file) imports, itself included.

    Followed are this project's packages, and the package of ``entry`` where that is another.

    Raises:
        ValueError: there is no such module.
    """
    ours = {*_OURS, str(entry).split(".")[0]} if isinstance(entry, str) else set(_OURS)
    start = entry if isinstance(entry, Path) else module_file(entry)
    if start is None:
        raise ValueError(f"module {entry} cannot be found")
    found = {str(entry): start}
    todo = [start]
    while todo:
        for module in sorted(_parsed(todo.pop())[1]):
            if module.split(".")[0] not in ours or module in found or module in _NOT_FOLLOWED:
                continue
            if (path := module_file(module)) is not None:
                found[module] = path
                todo.append(path)
    return found


@cache
def code_hash(*entries: str | Path) -> str:
    """Hash of the stripped source that ``entries`` depend on (12 hex digits)."""
    parts: dict[str, str] = {}
    for entry in entries:
        for name, path in module_closure(entry).items():
            key = Path(name).name if isinstance(entry, Path) and name == str(entry) else name
            parts[key] = _parsed(path)[0]
    text = "\n".join(f"{name}:{parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
