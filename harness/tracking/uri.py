"""Which MLflow store a study is published to. No MLflow, no pandas: the workflow plans with it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["default_uri"]


def default_uri(results: Path) -> str:
    """The store of a study that names none: ``MLFLOW_TRACKING_URI`` if http(s), else a file of results."""
    environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if urlsplit(environment).scheme in ("http", "https"):
        return environment
    return f"sqlite:///{results / 'mlflow.db'}"
