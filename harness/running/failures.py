"""What helps where a job fails of what no check foresees: memory, disk, a loss that is no number."""

from __future__ import annotations

import errno

__all__ = ["explained"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(error: BaseException) -> str | None:
    """One sentence with what failed and what helps; ``None`` where the error's own words must do."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported for a name
        helps = (
            "the GPU's memory is full: lower training.images_per_forward, set "
            "training.gradient_checkpointing, or share the frozen weights out (training.processes, "
            "training.strategy: fsdp)"
        )
    elif isinstance(error, OSError) and error.errno in _FULL:
        helps = (
            "the disk is full: make room, or let `results` lie on another disk, or lower "
            "models.features.budget_gb; then run again, it goes on"
        )
    elif isinstance(error, FloatingPointError):
        helps = "training diverged: lower training.learning_rate, or set training.dtype: float32"
    else:
        return None
    return f"{str(error).splitlines()[0].rstrip('.')}; {helps}"
