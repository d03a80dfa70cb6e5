"""From a study file to runs: parts by name, deltas, rows times budgets times seeds.

A study names its blocks by one word each (``models: tiny``), resolved from ``config/parts/<block>/``,
and states flat deltas under ``set`` (``training.stage1_steps: 50``). The schema is :mod:`harness.config`.
Nothing here imports torch: the Snakefile loads this module, and every Slurm job parses the Snakefile again.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.config import (
    BLOCKS,
    Budget,
    ConfigError,
    Row,
    RunConfig,
    StudyConfig,
    SuperpixelConfig,
    checked_name,
    study_name,
)
from harness.planning.keys import pretrained
from harness.plugins.declarations import Declaration
from harness.plugins.discovery import find_projectors, get_projector, get_source, nearest

__all__ = ["load_study", "name_of_file", "read_study", "resolve_study", "row_names", "rows_called"]


def _parts_dir(root: Path) -> Path:
    return root / "config" / "parts"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys, but for that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                raise ConfigError(f"key '{key.value}' stands twice, again in line {line}; leave one of them")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.load(path.read_text(), Loader=_UniqueKeys)  # a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a mapping")
    return value


def _load_part(root: Path, block: str, name: Any, size: str = "tiny") -> dict[str, Any]:
    """A part by name; ``NAME.SIZE.yaml`` stands in for ``NAME.yaml`` at that size of models."""
    if not isinstance(name, str):
        raise ConfigError(
            f"{block}: {name!r} is no name of a part; single keys are set as '{block}.KEY: value'"
        )
    folder = _parts_dir(root) / block
    known = sorted(p.stem for p in folder.glob("*.yaml") if "." not in p.stem)
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.{size}.yaml"
    path = path if path.is_file() or name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{block}: there is no part '{name}' in config/parts/{block}{nearest(name, known)}")
    return _read_yaml(path)


def _size(root: Path, models: Mapping[str, Any]) -> str:
    """The size that thresholds and schedules are chosen by, as ``NAME.SIZE.yaml``.

    Raises:
        ConfigError: there is no part of that size, or the tiny one stands beside a SAM that is not tiny.
    """
    size = models.get("size", "tiny")
    known = {"tiny", *(path.stem.split(".")[1] for path in _parts_dir(root).glob("*/*.*.yaml"))}
    if size not in known:
        raise ConfigError(f"models: size: no part is made for '{size}'{nearest(str(size), sorted(known))}")
    kind = models.get("sam", {}).get("kind", "tiny")
    if size == "tiny" and kind != "tiny":
        raise ConfigError(
            f"models: size: 'tiny' has thresholds for a tiny SAM, and this one is {kind}; set size: "
            f"{' or '.join(sorted(known - {'tiny'}))}"
        )
    return size


def _apply(blocks: dict[str, Any], key: str, value: Any, root: Path, where: str) -> None:
    block, _, rest = key.partition(".")
    if block not in BLOCKS:
        raise ConfigError(f"{where}: unknown block in '{key}'{nearest(block, list(BLOCKS))}")
    if not rest:
        blocks[block] = _load_part(root, block, value, blocks["models"].get("size", "tiny"))
        return
    target = blocks[block]
    *path, last = rest.split(".")
    for step in path:
        target = target.setdefault(step, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{where}: '{key}' goes through '{step}', which holds no keys")
    if isinstance(value, str) and isinstance(target.get(last), dict):
        # A word in place of keys names a part within the part: the same word at every model size.
        value = _load_part(root, "/".join([block, *path, last]), value, blocks["models"].get("size", "tiny"))
    target[last] = value


def _explain(error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{where}{': ' + place if place else ''}: {message}")


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def read_study(study: Path | str | Sequence[Path | str], root: Path | str = ".") -> dict[str, Any]:
    """A study's raw mapping, of any number of files, on ``config/default.yaml``, as ``--configfile`` merges.

    A file without ``study`` is called by its own name; else it would write over the default study.

    Raises:
        ConfigError: a file is missing, is not a YAML mapping, or has no name that a study can have.
    """
    default = Path(root) / "config" / "default.yaml"
    paths = [Path(each) for each in ([study] if isinstance(study, Path | str) else study)]
    for each in (default, *paths):
        if not each.is_file():
            raise ConfigError(f"study file {each} does not exist; run from the repository's root")
    merged = _read_yaml(default)
    for path in paths:
        name = name_of_file(path)
        merged = _merge(merged, _read_yaml(path) | ({} if name is None else {"study": name}))
    return merged


def name_of_file(path: Path | str) -> str | None:
    """What a study file without ``study`` is called: its own name without the ending; ``None`` with one.

    Raises:
        ConfigError: no study can be called so.
    """
    path = Path(path)
    if "study" in _read_yaml(path):
        return None
    try:
        if path.stem[:1].isdigit():  # Snakemake, which is given the name, would read a number
            raise ValueError("it begins with a digit")
        return study_name(path.stem)
    except ValueError as error:
        raise ConfigError(f"{path} has no 'study: NAME', and its own name will not do: {error}") from error


def load_study(raw: Mapping[str, Any]) -> StudyConfig:
    """Check a study's raw mapping (Snakemake's ``config``, or a YAML file's).

    ``data_root`` is accepted as a shorthand for ``set: {data.root: …}``, so that it can be given
    on the command line.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    values: dict[str, Any] = copy.deepcopy(dict(raw))
    root = values.pop("data_root", None)
    if root is not None:
        values["set"] = {**values.get("set", {}), "data.root": str(root)}
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, "config") from error
    if study.effort == "quick":
        tuning = study.tuning if study.tuning and study.tuning.at_quick else None
        return study.model_copy(update={"full_seeds": (), "tuning": tuning})
    seeds = tuple(dict.fromkeys((*study.seeds, *study.full_seeds)))
    return study.model_copy(update={"seeds": seeds, "full_seeds": ()})


