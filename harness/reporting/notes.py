"""The sentences under a table: the study's own, and what holds of its data, models and rows by themselves."""

from __future__ import annotations

from harness.data.overlap import pool_note
from harness.files import read_json
from harness.planning.keys import pretrained
from harness.planning.plan import Plan
from harness.plugins.discovery import get_projector
from harness.reporting.context import row_label

__all__ = ["table_notes"]

_PRETRAINED = (
    "Tiny models, pretrained on scenes of the same generator, which is kinder to SAM superpixels than "
    "photographs are."
)
_CAPTIONED = (
    "Every row is also trained on captions of objects, which is no part of the paper's recipe: first on them "
    "alone (the share of stage 1 that caption_share says; all of the projector learns), later beside the "
    "masks. Masks alone never taught so small a model to read visual tokens."
)


def table_notes(plan: Plan) -> tuple[str, ...]:
    """Everything that a reader of the study's tables must know, a sentence or two each, none twice."""
    runs = list(plan.runs.values())
    notes = list(plan.study.notes)
    if any(run.models.size == "tiny" for run in runs):
        notes += plan.study.tiny_notes
    if any(pretrained(run) and run.data.kind == "synthetic" for run in runs):
        notes.append(_PRETRAINED)
    prepared = dict.fromkeys(plan.prepared_dir(run) for run in runs)
    notes += filter(None, (pool_note(read_json(folder / "summary.json")) for folder in prepared))
    if any(run.training.caption_weight for run in plan.trained):
        notes.append(_CAPTIONED)
    for run in runs:
        info = get_projector(run.source)
        if info.departs:
            notes.append(f"{run.projector} {info.departs}.")
        row = row_label(run.projector, run.variant, "auto")
        notes += [f"{row} starts from {source}." for source in run.models.projector_weights.values()]
        if "expression" in info.needs:
            notes.append(
                f"{run.projector} reads the expression: an image's tokens are made and read once for each of "
                "its expressions, where the other rows read them once."
            )
        if info.acts_on == "superpixels":
            notes.append(f"{run.projector} has no language model: its tokens are what it chooses among.")
    return tuple(dict.fromkeys(notes))
