"""What a study's start leaves on record: who holds Snakemake's lock, and the code that runs. No torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from harness.files import write_json
from harness.planning.plan import Plan

__all__ = ["LOCK_HOLDER", "code_state", "forget_holder", "git", "record_start"]

# The host and process that hold the lock.
LOCK_HOLDER = Path(".snakemake") / "svp-run.json"
# A snapshot writes these itself; no run reads them.
_WRITTEN = (":!results", ":!README.md")


def git(*words: str) -> str:
    """What git says, or ``unknown`` where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def code_state() -> dict[str, Any]:
    """``commit``, and whether there are ``uncommitted_changes``: with files that git knows nothing of."""
    changes = git("status", "--porcelain", "--", ".", *_WRITTEN)
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def record_start(plan: Plan) -> None:
    """Write who holds the lock, and ``started.json`` of the study: its snapshot may be taken much later."""
    write_json(LOCK_HOLDER, {"host": os.uname().nodename, "pid": os.getpid()})
    write_json(plan.started_file, code_state())


def forget_holder() -> None:
    """The lock is given back."""
    LOCK_HOLDER.unlink(missing_ok=True)
