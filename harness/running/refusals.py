"""Rows that their own projectors refuse, found before hours of work. Imports the projectors, and so torch."""

from __future__ import annotations

from pydantic import ValidationError

from harness.config import ConfigError, RunConfig
from harness.planning.plan import Plan
from harness.plugins.discovery import load_projector, load_source
from harness.projector import Interface
from harness.superpixels.stage import source_options

__all__ = ["check_rows", "refusals", "unasked_rows"]


def check_rows(plan: Plan) -> None:
    """Refuse a study before hours of work.

    Raises:
        ConfigError: some of its rows cannot be run; the message names each, and why.
    """
    if refused := refusals(plan):
        said = "; ".join(f"{row}: {reason}" for row, reason in refused.items())
        raise ConfigError(f"these rows cannot be run, change or leave them out: {said}")


def refusals(plan: Plan) -> dict[str, str]:
    """Why rows of a study cannot be run, by row: an option of the wrong kind, or what ``skip`` says.

    ``skip`` is not asked of :func:`unasked_rows`.
    """
    rows = {run.row: run for run in plan.trained}
    return {name: reason for name, run in rows.items() if (reason := _refusal(plan, run))}


def unasked_rows(plan: Plan) -> list[str]:
    """Rows whose ``skip`` cannot be asked, as a model's width is not known before its weights are there."""
    return list(dict.fromkeys(run.row for run in plan.trained if _interface(plan, run) is None))


def _refusal(plan: Plan, run: RunConfig) -> str | None:
    try:
        projector = load_projector(run.source)
    except ValueError as error:
        return str(error)
    try:
        config = projector.Config(**run.config)
        if run.superpixels is not None:
            source_options(plan, run, load_source(run.superpixels.source))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    interface = _interface(plan, run)
    return None if interface is None else projector.skip(interface, config)[1] or None


def _interface(plan: Plan, run: RunConfig) -> Interface | None:
    width, language_width = _width(plan, run, "vision"), _width(plan, run, "language")
    if width is None or language_width is None:
        return None
    vision = run.models.vision
    return Interface(width, language_width, vision.grid, run.budget, len(vision.levels))


def _width(plan: Plan, run: RunConfig, part: str) -> int | None:
    """Of a tiny model from the study; of weights from their config, in a folder or the hub's cache."""
    if getattr(run.models, part).source == "pretrained":
        return int(getattr(run.models.pretrain, f"{part}_width"))
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(plan.model_source(run, part), local_files_only=True)
    except (
        ValueError,
        OSError,
        StrictDataclassError,
    ):  # not there, or of another kind: what loads it says what is wrong with it
        return None
    own = getattr(config, "vision_config", config) if part == "vision" else config.get_text_config()
    return getattr(own, "hidden_size", None)