def row_names(run: RunConfig) -> tuple[str, ...]:
    """A row by ``projector.variant.budget`` or ``projector.variant``; variant ``base`` by ``projector``."""
    named = f"{run.projector}.{run.variant}"
    return (run.row, named, run.projector) if run.variant == "base" else (run.row, named)


def rows_called(name: str, runs: Iterable[RunConfig]) -> list[str]:
    """The rows of ``runs`` that ``name`` may mean (see :func:`row_names`), in their order, seeds apart."""
    return list(dict.fromkeys(run.row for run in runs if name in row_names(run)))


def _choices(runs: Sequence[RunConfig]) -> str:
    """Every row of ``runs`` by the shortest of its names that means no other."""
    shortest = {}
    for run in runs:
        alone = [name for name in row_names(run) if len(rows_called(name, runs)) == 1]
        shortest[run.row] = min(alone, key=len)
    return ", ".join(shortest.values())


def _check_of(runs: list[RunConfig]) -> None:
    """Something is trained, and a control that acts on a run names one row of it."""
    trained = [run for run in runs if run.acts_on == "training"]
    if not trained:
        raise ConfigError(f"config: rows: {runs[0].source} is not trained; add a row that is, such as 'mlp'")
    for run in runs:
        if run.acts_on != "run":
            continue
        found = rows_called(run.of or "", trained)
        if len(found) > 1:
            raise ConfigError(
                f"config: rows: '{run.source}': 'of: {run.of}' may mean {', '.join(found)}; name one of them"
            )
        if not found:
            known = _choices(trained)
            raise ConfigError(
                f"config: rows: '{run.source}' acts on a finished run; 'of' must name one of {known}"
            )


def _check_options(info: Declaration, given: Mapping[str, Any], where: str) -> None:
    for key in given:
        if info.options is not None and key not in info.options:
            raise ConfigError(f"{where}: unknown option '{key}'{nearest(key, sorted(info.options))}")


def _check_superpixels(config: SuperpixelConfig) -> None:
    try:
        info = get_source(config.source)
    except ValueError as error:
        raise ConfigError(f"superpixels: {error}") from error
    _check_options(info, config.options, f"superpixels: {config.source}")
    if info.needs_sam and not config.uses_sam:
        raise ConfigError(f"superpixels: {config.source} takes its masks from a SAM; set uses_sam: true")


def _check_row(row: Row) -> Any:
    try:
        info = get_projector(row.name)
    except ValueError as error:
        raise ConfigError(f"config: rows: {error}") from error
    _check_options(info, row.config, f"config: rows: {row.name}")
    if row.label is None:
        try:
            checked_name(info.name)
        except ValueError as error:
            raise ConfigError(
                f"config: rows: {row.name}: {error}, as the file's 'name' or 'label'"
            ) from error
    if info.acts_on == "run":
        if row.budget is not None or row.full_budgets:
            raise ConfigError(
                f"config: rows: '{row.name}' has the budget of the run that it acts on; leave out its own"
            )
    return info


def _own_weights(given: Any, name: str, knowing: Sequence[str]) -> dict[str, str]:
    """What one projector starts from, of ``models.projector_weights``; others' change no number of it.

    Args:
        given: the mapping, not checked yet.
        name: the projector.
        knowing: all that can start from published weights.
    """
    if not isinstance(given, dict):
        raise ConfigError("config: models: projector_weights maps projectors to weights: {q_former: FOLDER}")
    for each in given:
        if each not in knowing:
            raise ConfigError(
                f"config: models: projector_weights: '{each}' is no projector that starts from published "
                f"weights{nearest(str(each), sorted(knowing))}"
            )
    return {each: source for each, source in given.items() if each == name and source is not None}


