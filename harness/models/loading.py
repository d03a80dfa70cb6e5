"""Weights through ``from_pretrained``, with everything that was not found or not used spoken of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load_strictly"]


def load_strictly(model_class: Any, source: Path | str, **options: Any) -> Any:
    """``model_class.from_pretrained(source)``, refused where transformers would fill in random weights.

    Weights in the file that the model has no place for are left alone: another tower, an optimiser's.

    Raises:
        OSError: nothing there that transformers can load; the message is its own.
        ValueError: a weight of the model is missing from the file, or of another shape.
    """
    model, found = model_class.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(found["missing_keys"])
    mismatched = sorted(str(key) for key in found.get("mismatched_keys", ()))
    if missing or mismatched:
        named = ", ".join([*missing, *mismatched][:3])
        raise ValueError(
            f"{source} does not hold a whole {type(model).__name__}: {len(missing)} weights missing, "
            f"{len(mismatched)} of another shape ({named}); fetch it again, or name the right model"
        )
    return model
