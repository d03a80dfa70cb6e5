r"""The main table for people: Markdown and LaTeX from the same frames as ``main.csv``.

One row a row of the comparison, grouped by budget with the controls apart; one column a split, gIoU
with cIoU in brackets, and the mean gIoU over splits with its interval. The best gIoU is marked with
every one that is not told apart from it, the best cIoU alone; among compared projectors only, never
among controls or failures, never where the data is too small to rank anything. Values that are printed
alike share a mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.reporting.aggregate import DIFFERENCE_COLUMNS, differences_to
from harness.reporting.context import ROW_KEY, ReportContext, order_rows, records, row_label, split_order

__all__ = ["RANKABLE_EXPRESSIONS", "caption", "main_markdown", "main_tex"]

# RefCOCO's smallest split holds 4,889 expressions; below this, an interval is wider than any
# difference that the literature argues about.
RANKABLE_EXPRESSIONS = 1000
CONTROLS = "controls"
OWN = "own token count"


@dataclass(frozen=True)
class _Style:
    """How one output format writes a cell."""

    bold: Callable[[str], str]
    times: str
    pm: str
    dash: str
    dagger: str


_MARKDOWN = _Style(lambda s: f"**{s}**", "×", "±", "–", "†")
_TEX = _Style(
    lambda s: rf"\textbf{{{s}}}",
    r"$\times$",
    r"{\scriptsize$\,\pm\,$}",
    "--",
    r"$^\dagger$",
)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(value: float) -> str:
    for size, letter, digits in ((1e9, "B", 2), (1e6, "M", 2), (1e3, "k", 1)):
        if value >= size:
            return f"{value / size:.{digits}f} {letter}"
    return f"{value:.0f}"


def _rankable(main: pd.DataFrame, context: ReportContext) -> bool:
    return context.data == "synthetic" or int(main["n_expressions"].min()) >= RANKABLE_EXPRESSIONS


def _marked(
    table: pd.DataFrame, metric: str, pairs: pd.DataFrame, place: tuple[str, str], context: ReportContext
) -> set[tuple]:
    """The best row and those not told apart from it, as far as differences of ``metric`` are known.

    Args:
        table: one row a row of the comparison.
        metric: ``giou`` or ``ciou``.
        pairs: the frame of ``differences.csv``, one protocol; rows without a pair are told apart.
        place: dataset and split, ``all`` for the mean over splits.
        context: says which rows are controls.
    """
    measured = table["status"].eq("ok") & table[metric].notna()
    eligible = table[~table["projector"].isin(context.controls) & measured]
    if len(eligible) < 2:
        return set()
    values = dict(zip(_keys(eligible), eligible[metric], strict=True))
    if not any(values.values()):  # nothing was found by anyone: there is no best
        return set()
    best = max(values, key=lambda key: values[key])
    marked = {key for key, value in values.items() if _percent(value) == _percent(values[best])}
    if metric in DIFFERENCE_COLUMNS:
        gaps = differences_to(pairs, best, metric, place)
        marked |= {key for key in values if key in gaps and gaps[key][1] <= 0 <= gaps[key][2]}
    return marked


def _keys(table: pd.DataFrame) -> list[tuple]:
    return list(table[list(ROW_KEY)].itertuples(index=False, name=None))


def _name(row: Any) -> str:
    return row_label(row.projector, row.variant, row.budget, with_budget=True)


def _number(row: Any, metric: str, marked: set[tuple], style: _Style) -> str:
    text = _percent(getattr(row, metric))
    return style.bold(text) if (row.projector, row.variant, row.budget) in marked else text


def _split_column(table: pd.DataFrame, marked: dict[str, set[tuple]], style: _Style) -> dict[tuple, str]:
    """``gIoU (cIoU)`` of one split by row key; ``marked`` rows by metric."""
    out = {}
    for row in records(table):
        text = "failed"
        if pd.notna(row.giou):
            giou, ciou = (_number(row, metric, marked[metric], style) for metric in ("giou", "ciou"))
            text = f"{giou} ({ciou})" + ("" if row.status == "ok" else style.dagger)
        out[row.projector, row.variant, row.budget] = text
    return out


def _mean_column(table: pd.DataFrame, marked: set[tuple], style: _Style) -> dict[tuple, str]:
    """Mean gIoU over splits with half its interval's width, by row key."""
    out = {}
    for row in records(table):
        text = "failed"
        if pd.notna(row.giou):
            half = (row.giou_high - row.giou_low) / 2
            text = _number(row, "giou", marked, style)
            text += "" if pd.isna(half) else f" {style.pm}{_percent(half)}"
        out[row.projector, row.variant, row.budget] = text
    return out


