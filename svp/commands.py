"""What SVP adds to the ``svp`` program; each command imports what it needs when it runs."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from harness.commands.answer import answer

__all__ = ["attention", "bench", "superpixels"]

bench = App(name="bench", help="Measure the generator of superpixels and the parts of the projector.")


def _figures(value: dict[str, Any], out: Path | None) -> None:
    """Print a benchmark's figures, and keep them with what made them."""
    if out is not None:
        from harness.files import write_json
        from harness.reporting.snapshot import provenance_of

        write_json(out, {**provenance_of(" ".join(["svp", *sys.argv[1:]])), "figures": value})
    answer(value, as_json=True)


def _json_options(text: str, name: str = "options") -> dict[str, Any]:
    """An option of a command that holds a JSON object.

    Raises:
        ValueError: it holds none; the message shows how one is written.
    """
    example = f"""such as --{name} '{{"segments": 40}}'"""
    try:
        value = json_module.loads(text)
    except json_module.JSONDecodeError as error:
        raise ValueError(f"--{name}: {text} is no JSON ({error}); give an object, {example}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--{name}: {text} is no object; give one, {example}")
    return value


def _built(chosen: Any, given: dict[str, Any], model: Any) -> Any:
    """A superpixel source with its options.

    Raises:
        ValueError: it has no such option or cannot have such a value; one sentence.
    """
    from pydantic import ValidationError

    from harness.plugins.discovery import nearest

    known = list(chosen.Config.model_fields)
    for key in given:
        if key not in known:
            raise ValueError(f"--options: '{chosen.name}' has no option '{key}'{nearest(key, known)}")
    try:
        return chosen(chosen.Config(**given), model)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"--options: {chosen.name}: {place}: {message}") from error


def _source(name: str, options: str, sam: Path | None, kind: str, device: str | None) -> tuple[Any, Any, Any]:
    """A source's class, options and SAM; by default the default study's SAM, with that study's options."""
    from harness.plugins.discovery import load_source
    from harness.superpixels.source import open_sam

    chosen, given = load_source(name), _json_options(options)
    if device is not None and "device" in chosen.Config.model_fields:
        given.setdefault("device", device)
    if chosen.needs_sam and sam is None:
        from harness.measuring.tiny_sam import tiny_sam_and_scenes

        own = tiny_sam_and_scenes(1)
        sam, kind, given = own.folder, "tiny", own.options | given
    return chosen, given, open_sam(sam, kind, device=device) if sam is not None else None


@bench.command(name="projector")
def bench_projector_command(
    *,
    json: bool = False,
    superpixels: int = 40,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    repeats: int = 10,
    out: Path | None = None,
) -> None:
    """Time, FLOPs and parameters of each part of SVP at the paper's size.

    Args:
        json: print one JSON value (the default too).
        superpixels: an image.
        device: to measure on; by default the GPU if there is one, else the CPU.
        dtype: of features and parameters.
        repeats: timed calls.
        out: a JSON file that keeps the figures with the commit, the machine and the versions.
    """
    import torch

    from harness.superpixels.source import device_of_choice
    from svp.bench import bench_projector

    where, kind = device_of_choice(device), getattr(torch, dtype)
    _figures(bench_projector(superpixels=superpixels, device=where, dtype=kind, repeats=repeats), out)


