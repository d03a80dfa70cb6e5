"""``svp segment``: a finished row on a photograph of one's own."""

from __future__ import annotations

from pathlib import Path

from harness.commands.answer import answer

__all__ = ["segment"]


def _share(area: float) -> str:
    return f"{100 * area:.1f} % of the image" if area else "an empty mask"


def segment(
    image: Path,
    expressions: tuple[str, ...],
    *,
    study: list[Path] | None = None,
    row: str = "svp",
    data_root: str | None = None,
    out: Path = Path("segment.png"),
    json: bool = False,
) -> None:
    """Segment what each expression means in a photograph, with a trained row of a finished study.

    Args:
        image: the photograph; it is turned as its EXIF orientation says.
        expressions: such as "the left cup"; several share one reading of the photograph.
        study: a file of ``config/``, or several, each after a ``--study``, merged onto
            ``config/default.yaml``; it must have been run.
        row: a row of the study by projector, ``projector.variant``, ``projector.variant.budget`` or run id;
            its first seed.
        data_root: folder of the raw data that it was run with, in place of the study's.
        out: the picture to write, PNG; a PDF is written beside it.
        json: print one JSON value, with the masks as RLE.
    """
    from harness.images import read_rgb
    from harness.planning.plan import Plan
    from harness.prediction import encode_mask
    from harness.segmentation import Segmenter, draw

    if not image.is_file():
        raise ValueError(f"there is no photograph {image}")
    plan = Plan.named(study, data_root)
    pixels = read_rgb(image, upright=True)
    found = Segmenter(plan, plan.run_named(row))(pixels, expressions)
    paths = draw(pixels, expressions, found, out)
    told = [
        {
            "expression": text,
            "area": float(mask.mean()),
            "visual_tokens": tokens,
            "seg_emitted": said,
            "rle": {"size": list(mask.shape), "counts": encode_mask(mask)},
        }
        for text, mask, tokens, said in zip(
            expressions, found.masks, found.visual_tokens, found.emitted, strict=True
        )
    ]
    value = {"masks": told, "out": [str(path) for path in paths]}
    lines = [
        f"{t['expression']}: {_share(t['area'])}, by {t['visual_tokens']} visual tokens"  # type: ignore[arg-type]
        for t in told
    ]
    text = "\n".join([*lines, f"drawn in {paths[0]}"])
    answer(value, json, text)
