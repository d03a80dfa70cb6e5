"""What studies, rows and their numbers may be called and hold; the error that refuses the rest."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["AtLeastOne", "ConfigError", "Name", "Rate", "Steps", "StudyName", "checked_name", "study_name"]


class ConfigError(ValueError):
    """A config that cannot be run; one sentence, naming the key and the mend."""


def checked_name(name: str, *, dots: bool = False) -> str:
    """``name`` as it is, if files and rows can be called so; ``dots``: whether it may hold dots too.

    Raises:
        ValueError: it cannot; the message says what is allowed.
    """
    # It stands in paths, shell lines and Snakemake's patterns, and dots part `projector.variant.budget`.
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_{'.' if dots else ''}+-]*", name):
        signs = f"letters, digits, '_', '+'{', dots' if dots else ''} and '-', a letter or a digit first"
        raise ValueError(f"'{name}' cannot be a name; take {signs}")
    return name


# What `results/` holds beside studies.
_TAKEN = ("efficiency", "mlflow.db", "published", "reference", "shared")


def study_name(name: str) -> str:
    """``name`` as it is, if a study can be called so (see :func:`checked_name`; dots too).

    Raises:
        ValueError: it cannot; the message says what is allowed.
    """
    if name in _TAKEN:
        raise ValueError(f"'{name}' is a folder of results that is no study's; take another name")
    return checked_name(name, dots=True)


Name = Annotated[str, AfterValidator(checked_name)]
StudyName = Annotated[str, AfterValidator(study_name)]

Steps = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
