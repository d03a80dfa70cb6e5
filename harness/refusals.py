"""Rows that their own projectors refuse, found before hours of work. Imports the projectors, and so torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from harness.config import RunConfig
from harness.discovery import load_projector, load_source
from harness.files import read_json
from harness.plan import Plan
from harness.projector import Interface
from harness.superpixel_stage import source_options

__all__ = ["refusals"]


def refusals(plan: Plan) -> dict[str, str]:
    """Why rows of a study cannot be run, by row: an option of the wrong kind, or what ``skip`` says.

    ``skip`` is not asked where a model's width is not known before its weights are there.
    """
    rows = {run.row: run for run in plan.trained}
    return {name: reason for name, run in rows.items() if (reason := _refusal(plan, run))}


def _refusal(plan: Plan, run: RunConfig) -> str | None:
    projector = load_projector(run.source)
    try:
        config = projector.Config(**run.config)
        if run.superpixels is not None:
            source_options(plan, run, load_source(run.superpixels.source))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    width, language_width = _width(plan, run, "vision"), _width(plan, run, "language")
    if width is None or language_width is None:
        return None
    vision = run.models.vision
    interface = Interface(width, language_width, vision.grid, run.budget, len(vision.levels))
    return projector.skip(interface, config)[1] or None


def _width(plan: Plan, run: RunConfig, part: str) -> int | None:
    """Of a tiny model from the study, of weights in a folder from their ``config.json``."""
    if getattr(run.models, part).source == "pretrained":
        return int(getattr(run.models.pretrain, f"{part}_width"))
    try:
        values = read_json(Path(plan.model_source(run, part)) / "config.json")
    except (ValueError, OSError):  # not there, or no folder: what loads it says what is wrong with it
        return None
    own = values.get("vision_config", values) if part == "vision" else values
    return own.get("hidden_size")
