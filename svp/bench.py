"""What the parts of SVP cost: mask generation against SAM's own generator, and the projector by part."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm import tqdm

from harness.measuring.clocks import count_flops, timed
from harness.models.sam import sam_frame
from harness.projector import ImageFeatures, Interface, Superpixels
from svp.pooling import pool, smallest_owner
from svp.projector import SVP, WITHOUT_SSPE
from svp.ssa import own_embedding
from svp.superpixels.calibration import calibrate
from svp.superpixels.sam import SamSuperpixels

__all__ = ["bench_projector", "bench_superpixels", "matched_iou", "same_count"]

_SAME = 0.99  # an exact mask may differ from the official one in pixels that rounding moves over the cut


def matched_iou(first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
    """Agreement of two sets of masks ``[A, P]`` and ``[B, P]`` (bool), matched one to one.

    Returns:
        The mean IoU over the larger set, so that an unmatched mask on either side counts 0 (1 if both
        are empty), and the IoU of each matched pair ``[min(A, B)]``.
    """
    if not len(first) or not len(second):
        return float(len(first) == len(second)), np.zeros(0)
    one, other = first.astype(np.float32), second.astype(np.float32)
    shared = one @ other.T
    iou = shared / (one.sum(1)[:, None] + other.sum(1)[None] - shared)
    pairs = iou[linear_sum_assignment(-iou)]
    return float(pairs.sum() / max(len(first), len(second))), pairs


class _EmbeddedPredictor(SamPredictor):
    """SAM's predictor with the image already encoded, so that the official clock starts there too."""

    def __init__(self, sam: Sam, embedding: Tensor):
        super().__init__(sam)
        self._embedding = embedding

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Take the embedding in place of encoding ``image``."""
        self.reset_image()
        self.original_size = image.shape[:2]
        height, width = self.original_size
        self.input_size = sam_frame(height, width, self.model.image_encoder.img_size)
        self.features, self.is_image_set = self._embedding, True


def _official(
    sam: Sam, image: np.ndarray, embedding: Tensor, points: int, thresholds: dict[str, float]
) -> np.ndarray:
    generator = SamAutomaticMaskGenerator(sam, points_per_side=points, **thresholds)
    generator.predictor = _EmbeddedPredictor(sam, embedding)
    found = [record["segmentation"] for record in generator.generate(image)]
    return np.array(found, bool).reshape(len(found), *image.shape[:2])


def _flat(masks: np.ndarray) -> np.ndarray:
    """``[M, H * W]``."""
    return masks.reshape(len(masks), masks.shape[1] * masks.shape[2])


def same_count(
    sam: Sam, images: Sequence[np.ndarray], options: dict[str, Any], points_per_side: int
) -> dict[str, float]:
    """The predicted-IoU threshold at which ``points_per_side`` gives as many superpixels as ``options`` do.

    More prompts pass more masks, so a threshold holds for its number of prompts only.

    Args:
        sam: in eval mode.
        images: ``[H, W, 3]`` uint8 each, none of those that are measured.
        options: of the ``sam`` source, its own prompts and threshold among them.
        points_per_side: of the grid to calibrate.

    Returns:
        ``pred_iou_thresh``, the mean count wanted, and the mean count found.
    """

    def source(**changes: Any) -> SamSuperpixels:
        return SamSuperpixels(SamSuperpixels.Config(**options | changes), sam)

    own = source()
    with torch.inference_mode():
        embeddings = [own.encode(image)[0] for image in images]
    pairs = list(zip(images, embeddings, strict=True))
    wanted = statistics.fmean(len(own.generate(i, sam_embedding=e).masks) for i, e in pairs)
    found = calibrate(
        lambda value: source(points_per_side=points_per_side, pred_iou_thresh=value),
        images,
        max(wanted, 1),
        low=0.0,
        high=1.0,
        steps=8,
        embeddings=embeddings,
    )
    return {"pred_iou_thresh": found.value, "wanted_count": wanted, "mean_count": found.mean_count}


def _standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


# cuDNN rounds the factors of float32 convolutions to TF32 by default: exact would be asked of 10 bits
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def bench_superpixels(
    sam: Sam,
    images: Sequence[np.ndarray],
    *,
    points_per_side: int = 32,
    points_per_batch: int = 256,
    options: dict[str, Any] | None = None,
    thresholds: dict[str, float] | None = None,
    warm_up: int = 1,
) -> dict[str, Any]:
    """The exact and the adaptive generator against ``SamAutomaticMaskGenerator`` with its own defaults.

    All clocks run from the image embedding to masks at image resolution; encoding is timed apart. *exact*
    runs the official default settings and must find the official masks. *adaptive* is compared in what it
    is made for, the final superpixels of ``options``, with the same on the full grid; it is handed
    ``adaptive_images`` of its options at once. Its speed is given against the official generator; against
    that at adaptive's own thresholds (``same_gate``), as each mask that passes costs time; against *exact* at
    ``options`` on the full grid; and against itself with one image at a time.

    Args:
        sam: in eval mode, on the device to measure.
        images: ``[H, W, 3]`` uint8 each.
        points_per_side: prompts a side, on every side of the comparison (32 is the official default).
        points_per_batch: of the exact and adaptive generators; the official one keeps its 64.
        options: of the ``sam`` source for the adaptive comparison; default: the ``svp`` preset.
        thresholds: ``pred_iou_thresh`` and ``stability_score_thresh`` of the official and the exact
            generator, where a model is too small to pass the official ones; they are printed.
        warm_up: untimed rounds over the images that adaptive is handed first.

    Returns:
        Times are totals in seconds; ratios are of totals over all images. Images differ more in how well
        *adaptive* does than in its speed: its matched IoU comes with the standard error of the mean (None
        for one image).
    """
    shared: dict[str, Any] = {"points_per_side": points_per_side, "points_per_batch": points_per_batch}
    chosen = (options or {}) | shared
    gates = ("pred_iou_thresh", "stability_score_thresh")
    cuts = thresholds or {}
    for name in cuts:
        if name not in gates:
            raise ValueError(f"--thresholds: '{name}' is none of {' and '.join(gates)}")
    exact = SamSuperpixels(SamSuperpixels.Config(preset="official_default", **shared | cuts), sam)
    on_grid = {"engine": "exact", "compute": "float32"}
    full = SamSuperpixels(SamSuperpixels.Config(**chosen | on_grid), sam)
    adaptive = SamSuperpixels(SamSuperpixels.Config(**chosen | {"engine": "adaptive"}), sam)
    if adaptive.settings.crop_n_layers:
        raise ValueError(
            "bench superpixels starts its clocks at the image's embedding, and crops are encoded behind it; "
            "set crop_n_layers: 0 in --options"
        )
    device = torch.device(sam.device)
    own_gate = {name: getattr(adaptive.settings, name) for name in gates}
    names = ("encode", "official", "official_same_gate", "exact", "full", "adaptive", "adaptive_one_by_one")
    seconds = dict.fromkeys(names, 0.0)
    counts = {"official": 0, "missing": 0, "added": 0, "full": 0, "adaptive": 0}
    exact_ious, adaptive_ious, asked = [], [], 0
    step = adaptive.images_at_once
    groups = [images[start : start + step] for start in range(0, len(images), step)]
    groups = groups[:1] * warm_up + groups
    progress = tqdm(total=sum(map(len, groups)), desc="bench superpixels", unit="image")
    for number, group in enumerate(groups):
        times, embeddings, grids, masks = dict.fromkeys(seconds, 0.0), [], [], []
        for image in group:
            with torch.inference_mode():
                taken, embedding = timed(partial(full.encode, image), device)
            times["encode"] += taken
            embeddings.append(embedding[0])
            ask_official = partial(_official, sam, image, embedding, points_per_side, cuts)
            taken, official = timed(ask_official, device)
            times["official"] += taken
            ask_same = partial(_official, sam, image, embedding, points_per_side, own_gate)
            times["official_same_gate"] += timed(ask_same, device)[0]
            found = {}
            for name, source in (("exact", exact), ("full", full), ("adaptive_one_by_one", adaptive)):
                taken, made = timed(partial(source.generate, image, sam_embedding=embedding[0]), device)
                times[name] += taken
                found[name] = _flat(made.masks)
            grids.append(found["full"])
            masks.append((_flat(official), found["exact"]))
            progress.update()
        before = adaptive.prompts_asked
        ask_all = partial(adaptive.generate_all, group, sam_embeddings=embeddings)
        times["adaptive"], together = timed(ask_all, device)
        if number < warm_up:
            continue
        asked += adaptive.prompts_asked - before
        for name, value in times.items():
            seconds[name] += value
        for one, other in masks:
            agreement, pairs = matched_iou(one, other)
            same = int((pairs >= _SAME).sum())
            counts["official"] += len(one)
            counts["missing"] += len(one) - same
            counts["added"] += len(other) - same
            exact_ious.append(agreement)
        for grid, made in zip(grids, together, strict=True):
            adaptive_ious.append(matched_iou(grid, _flat(made.masks))[0])
            counts["full"] += len(grid)
            counts["adaptive"] += len(made.masks)
    progress.close()
    return {
        "exact_speedup": seconds["official"] / seconds["exact"],
        "exact_matched_iou": statistics.fmean(exact_ious),
        "exact_missing": counts["missing"],
        "exact_added": counts["added"],
        "adaptive_speedup": seconds["official"] / seconds["adaptive"],
        "adaptive_speedup_same_gate": seconds["official_same_gate"] / seconds["adaptive"],
        "adaptive_speedup_over_full": seconds["full"] / seconds["adaptive"],
        "adaptive_speedup_over_one_by_one": seconds["adaptive_one_by_one"] / seconds["adaptive"],
        "adaptive_prompt_share": asked / (points_per_side**2 * len(images)),
        "adaptive_matched_iou": statistics.fmean(adaptive_ious),
        "adaptive_matched_iou_standard_error": _standard_error(adaptive_ious),
        "official_masks": counts["official"],
        "full_superpixels": counts["full"],
        "adaptive_superpixels": counts["adaptive"],
        "seconds": seconds,
        "images": len(images),
        "adaptive_images": step,
        "adaptive_compute": adaptive.config.compute,
        "prompts": points_per_side**2,
        "official_thresholds": cuts or "its own defaults",
        "options": chosen,
        "points_per_batch": {"official": 64, "ours": points_per_batch},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(next(sam.parameters()).dtype).removeprefix("torch."),
    }


def _scene(batch: int, interface: Interface, superpixels: int, device: torch.device, dtype: torch.dtype):
    """Random features with ``superpixels`` random rectangles an image."""
    generator = torch.Generator().manual_seed(0)
    (h, w), n, count = interface.grid, interface.patch_count, batch * superpixels
    occupancy = torch.zeros(count, h, w)
    for mask in occupancy:
        y, x = (int(torch.randint(0, side - 2, (), generator=generator)) for side in (h, w))
        mask[y : y + h // 4, x : x + w // 4] = 1
    flat = occupancy.flatten(1)
    boxes = torch.rand(count, 4, generator=generator)
    pixels = Superpixels(
        flat,
        flat / flat.sum(dim=1, keepdim=True),
        boxes,
        flat.mean(dim=1),
        torch.full((batch,), superpixels),
    ).to(device, dtype)
    patches = torch.randn(batch, n, interface.vision_width, generator=generator).to(device, dtype)
    return ImageFeatures(patches, interface.grid, superpixels=pixels)


def _analytic(batch: int, superpixels: int, interface: Interface, options: SVP.Config) -> dict[str, float]:
    """Multiply-adds times two of the matrix products of each part, from the shapes alone."""
    n, d, width = interface.patch_count, interface.vision_width, interface.language_width
    count, inner, q = batch * superpixels, options.sspe_width or d, options.sspe_queries
    attention = d if options.ssa not in WITHOUT_SSPE else 0
    embed = n * 4 * math.ceil(inner / 4) * inner
    block = n * 2 * inner**2  # keys and values, once for all superpixels
    first = q * 5 * inner**2 + count * q * (1 + 2 * options.sspe_mlp_ratio) * inner**2
    other = count * q * (6 + 2 * options.sspe_mlp_ratio) * inner**2
    # before the first cross-attention the queries are the same for all superpixels
    looks = q * n * inner + count * q * n * inner + (options.sspe_blocks - 1) * 2 * count * q * n * inner
    confer = 2 * q * q * inner * (1 + (options.sspe_blocks - 1) * count)
    sspe = embed + options.sspe_blocks * block + first + (options.sspe_blocks - 1) * other + looks + confer
    return {
        "pool": 2.0 * count * n * d,
        "sspe": 2.0 * sspe + 2.0 * count * q * inner * (width + attention),
        "ssa": 2.0 * (count * d * d * 2 + 2 * batch * n * d * d + 2 * count * n * d + 8 * count * d * d),
        "mlp": 2.0 * count * (d * width + width * width),
    }


def bench_projector(
    *,
    batches: Sequence[int] = (1, 8),
    superpixels: int = 40,
    grid: tuple[int, int] = (24, 24),
    vision_width: int = 1024,
    language_width: int = 4096,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    repeats: int = 10,
) -> dict[str, Any]:
    """Time, FLOPs and parameters of each part of SVP; the defaults are the paper's size.

    Args:
        batches: images at once.
        superpixels: an image.
        grid: patch grid (576 patches).
        vision_width: ``d``.
        language_width: ``H``.
        options: of the projector.
        device: to measure on.
        dtype: of features and parameters.
        repeats: timed calls after two untimed ones; the median counts.

    Returns:
        ``{"parameters": {part: count}, "batches": {batch: {part: {median_ms, flops, analytic_flops}}}}``
        with the parts ``pool``, ``sspe``, ``ssa``, ``mlp`` and ``all``.
    """
    interface = Interface(vision_width, language_width, grid)
    config = SVP.Config(**(options or {}))
    projector, place = SVP(interface, config).to(device, dtype).eval(), torch.device(device)
    parts: dict[str, Any] = {"sspe": projector.sspe, "ssa": projector.ssa, "mlp": projector.mlp}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part}
    result: dict[str, Any] = {"parameters": counts | {"all": sum(p.numel() for p in projector.parameters())}}
    measured: dict[int, dict[str, Any]] = {}
    for batch in batches:
        image = _scene(batch, interface, superpixels, place, dtype)
        analytic = _analytic(batch, superpixels, interface, config)
        analytic["all"] = sum(analytic[name] for name in ("pool", *counts))
        measured[batch] = {}
        with torch.no_grad():
            for name, call in _parts(projector, image).items():
                for _ in range(2):
                    call()
                times = [timed(call, place)[0] for _ in range(repeats)]
                measured[batch][name] = {
                    "median_ms": 1e3 * statistics.median(times),
                    "flops": count_flops(call),
                    "analytic_flops": analytic[name],
                }
    shape = {"patches": interface.patch_count, "vision_width": vision_width, "language_width": language_width}
    return result | {"batches": measured, "superpixels": superpixels, "device": device} | shape


def _parts(projector: SVP, image: ImageFeatures) -> dict[str, Callable[[], Any]]:
    pixels, options = image.superpixels, projector.config
    if pixels is None or not isinstance(options, SVP.Config):
        raise TypeError("the benchmark needs superpixels and SVP's own options")
    calls: dict[str, Callable[[], Any]] = {"pool": lambda: pool(image.patches, pixels, options.pooling)}
    coarse, queries, keys = pool(image.patches, pixels, options.pooling), None, None
    if projector.sspe is not None:
        head = projector.sspe

        def encode() -> tuple[Tensor, Tensor | None]:
            shape = head(pixels, image.grid)
            return head.to_language(shape), head.to_attention(shape) if head.to_attention else None

        calls["sspe"], queries = encode, encode()[1]
        keys = own_embedding(queries, smallest_owner(pixels)) if queries is not None else None
    if projector.ssa is not None:
        attention = projector.ssa
        calls["ssa"] = lambda: attention(coarse, image.patches, pixels.lengths, queries, keys)
    return calls | {"mlp": lambda: projector.mlp(coarse), "all": lambda: projector(image)}