def _layer_tokens(main: pd.DataFrame) -> dict[tuple, str]:
    """What follows the count at the input where later layers of the language model see fewer."""
    if "layer_tokens" not in main:
        return {}
    heads = main.drop_duplicates(list(ROW_KEY)).dropna(subset=["layer_tokens"])
    return {key: f", {v:.1f} over layers" for key, v in zip(_keys(heads), heads["layer_tokens"], strict=True)}


def group_of(projector: str, budget: str, context: ReportContext) -> str:
    """The group of the table that a row stands in."""
    if projector in context.controls:
        return CONTROLS
    return f"{budget} tokens" if budget != "auto" else OWN


def _wide(
    main: pd.DataFrame, overall: pd.DataFrame, pairs: pd.DataFrame, context: ReportContext, style: _Style
) -> pd.DataFrame:
    """All text: index ``(group, label)``, columns ``(upper, lower)``; all frames of one protocol."""

    def marked(table: pd.DataFrame, metric: str, place: tuple[str, str] = ("all", "all")) -> set[tuple]:
        return _marked(table, metric, pairs, place, context) if _rankable(main, context) else set()

    columns: dict[tuple[str, str], dict[tuple, str]] = {}
    inside = _layer_tokens(main)
    columns["tokens", "mean [p5, p95]"] = {
        key: style.dash
        if pd.isna(mean) or mean == 0
        else f"{mean:.1f} [{low:.0f}, {high:.0f}]{inside.get(key, '')}"
        for key, mean, low, high in zip(
            _keys(overall), overall["tokens_mean"], overall["tokens_p5"], overall["tokens_p95"], strict=True
        )
    }
    columns["mean gIoU", "over splits"] = _mean_column(overall, marked(overall, "giou"), style)
    for dataset, split in split_order(list(zip(main["dataset"], main["split"], strict=True))):
        part = main[main["dataset"].eq(dataset) & main["split"].eq(split)]
        marks = {metric: marked(part, metric, (dataset, split)) for metric in ("giou", "ciou")}
        columns[dataset, split] = _split_column(part, marks, style)
    heads = main.drop_duplicates(list(ROW_KEY))
    for column, title in (("speedup_infer", "inference"), ("speedup_train", "training")):
        # One decimal: the photographs of one job differ by more than the second (main.csv has the range).
        texts = [
            style.dash if pd.isna(v) else f"{v:.{1 if v > 0.95 else 2}f}{style.times}" for v in heads[column]
        ]
        columns["speed-up", title] = dict(zip(_keys(heads), texts, strict=True))
    counts = [style.dash if pd.isna(v) else _count(v) for v in heads["parameters"]]
    columns["parameters", "trained"] = dict(zip(_keys(heads), counts, strict=True))
    if "learning_rate" in heads:
        rates = [style.dash if pd.isna(v) else f"{v:g}" for v in heads["learning_rate"]]
        columns["learning rate", "searched" if context.tuning else "fixed"] = dict(
            zip(_keys(heads), rates, strict=True)
        )

    def place(key: tuple) -> tuple[int, float]:
        group = group_of(key[0], key[2], context)
        return (2, 0.0) if group == CONTROLS else (0, 0.0) if group == OWN else (1, -float(key[2]))

    keys = sorted(_keys(order_rows(heads, context)), key=place)
    labels = [
        (group_of(p, b, context), row_label(p, v, b, with_budget=p in context.controls)) for p, v, b in keys
    ]
    frame = pd.DataFrame([[c.get(k, style.dash) for c in columns.values()] for k in keys])
    frame.index = pd.MultiIndex.from_tuples(labels)
    frame.columns = pd.MultiIndex.from_tuples(list(columns))
    return frame


