"""``svp protocols``, ``svp verify``, ``svp data overlap``: what a score was taken on, and what it meets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands.answer import answer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["overlap", "protocols", "verify"]


def _table(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format=lambda v: f"{v:.4f}")


def protocols(
    texts: Path, *, out: Path = Path("results/reference/protocols"), reruns: int = 1000, json: bool = False
) -> None:
    """How many expressions each protocol scores, and how far its sampling alone moves gIoU over reruns.

    Args:
        texts: folder of ``*.jsonl`` with the expressions, images and boxes of RefCOCO's splits.
        out: where ``counts.csv``, ``sampling.csv``, ``leakage.csv`` and ``provenance.json`` go.
        reruns: simulated reruns.
        json: print one JSON value.
    """
    from harness.files import write_json
    from harness.reporting.context import write_csv
    from harness.reporting.snapshot import provenance_of
    from harness.scoring.sampling import count_protocols, leakage, read_texts, sampling_study

    rows = read_texts(texts)
    tables = {
        "counts": count_protocols(rows),
        "sampling": sampling_study(rows, reruns=reruns),
        "leakage": leakage(texts),
    }
    for name, frame in tables.items():
        write_csv(out / f"{name}.csv", frame)
    write_json(out / "provenance.json", provenance_of(f"svp protocols TEXTS --reruns {reruns}"))
    value = {name: frame.to_dict("records") for name, frame in tables.items()}
    answer(value, json, "\n\n".join(_table(frame) for frame in tables.values() if len(frame)))


def verify(
    study: list[Path] | None = None,
    *,
    methods: tuple[str, ...] = (),
    tolerance: float = 0.01,
    published: Path = Path("results/published"),
    data_root: str | None = None,
    json: bool = False,
) -> int:
    """Say which known value a finished study meets, within what tolerance, under which protocol.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order; its
            tables must be there.
        methods: published methods to hold it against; none: all.
        tolerance: most that two values may be apart, as a fraction.
        published: folder of published numbers.
        data_root: folder of the raw data that it was run with, in place of the study's.
        json: print one JSON value, with every row beside every value.

    Returns:
        0; 2 where a split has not its known size, or there is nothing to hold the study against.
    """
    from harness.data.options import ReferData
    from harness.files import read_json
    from harness.planning.plan import Plan
    from harness.scoring.verify import nearest_rows, verify_counts, verify_scores

    plan = Plan.named(study, data_root)
    ours = [run.projector for run in plan.runs.values() if run.kind == "projector"]
    scores = verify_scores(plan.tables_dir, published, tolerance=tolerance, methods=methods, projectors=ours)
    counts = []
    for run in {run.data: run for run in plan.runs.values()}.values():
        if isinstance(run.data, ReferData):
            split_by = {d.name: d.split_by for d in run.data.datasets if not d.sample}
            found = verify_counts(read_json(plan.prepared_dir(run) / "summary.json"), split_by)
            # Of a clean pool images were taken away: its train split has no known size.
            counts += [c for c in found if c["split"] != "train" or run.data.train_pool != "clean"]
    nearest = nearest_rows(scores)
    lines = [
        f"{s['projector']} ({s['variant']}, {s['budget']}) {s['dataset']}/{s['split']} {s['metric']} "
        f"{100 * s['ours']:.1f} {'meets' if s['met'] else 'comes nearest to, and misses,'} {s['method']} "
        f"{100 * s['published']:.1f} [{s['how_known']}] under {s['protocol']}, "
        + (f"within {100 * tolerance:.1f}" if s["met"] else f"by {100 * abs(s['difference']):.1f}")
        for s in nearest
        if s["met"] is not None
    ]
    lines += [
        f"{c['dataset']}/{c['split']}: {c['ours']:,} {c['count']}"
        + (", as known" if c["met"] else f", but known are {c['known']:,}")
        for c in counts
    ]
    lines.append(
        f"{sum(bool(s['met']) for s in nearest)} of {len(nearest)} published values met by some row; "
        f"{sum(s['met'] is None for s in nearest)} cannot be held against anything here: their protocol is "
        "unknown or was not run"
    )
    answer({"scores": scores, "counts": counts}, json, "\n".join(lines))
    return 2 if any(not c["met"] for c in counts) or not (scores or counts) else 0


def overlap(study: list[Path] | None = None, *, data_root: str | None = None, json: bool = False) -> None:
    """Count the train photographs that other datasets hold out, and what ``train_pool: clean`` drops.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order; its
            annotation files are read.
        data_root: folder of the raw data, in place of the study's.
        json: print one JSON value.
    """
    import pandas as pd

    from harness.data.options import ReferData, expand_root
    from harness.data.overlap import overlap_table
    from harness.data.readers import read_dataset
    from harness.planning.plan import Plan

    plan = Plan.named(study, data_root)
    frames = [
        overlap_table({part.name: read_dataset(expand_root(data.root), part) for part in data.datasets})
        for data in dict.fromkeys(run.data for run in plan.runs.values())
        if isinstance(data, ReferData)
    ]
    if not frames:
        raise ValueError(
            f"{plan.study_dir.name} reads no REFER data; name a study that does, such as config/paper.yaml"
        )
    table = pd.concat(frames, ignore_index=True)
    answer(table.to_dict("records"), json, _table(table))
