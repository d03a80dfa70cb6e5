"""What the shared artefacts of a run are called, and what each depends on. No torch.

Data, pretrained tiny models, superpixels and frozen features are named by a hash of exactly what
they depend on, so that studies share them and nothing stale is ever picked up. ``*_spec`` is what
is hashed; the key is ``<kind>-<hash>``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, cached_property
from typing import Any, Literal

from pydantic import BaseModel

from harness.config import FEATURE_ITEMS, RunConfig
from harness.data.options import SyntheticData
from harness.files import digest

__all__ = ["PARTS", "Keys", "SharedStage", "is_pretrained", "part_of", "pretrained", "source_of"]

SharedStage = Literal["pool", "prepare", "pretrain", "features", "superpixels"]

# In the order in which the workflow trains them: the start stands on the language model and SAM.
PARTS = ("vision", "language", "sam", "start")


def source_of(run: RunConfig, part: str) -> str | None:
    """What the study says of where a run's ``vision``, ``language``, ``sam`` or ``start`` comes from."""
    value = getattr(run.models, part)
    return value if part == "start" else value.source


def is_pretrained(run: RunConfig, part: str) -> bool:
    """Whether the workflow itself trains a run's ``vision``, ``language``, ``sam`` or ``start``."""
    return source_of(run, part) == "pretrained"


def pretrained(run: RunConfig) -> list[str]:
    """Which of a run's models the workflow trains itself."""
    return [part for part in PARTS if is_pretrained(run, part)]


def part_of(key: str) -> str:
    """What a shared artefact's key stands for: ``vision``, ``sam``, ``patches``, … before its hash."""
    return key.rsplit("-", 1)[0]


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


class Keys:
    """Keys of one run's artefacts, each worked out once: a plan asks for the same ones thousands of times.

    Attributes:
        run: the run; changing it afterwards changes no key.
    """

    def __init__(self, run: RunConfig):
        """Of ``run``."""
        self.run = run
        self.model = cache(self._model)
        self.feature = cache(self._feature)
        self._known: dict[Hashable, str] = {}

    def once(self, name: Hashable, compute: Callable[[], str]) -> str:
        """What ``compute`` makes of the run, kept under ``name``."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    @cached_property
    def data_spec(self) -> dict[str, Any]:
        """What the prepared data depends on."""
        return _plain(self.run.data)

    @cached_property
    def data(self) -> str:
        """The prepared data."""
        return f"{self.run.data.kind}-{digest(self.data_spec)}"

    @cached_property
    def pool_options(self) -> SyntheticData:
        """The synthetic data whose pool the tiny models are pretrained on.

        That of the study's own data; a study of real data takes the default one.
        """
        data = self.run.data if isinstance(self.run.data, SyntheticData) else SyntheticData()
        pool, pretrain = data.pool_only(), self.run.models.pretrain
        domain = pretrain.pool_domain if pretrain is not None else None
        return pool if domain is None else pool.model_copy(update={"domain": domain})

    @cached_property
    def pool_spec(self) -> dict[str, Any]:
        """What the pretraining pool depends on."""
        return _plain(self.pool_options)

    @cached_property
    def pool(self) -> str:
        """The data that holds the pretraining pool."""
        return f"pool-{digest(self.pool_spec)}"

    def pretrain_spec(self, part: str) -> dict[str, Any]:
        """What one tiny model, one of :data:`PARTS`, depends on."""
        models = self.run.models
        assert models.pretrain is not None
        common = ("seed", "batch", "learning_rate", "torch_threads")
        recipe = _plain(models.pretrain)
        values = {k: v for k, v in recipe.items() if k.startswith(f"{part}_") or k in common}
        if part in ("vision", "sam"):
            values["patch_size"], values["image_size"] = models.vision.patch_size, models.vision.image_size
        if part == "vision":
            values["kind"] = models.vision.kind
        if part == "start":
            values |= {name: self.model(name) for name in ("language", "sam")}
            training = _plain(self.run.training)
            values |= {k: training[k] for k in ("expressions_per_image", "bce_weight", "dice_weight")}
        return {"pool": self.pool_spec, "part": part, **values}

    def _model(self, part: str) -> str:
        """The vision encoder, language model, SAM or pretrained start."""
        if part == "start" or is_pretrained(self.run, part):
            return f"{part}-{digest(self.pretrain_spec(part))}"
        config = getattr(self.run.models, part)
        return f"{part}-{digest({'source': config.source, 'kind': getattr(config, 'kind', '')})}"

    @cached_property
    def superpixel_spec(self) -> dict[str, Any] | None:
        """What the superpixels depend on; ``None`` for a run without."""
        config = self.run.superpixels
        if config is None:
            return None
        features = self.run.models.features
        return {
            **_plain(config),
            "data": self.data,
            "grid": list(self.run.models.vision.grid),
            "sam": self.model("sam") if config.uses_sam else None,
            # Masks are decoded from the cached embedding.
            "embedding": [features.dtype, features.compute] if config.uses_sam else None,
        }

    @cached_property
    def superpixels(self) -> str | None:
        """The superpixels; ``None`` for a run without."""
        spec = self.superpixel_spec
        return None if spec is None else f"{spec['source']}-{digest(spec)}"

    @cached_property
    def feature_items(self) -> tuple[str, ...]:
        """The cached arrays that the run reads."""
        needs = self.run.needs
        extras = (n for n in FEATURE_ITEMS if n in needs and n not in ("patches", "sam"))
        return ("patches", "sam", *extras)

    def feature_spec(self, item: str) -> dict[str, Any]:
        """What one cached array depends on; ``item`` is one of :attr:`feature_items`."""
        features, vision = self.run.models.features, self.run.models.vision
        cached = {"dtype": features.dtype, "compute": features.compute, "gb": features.budget_gb.get(item)}
        common = {"item": item, "data": self.data, **cached}
        if item == "sam":
            return {**common, "model": self.model("sam")}
        spec: dict[str, Any] = {
            **common,
            "model": self.model("vision"),
            "layer": -1 if item in ("last_cls_attention", "last_keys") else vision.layer,
            "levels": list(vision.levels) if item == "levels" else None,
            "image_size": vision.image_size,
        }
        if item in ("keys", "last_keys"):
            # Arrays of keys without a split into heads have a key of their own.
            spec["layout"] = "heads, n, d / heads"
        if item == "encoder_tokens":
            # What the encoder gives under a hook is the projector's own: nobody else reads it.
            spec["hook"] = {"source": self.run.source, "config": self.run.config, "budget": self.run.budget}
        return spec

    def _feature(self, item: str) -> str:
        """One cached array."""
        return f"{item}-{digest(self.feature_spec(item))}"

    @cached_property
    def stages(self) -> tuple[tuple[SharedStage, str], ...]:
        """Stage and key of every shared artefact that training of the run stands on, in working order."""
        parts = pretrained(self.run)
        steps: list[tuple[SharedStage, str]] = [("pool", self.pool)] if parts else []
        steps.append(("prepare", self.data))
        steps += [("pretrain", self.model(part)) for part in parts]
        steps += [("features", self.feature(item)) for item in self.feature_items]
        if self.superpixels is not None:
            steps.append(("superpixels", self.superpixels))
        return tuple(steps)