def caption(main: pd.DataFrame, context: ReportContext) -> str:
    """What the numbers are and what they cannot show, in sentences."""
    first = main.drop_duplicates(["dataset", "split"])
    total = int(first["n_expressions"].sum())
    if context.data == "synthetic":
        data = f"Synthetic scenes, not photographs: {total:,} expressions in {len(first)} splits."
    elif _rankable(main, context):
        data = f"Photographs: {total:,} expressions in {len(first)} splits."
    else:
        smallest = int(first["n_expressions"].min())
        data = (
            f"Photographs, but too small to rank anything: {total:,} expressions in {len(first)} splits, "
            f"{smallest:,} in the smallest; no row is marked best."
        )
    seeds = sorted(set(main["seed_count"].astype(int)))
    parts = [context.title.rstrip(".") + "." if context.title else "", data]
    parts.append("gIoU (cIoU) in percent; tokens as measured at the language model's input.")
    if context.effort == "quick":
        parts.append("Effort: quick (short schedule; not the study's full grid).")
    if context.tuning:
        grid = ", ".join(f"{factor:g}" for factor in context.tuning)
        parts.append(
            f"Learning rates: {grid} times the recipe's, chosen by gIoU on held-out images of train."
        )
    parts.append(
        f"Mean of {' or '.join(map(str, seeds))} seeds, sd in main.csv; intervals are over images, given "
        "these seeds, and leave out what others would change."
        if seeds != [1]
        else "One seed: intervals leave out what training again would change."
    )
    half = ((main["giou_high"] - main["giou_low"]) / 2).dropna()
    if len(half):
        parts.append(
            "± is half the 95 % interval of a bootstrap over images; for a single split it lies between "
            f"{_percent(half.min())} and {_percent(half.max())} points (main.csv)."
        )
    if main["speedup_infer"].notna().any():
        parts.append(
            f"Speed-ups are relative to {context.reference}, measured in the same job: of inference from "
            "the photograph on, the median over photographs; of training, a step's forward and backward "
            "pass from stored features (ranges in main.csv)."
        )
    return " ".join(p for p in parts if p)


def _legend(main: pd.DataFrame, context: ReportContext) -> list[str]:
    """What the marks mean; nothing where no row is marked."""
    if not _rankable(main, context):
        return []
    if not main["giou"].any():
        return ["No row finds anything of any target here: none is marked best."]
    return [
        "Bold: best, and each whose paired gIoU difference to it has a 95 % interval over images that "
        "holds 0 (of cIoU the best alone), among projectors (controls are never ranked)."
    ]


def _footnotes(main: pd.DataFrame, context: ReportContext) -> list[str]:
    out = list(context.notes)
    failed = main[main["status"] != "ok"]
    out += [f"† {_name(r)}, {r.dataset} {r.split}: {r.status}." for r in records(failed)]
    return out


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def adaptivity_notes(tokens: pd.DataFrame, context: ReportContext) -> list[str]:
    """A sentence for the projectors whose token count follows the photograph; for one count, one sentence."""
    adaptive = tokens[~tokens["projector"].isin(context.controls)].dropna(subset=["spearman_rho"])
    counted = ["tokens_min", "tokens_max", "spearman_rho", "p_value", "n_images"]
    groups = [records(rows) for _, rows in adaptive.groupby(counted, sort=False)]
    return [
        f"Visual tokens of {', '.join(map(_name, rows))} against objects in the image: "
        f"Spearman's ρ = {rows[0].spearman_rho:.2f} "
        f"({_p_value(rows[0].p_value)}, {rows[0].n_images:,} images)."
        for rows in groups
    ]


def timing_notes(timings: pd.DataFrame) -> list[str]:
    """Where speed was measured: without that a speed-up says nothing."""
    places = timings[["device", "dtype", "attention"]].drop_duplicates()
    return [f"Timed on: {r.device}; {r.dtype}, attention {r.attention}." for r in records(places)]