def _budgets(row: Row, effort: str) -> tuple[Budget, ...]:
    """The budgets of a row, one a row of the table."""
    budgets = row.budget if isinstance(row.budget, tuple) else (row.budget,)
    return budgets if effort == "quick" else (*budgets, *row.full_budgets)


def _tokens(budget: Budget, vision: Mapping[str, Any], name: str) -> int | None:
    """A budget as a number of tokens.

    Raises:
        ConfigError: the share of the patches is no whole number.
    """
    if not isinstance(budget, str):
        return budget
    patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
    share = int(budget.removeprefix("1/"))
    if patches % share:
        raise ConfigError(f"config: rows: {name}: {budget} of {patches} patches is no whole number")
    return patches // share


def _data_root(root: str) -> str:
    """Absolute, as what is prepared from it names it too; a variable that is unset or empty stands as it is.

    A plan needs no raw data; a run checks for it.
    """
    if any(os.environ.get(name) == "" for name in re.findall(r"\$\{?(\w+)", root)):
        return root  # else the working directory would be taken for the data
    found = os.path.expandvars(root)
    return found if "$" in found else os.path.abspath(os.path.expanduser(found))


def _check_runs(runs: list[RunConfig], study: StudyConfig) -> None:
    names = [name for run in runs if run.acts_on == "training" for name in row_names(run)]
    unset = StudyConfig.model_fields["reference_row"].default  # without it a study says nothing of speed-ups
    if study.reference_row not in (*names, unset):  # of several budgets it means the first
        raise ConfigError(
            f"config: reference_row: no row is called '{study.reference_row}'"
            f"{nearest(study.reference_row, names)}"
        )
    for run in runs:
        for split in run.splits:
            if split not in run.data.split_names:
                raise ConfigError(
                    f"config: splits: the data have no '{split}'{nearest(split, list(run.data.split_names))}"
                )
    seen: set[str] = set()
    for run in runs:
        if run.id in seen:
            raise ConfigError(f"config: rows: two rows are called {run.id}; give one a 'variant'")
        seen.add(run.id)
        if run.superpixels is not None:
            _check_superpixels(run.superpixels)
    _check_of(runs)


def resolve_study(study: StudyConfig, root: Path | str = ".") -> list[RunConfig]:
    """Every run of a study, with every value filled in.

    Args:
        study: the checked study.
        root: the repository's root (holds ``config/parts``).

    Raises:
        ConfigError: a part, a projector or a key is not there.
    """
    root = Path(root)
    models = _load_part(root, "models", study.models)
    size = _size(root, models)
    base = {block: _load_part(root, block, getattr(study, block), size) for block in BLOCKS}
    base["models"] = models
    if study.effort == "quick":
        for key, value in _load_part(root, "effort", "quick", size).items():
            _apply(base, key, value, root, "effort quick")
    for key, value in study.set.items():
        _apply(base, key, value, root, "config: set")
    runs: list[RunConfig] = []
    infos = [*find_projectors().values(), *map(_check_row, study.rows)]
    knowing = [info.name for info in infos if info.starts_from]
    pairs = [(each, budget) for each in study.rows for budget in _budgets(each, study.effort)]
    for row, budget in pairs:
        info = _check_row(row)
        blocks: dict[str, Any] = copy.deepcopy(base)
        if info.superpixel_source:
            blocks["superpixels"] = _load_part(root, "superpixels", info.superpixel_source, size)
        for key, value in row.set.items():
            _apply(blocks, key, value, root, f"config: rows: {row.name}: set")
        if "root" in blocks["data"]:
            blocks["data"]["root"] = _data_root(blocks["data"]["root"])
        models = blocks["models"]
        if "projector_weights" in models:
            models["projector_weights"] = _own_weights(models["projector_weights"], info.name, knowing)
        if not {"superpixels"} & set(info.needs):
            blocks["superpixels"] = None
        if study.tuning is not None and any(key.startswith("training.learning_rate") for key in row.set):
            raise ConfigError(
                f"config: rows: {row.name}: `tuning` finds the learning rate; leave it out of `set`"
            )
        tokens = _tokens(budget, blocks["models"]["vision"], row.name)
        for seed in study.seeds:
            values = {
                **blocks,
                "study": study.study,
                "projector": row.label or info.name,
                "source": row.name,
                "variant": row.variant,
                "budget": tokens,
                "seed": seed,
                "kind": info.kind,
                "acts_on": info.acts_on,
                "of": row.of,
                "needs": info.needs,
                "config": row.config,
                "splits": study.splits,
            }
            try:
                runs.append(RunConfig.model_validate(values))
            except ValidationError as error:
                raise _explain(error, f"config: {row.name}") from error
        if any(key.startswith("models.pretrain") for key in row.set) and not pretrained(runs[-1]):
            raise ConfigError(
                f"config: rows: {row.name}: none of the models here is pretrained by the workflow; leave "
                "`models.pretrain` out of `set`, where it would be another row in name alone"
            )
    _check_runs(runs, study)
    return runs
