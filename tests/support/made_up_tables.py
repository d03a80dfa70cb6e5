"""Tables of a made-up study, and a golden study of a few rows whose pixels were chosen by hand."""

import pandas as pd

from harness.reporting.context import ReportContext
from harness.reporting.tables import tables_stage
from harness.scoring.metrics import SCORE_COLUMNS


def context(study, **more):
    return ReportContext.from_study(study["config"], **more)


def write(study, out, **more):
    tables_stage(study["scores"], study["efficiency"], study["prepared"], out, context(study, **more))
    return out


def cell(markdown, label, column):
    """The cell of the row called ``label`` of a Markdown table."""
    lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"
    ]
    return next(line[lines[0].index(column)] for line in lines if line[0] == label)


def score_rows(rows):
    """Score rows of tuples ``(projector, seed, split, image, sentence, I, U, tokens)``."""
    columns = ["projector", "seed", "split", "image_id", "sent_id", "intersection", "union", "visual_tokens"]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(
        study="golden",
        variant="base",
        budget="auto",
        dataset="toy",
        protocol="full",
        ref_id=frame["sent_id"],
        gt_area=frame["union"],
        pred_area=frame["intersection"],
        seg_emitted=True,
        status="ok",
    )
    return frame[list(SCORE_COLUMNS)]


def golden_rows():
    """Two projectors, two seeds, two splits; every pixel count chosen by hand."""
    return score_rows(
        [
            ("one", 0, "val", 1, 1, 50, 100, 10),
            ("one", 0, "val", 1, 2, 30, 40, 10),
            ("one", 0, "val", 2, 3, 0, 60, 20),
            ("one", 1, "val", 1, 1, 100, 100, 10),
            ("one", 1, "val", 1, 2, 10, 40, 10),
            ("one", 1, "val", 2, 3, 60, 60, 20),
            ("one", 0, "testA", 3, 4, 20, 80, 30),
            ("one", 1, "testA", 3, 4, 60, 80, 30),
            ("two", 0, "val", 1, 1, 90, 100, 5),
            ("two", 0, "val", 1, 2, 40, 40, 5),
            ("two", 0, "val", 2, 3, 15, 60, 5),
            ("two", 0, "testA", 3, 4, 0, 80, 5),
        ]
    )