@bench.command(name="superpixels")
def bench_superpixels_command(
    images: list[Path] | None = None,
    *,
    json: bool = False,
    sam: Path | None = None,
    kind: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny",
    scenes: int = 32,
    points_per_side: int = 32,
    options: str | None = None,
    thresholds: str | None = None,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """The exact and adaptive generators against SAM's own, on the same weights and images.

    Args:
        images: photographs or scenes; default: held-out scenes of the default study.
        json: print one JSON value (the default too).
        sam: an official checkpoint, or the folder of a tiny SAM; default: that of the default study, trained
            first if there is none.
        kind: of the checkpoint.
        scenes: where no images are named; a few are told in a minute, and leave adaptive's matched IoU
            uncertain.
        points_per_side: prompts a side; 32 is SAM's default.
        options: of the superpixels that `adaptive` is compared in, as JSON; default: the preset `svp`, for
            the default study's SAM that study's, with the predicted-IoU threshold that on as many scenes of
            its train split gives as many superpixels as that study's own prompts do: more prompts pass more
            masks.
        thresholds: of the official and the exact generator, as JSON; default: SAM's own, which a tiny SAM
            hardly passes: for the default study's SAM that study's.
        device: to measure on; by default the GPU if there is one, else the CPU.
        out: a JSON file that keeps the figures with the commit, the machine and the versions.
    """
    from harness.images import read_rgb
    from harness.plugins.discovery import load_source
    from harness.superpixels.source import open_sam
    from svp.bench import bench_superpixels, same_count

    chosen = _json_options(options) if options else {}
    cuts = _json_options(thresholds, "thresholds") if thresholds else {}
    told: dict[str, Any] = {}
    if sam is None or not images:
        from harness.measuring.tiny_sam import tiny_sam_and_scenes

        own = tiny_sam_and_scenes(scenes)
        images = images or own.scenes
        if sam is None:
            sam, kind, cut = own.folder, "tiny", "pred_iou_thresh"
            names = (cut, "stability_score_thresh")
            cuts = {k: v for k, v in own.options.items() if k in names} | cuts
            if cut not in chosen:
                asked = [read_rgb(path) for path in own.train_scenes]
                found = same_count(open_sam(sam, device=device), asked, own.options | chosen, points_per_side)
                told = {"calibrated": {"scenes": len(asked), **found}}
                chosen = own.options | chosen | {cut: found[cut]}
            chosen = own.options | chosen
    arrays = [read_rgb(path) for path in images]
    model = open_sam(sam, kind, device=device)
    _built(load_source("sam"), chosen, model)  # refuses options in a sentence
    told |= bench_superpixels(model, arrays, points_per_side=points_per_side, options=chosen, thresholds=cuts)
    _figures({**told, "sam": sam.name}, out)


@bench.command(name="calibrate")
def calibrate_command(
    images: list[Path],
    *,
    option: str = "pred_iou_thresh",
    low: float = 0.0,
    high: float = 1.0,
    count: float = 40.0,
    source: str = "sam",
    options: str = "{}",
    sam: Path | None = None,
    kind: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny",
    device: str | None = None,
) -> None:
    """Find the value of one option of a superpixel source that gives a wanted mean count.

    Args:
        images: photographs or scenes.
        option: of the source; a whole number is tried where its field is one.
        low: one end of the values tried.
        high: the other end.
        count: wanted mean; SVP reports about 40 on COCO photographs.
        source: a superpixel source.
        options: of the source, as JSON, besides ``option``.
        sam: weights, for sources that use a SAM; default: the tiny SAM of the default study, trained first
            if there is none, with that study's options where they are not given.
        kind: of the weights.
        device: of that SAM; by default the GPU if there is one, else the CPU.
    """
    from dataclasses import asdict

    from harness.images import read_rgb
    from svp.superpixels.calibration import calibrate

    chosen, given, model = _source(source, options, sam, kind, device)
    if option not in chosen.Config.model_fields:
        known = ", ".join(chosen.Config.model_fields)
        raise ValueError(f"superpixel source '{source}' has no option '{option}'; it has {known}")
    whole = "int" in str(chosen.Config.model_fields[option].annotation)

    def build(value: float) -> Any:
        return _built(chosen, given | {option: round(value) if whole else value}, model)

    pictures, embeddings = [read_rgb(path) for path in images], None
    if chosen.needs_sam:
        import torch

        with torch.inference_mode():  # encoded once, and not for each value that is tried
            embeddings = [build(low).encode(picture)[0] for picture in pictures]
    found = calibrate(build, pictures, count, low=low, high=high, embeddings=embeddings)
    answer({"option": option, **asdict(found)}, as_json=True)


def superpixels(
    image: Path,
    *,
    out: Path = Path("superpixels.png"),
    source: str = "slic",
    options: str = "{}",
    sam: Path | None = None,
    kind: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny",
    device: str | None = None,
) -> None:
    """Draw the superpixels of one photograph over it.

    Args:
        image: the photograph.
        out: the PNG to write.
        source: a superpixel source: sam, slic, felzenszwalb, grid.
        options: of the source, as JSON.
        sam: weights, for sources that use a SAM; default: the tiny SAM of the default study, trained first
            if there is none, with that study's options where they are not given.
        kind: of the weights.
        device: of that SAM; by default the GPU if there is one, else the CPU.
    """
    from svp.overlay import superpixel_overlay

    chosen, given, model = _source(source, options, sam, kind, device)
    answer(superpixel_overlay(image, _built(chosen, given, model), out), as_json=True)


def attention(
    image: Path,
    *,
    study: list[Path] | None = None,
    row: str = "svp",
    data_root: str | None = None,
    most: int = 6,
    out: Path = Path("attention.png"),
) -> None:
    """Draw where a trained SVP looks for each of the largest superpixels of a photograph (its SSA's weights).

    Args:
        image: the photograph; it is turned as its EXIF orientation says.
        study: a file of ``config/``, or several, each after a ``--study``, merged onto
            ``config/default.yaml``; it must have been run.
        row: a row of the study with an SSA, as of ``svp segment``; its first seed.
        data_root: folder of the raw data that it was run with, in place of the study's.
        most: superpixels to draw, side by side.
        out: the PNG to write.
    """
    from PIL import Image

    from harness.files import atomic_path
    from harness.images import read_rgb
    from harness.planning.plan import Plan
    from harness.segmentation import Segmenter
    from svp.overlay import attention_overlay
    from svp.projector import SVP

    plan = Plan.named(study, data_root)
    segmenter = Segmenter(plan, plan.run_named(row))
    pixels = read_rgb(image, upright=True)
    seen, projector = segmenter.read(pixels), segmenter.projector
    if not isinstance(projector, SVP):
        raise ValueError(f"{row} has no SSA; name a row of svp")
    drawn = attention_overlay(pixels, seen, projector, most)
    with atomic_path(out) as aside:
        Image.fromarray(drawn).save(aside, format="PNG")
    count = len(seen.superpixels.masks) if seen.superpixels is not None else 0
    answer({"superpixels": count, "drawn": min(most, count), "out": str(out)}, as_json=True)
