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

__all__ = ["code_hash", "helper_folders", "imported_module", "module_closure", "module_file", "parse_source"]

# The schema carries values, and the values that matter stand in ``params`` themselves.
_NOT_FOLLOWED = (
    "harness.config",
    "harness.config.resolve",
    "harness.planning.plan",
    "harness.planning.layout",
    "harness.cli",
    "harness.plugins.declarations",
    "harness.plugins.discovery",
    "harness.plugins.codehash",
    "harness.planning.triggers",
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


def parse_source(path: Path) -> ast.Module:
    """The syntax tree of a source file.

    Raises:
        ValueError: it is no Python; the message names the line.
    """
    try:
        return ast.parse(path.read_text(), filename=str(path))
    except SyntaxError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: {error.msg}; mend it, or move the file away"
        ) from error


def imported_module(node: ast.ImportFrom, module: str | None, path: Path) -> str | None:
    """The dotted module that ``from … import`` names, in a file that is itself called ``module``.

    ``None`` for a relative import that leads out of the package, or stands in a lone file.
    """
    if node.level == 0:
        return node.module
    package = (module or "").split(".")
    up = node.level - (path.name == "__init__.py")  # a package is its own parent
    if module is None or len(package) <= up:
        return None
    return ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])


@cache
def _parsed(path: Path, module: str | None) -> tuple[str, frozenset[str]]:
    """The stripped source of a file as text, and what it imports as ``module``."""
    tree = parse_source(path)
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (origin := imported_module(node, module, path)):
            imports.add(origin)
            imports.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree), frozenset(imports)


def helper_folders(path: Path) -> tuple[Path, ...]:
    """Where the modules lie that a lone file imports: beside it, and in the working directory."""
    return path.resolve().parent, Path.cwd()


def _helper(module: str, folders: tuple[Path, ...]) -> Path | None:
    """The source of a dotted module below one of ``folders``."""
    for folder in folders:
        place = folder.joinpath(*module.split("."))
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def module_closure(entry: str | Path) -> dict[str, Path]:
    """The files that ``entry`` (a dotted module or a file) imports, itself included.

    Followed are this project's packages, and the package of ``entry`` where that is another; of a file,
    modules below its own folder or the working directory.

    Raises:
        ValueError: there is no such module.
    """
    ours = {*_OURS, entry.split(".")[0]} if isinstance(entry, str) else set(_OURS)
    beside = helper_folders(entry) if isinstance(entry, Path) else ()
    start = entry if isinstance(entry, Path) else module_file(entry)
    if start is None:
        raise ValueError(f"module {entry} cannot be found")
    found = {str(entry): start}
    todo = [(start, entry if isinstance(entry, str) else None)]
    while todo:
        for module in sorted(_parsed(*todo.pop())[1]):
            if module in found or module in _NOT_FOLLOWED:
                continue
            own = module.split(".")[0] in ours
            if (path := module_file(module) if own else _helper(module, beside)) is not None:
                found[module] = path
                todo.append((path, module))
    return found


@cache
def code_hash(*entries: str | Path) -> str:
    """Hash of the stripped source that ``entries`` depend on (12 hex digits)."""
    parts: dict[str, str] = {}
    for entry in entries:
        for name, path in module_closure(entry).items():
            lone = isinstance(entry, Path) and name == str(entry)
            parts[Path(name).name if lone else name] = _parsed(path, None if lone else name)[0]
    text = "\n".join(f"{name}:{parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
