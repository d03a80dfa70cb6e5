"""One page of all committed snapshots: each study's rows, mean gIoU, and the difference to its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.files import read_json
from harness.reporting.context import ROW_KEY, records, row_label, write_text
from harness.reporting.difference_chart import difference_chart, read_differences
from harness.reporting.retraining import training_half, variability
from harness.reporting.style import house_style, save

__all__ = ["digest", "write_digest"]

_HEAD = """# Snapshots of finished studies

Written by `svp snapshot`; no number here is typed. Tokens are the mean at the language model's input. gIoU is
the mean over splits, in per cent, with its 95 % interval (bootstrap over images); a difference is paired over
images, its p not corrected for the number of rows. Tables and figures of each study lie in its folder.
"""


def digest(snapshot: Path) -> str:
    """A snapshot's section, in Markdown.

    Args:
        snapshot: ``results/reference/<study>``.
    """
    context, overall, reference, difference = read_differences(snapshot / "tables")
    made_by = read_json(snapshot / "provenance.json")
    protocol = overall["protocol"].iloc[0]
    seeds = int(overall["seed_count"].max())
    lines = [
        f"## {snapshot.name}: {context.title}",
        "",
        f"Effort: {context.effort}. {seeds} seed{'s' if seeds > 1 else ''}. Protocol `{protocol}`. "
        f"Made by `{made_by['command']}` at commit {made_by['commit'][:7]}"
        f"{', with uncommitted changes' if made_by['uncommitted_changes'] else ''}, on {made_by['device']}"
        f"{_took(made_by)}{_trained(made_by)}.",
        "",
        *_picture(snapshot, row_label(*reference, with_budget=True)),
        f"| row | tokens | gIoU | minus {row_label(*reference, with_budget=True)} | p |",
        "|:---|---:|---:|---:|---:|",
    ]
    for row in records(overall):
        key = tuple(getattr(row, name) for name in ROW_KEY)
        cells = [row_label(*key, with_budget=True), f"{row.tokens_mean:.1f}"]
        cells.append(f"{100 * row.giou:.1f} [{100 * row.giou_low:.1f}, {100 * row.giou_high:.1f}]")
        if key in difference:
            gap, low, high, p = difference[key]
            cells += [
                f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                _p_text(p, context.resamples),
            ]
        else:
            cells += ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    links = f"[table]({snapshot.name}/tables/main.md)"
    if (snapshot / "figures" / "tokens_vs_giou.png").is_file():
        links += f", [tokens against gIoU]({snapshot.name}/figures/tokens_vs_giou.png)"
    return "\n".join([*lines, "", *(f"- {note}" for note in context.notes), f"- {links}"]) + "\n"


def _picture(snapshot: Path, reference: str) -> list[str]:
    """The chart of differences, where it has been drawn."""
    place = Path("figures") / "differences.png"
    if not (snapshot / place).is_file():
        return []
    return [f"![gIoU of every row minus that of {reference}]({snapshot.name}/{place.as_posix()})", ""]


def _took(made_by: dict[str, Any]) -> str:
    minutes = made_by.get("minutes")
    return (
        f", in {minutes:.0f} minutes (without what earlier studies had left)" if minutes is not None else ""
    )


def _trained(made_by: dict[str, Any]) -> str:
    """Where rows were trained at other commits than the tables were told at."""
    commits = made_by.get("trained_at", [])
    if commits in ([], [made_by["commit"]]):
        return ""
    told = [c[:7] + c[40:] if c != "unknown" else "commits that their logs do not name" for c in commits]
    return f"; rows trained at {', '.join(told)}"


def _p_text(p: float, resamples: int) -> str:
    """A p-value of the bootstrap, which knows none below two in its resamples."""
    least = 2 / (resamples + 1)
    return f"≤ {least:.3f}" if p <= least + 1e-6 else f"{p:.3f}"  # tables hold six digits


def write_digest(reference: Path) -> Path:
    """Write ``README.md`` over all snapshots in ``reference``, the default study first, and their charts.

    Raises:
        ValueError: something in it is no snapshot; nothing is written then.
    """
    found = [path.parent for path in reference.glob("*/tables") if (path / "context.json").is_file()]
    for folder in found:
        if not (folder / "provenance.json").is_file():
            raise ValueError(
                f"{reference} is no folder of snapshots: {folder.name} has no provenance.json; name one that "
                "svp snapshot writes into, such as results/reference"
            )
    first = ["default", "main", "seeds"]
    found.sort(key=lambda folder: (*(folder.name != name for name in first), folder.name))
    for snapshot in found:
        # The study itself does not know what study seeds says of training again.
        half = training_half(snapshot, reference / "seeds")
        with house_style():
            figure = difference_chart(read_differences(snapshot / "tables"), half)
            save(figure, snapshot / "figures", "differences")
    out = reference / "README.md"
    spread = variability(reference)
    if spread:
        spread[0] = f"Intervals leave out what training again would change. {spread[0]}"
    write_text(out, "\n".join([_HEAD, *spread, *map(digest, found)]))
    return out
