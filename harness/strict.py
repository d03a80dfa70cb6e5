"""The base of every config block: a misspelt key is refused with the nearest right name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from harness.plugins.discovery import nearest

__all__ = ["Strict"]


class Strict(BaseModel):
    """Frozen, and unknown keys are refused with the nearest right name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{nearest(str(key), list(cls.model_fields))}")
        return value