def training_notes(parameters: pd.DataFrame) -> list[str]:
    """A sentence for each row that is trained for longer than others, or answers as it was not trained."""
    several = parameters[parameters["step_budgets"] > 1]
    dropped = parameters.dropna(subset=["layer_tokens"])
    return [
        f"{_name(r)} learns at {r.step_budgets} token counts in each step: as many passes through the "
        "language model, where other rows take one."
        for r in records(several)
    ] + [
        f"{_name(r)} drops visual tokens inside the language model when it answers, for each expression its "
        "own: from there on the expressions of an image share no prefix, which its speed-up counts."
        for r in records(dropped)
    ]


def main_markdown(
    main: pd.DataFrame,
    overall: pd.DataFrame,
    differences: pd.DataFrame,
    context: ReportContext,
    notes: list[str] | None = None,
) -> str:
    """The main table in Markdown, a table for each protocol.

    Args:
        main: the frame of ``main.csv``.
        overall: the frame of ``overall.csv``.
        differences: the frame of ``differences.csv``; tells which rows share the mark of the best.
        context: captions, controls and order.
        notes: further footnotes.
    """
    lines = [f"# {context.title or context.study}{' (quick)' if context.effort == 'quick' else ''}", ""]
    for protocol, part in main.groupby("protocol", sort=True):
        means, pairs = (table[table["protocol"].eq(protocol)] for table in (overall, differences))
        frame = _wide(part, means, pairs, context, _MARKDOWN)
        heads = ["projector", *(" ".join(h) for h in frame.columns)]
        lines += [""] if lines[-1] else []
        lines += [f"Protocol `{protocol}`. {caption(part, context)}", "", f"| {' | '.join(heads)} |"]
        lines += ["|:---|" + "---:|" * len(frame.columns)]
        group = None
        for (this, label), row in zip(frame.index, frame.to_numpy(), strict=True):
            if this != group:
                group = this
                lines.append(f"| *{group}* |" + "  |" * len(frame.columns))
            lines.append(f"| {label} | {' | '.join(row)} |")
        lines += [text for sentence in _legend(part, context) for text in ("", sentence)]
        lines += ["", *(f"- {note}" for note in _footnotes(part, context))]
    lines += [f"- {note}" for note in notes or []]
    return "\n".join(lines)


def main_tex(
    main: pd.DataFrame,
    overall: pd.DataFrame,
    differences: pd.DataFrame,
    context: ReportContext,
    notes: list[str] | None = None,
) -> str:
    r"""The main table in LaTeX (``booktabs``, ``graphicx``), one ``table*`` for each protocol.

    Arguments as of :func:`main_markdown`; what stands there under the table ends the caption here.
    """
    out = [r"% needs \usepackage{booktabs, graphicx}"]
    for protocol, part in main.groupby("protocol", sort=True):
        means, pairs = (table[table["protocol"].eq(protocol)] for table in (overall, differences))
        frame = _wide(part, means, pairs, context, _TEX)
        under = [*_legend(part, context), *_footnotes(part, context), *(notes or [])]
        words = " ".join([caption(part, context), *under])
        styler = frame.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
        text = styler.to_latex(
            hrules=True,
            multicol_align="c",
            multirow_align="naive",
            clines="skip-last;data",
            column_format="ll" + "r" * len(frame.columns),
            environment="table*",
            position="t",
            position_float="centering",
            caption=f"Protocol {_escape(str(protocol))}. {_escape(words)}",
            label=f"tab:{context.study}-{protocol}",
        )
        small = "\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{2.5pt}\n"
        text = text.replace("\\centering\n", small, 1)
        # pandas draws lines that touch the text, and one more at the table's end
        text = re.sub(r"\\cline\{[\d-]+\}\n(\\bottomrule)?", lambda m: m[1] or "\\midrule\n", text)
        text = text.replace("\\begin{tabular}", "\\resizebox{\\textwidth}{!}{\\begin{tabular}", 1)
        out.append(text.replace("\\end{tabular}", "\\end{tabular}}", 1))
    return "\n".join(out)


_TEX_SIGNS = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "ρ": r"$\rho$",
    "†": r"$^\dagger$",
    "–": "--",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
}


def _escape(text: str) -> str:
    """Text for LaTeX, with the signs that captions use."""
    out = "".join(_TEX_SIGNS.get(c, c) for c in text)
    return out.replace(r" \%", r"\,\%")
