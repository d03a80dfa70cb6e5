"""What this repository ships: a user's own projectors and studies beside it are no business of its tests."""

import subprocess
from functools import cache
from pathlib import Path

from harness.plugins.discovery import ProjectorInfo, find_projectors

ROOT = Path(__file__).resolve().parents[2]


@cache
def _tracked() -> frozenset[Path] | None:
    """Every file that git knows; ``None`` where there is no git or no repository."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return frozenset(ROOT / name for name in listed.stdout.split("\0") if name)


def is_shipped(path: Path) -> bool:
    """Whether a file is the repository's own; every file is where git does not say."""
    tracked = _tracked()
    return not tracked or path.resolve() in tracked


def shipped_projectors() -> dict[str, ProjectorInfo]:
    """Every projector and control that the repository ships, by name."""
    return {name: info for name, info in find_projectors().items() if is_shipped(info.path)}
