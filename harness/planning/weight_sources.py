"""Where weights lie: a path, with variables and ``~``, or a name of the Hugging Face hub. No torch."""

from __future__ import annotations

from pathlib import Path

from harness.config import ConfigError, RunConfig, SuperpixelConfig
from harness.data.options import expand_root

__all__ = ["expand_source", "is_path", "local_weights", "projector_weights", "superpixel_weights"]


def expand_source(source: str, part: str) -> str:
    """A path as :func:`harness.data.options.expand_root` has it, a name of the hub as it stands.

    Raises:
        ConfigError: a variable is unset; the message names it, and the ``part`` of the models.
    """
    try:
        return str(expand_root(source)) if source.startswith("~") or "$" in source else source
    except ValueError as error:
        raise ConfigError(f"models: {part}: {error}") from error


def is_path(source: str) -> bool:
    """Whether a source can only be a path; ``meta/llama`` may be a folder too, or a name of the hub."""
    return source.startswith(("/", ".", "~")) or "$" in source


def local_weights(source: str | None) -> list[Path]:
    """Files of weights that lie in a folder; of a name of the hub, or where there are none yet, none."""
    try:
        path = expand_root(source or "")
    except ValueError:  # a variable that is not set: the plan is made without weights
        return []
    if source and path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".json"))
    return [path] if source and path.is_file() else []


def superpixel_weights(config: SuperpixelConfig | None) -> list[Path]:
    """Files of a superpixel source's own checkpoint (its option of that name), where they lie here."""
    return local_weights(config.options.get("checkpoint")) if config is not None else []


def projector_weights(run: RunConfig) -> list[Path]:
    """Files of the published weights that a run's projector starts from, where they lie here."""
    return [path for source in run.models.projector_weights.values() for path in local_weights(source)]
