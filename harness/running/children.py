"""Starts a program that does not outlive this process. No torch.

Nothing of a killed job may write beside its successor: the kernel ends the child with its parent (Linux),
and a parent that is asked to end ends its child first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["die_with_parent", "run_child"]

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_GRACE_S = 10


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when ``parent`` ends, however it ends.

    It holds through ``exec``, not for children of this process. Other systems than Linux cannot do it.

    Args:
        parent: the process id that started this one; where that is gone already, this process ends.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(128 + signal.SIGTERM)


def run_child(command: Sequence[str]) -> int:
    """Run a command and wait for it; it ends with this process, killed or not.

    Args:
        command: the program's path and its words.

    Returns:
        Its exit status.
    """
    # A program that then becomes the command: code between fork and exec may hang in a process with threads.
    with _sigterm_raises():
        child = subprocess.Popen([sys.executable, "-I", "-S", __file__, str(os.getpid()), *command])
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this process as an exception does, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set a handler
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _main(parent: str, *command: str) -> None:
    die_with_parent(int(parent))
    os.execv(command[0], command)


if __name__ == "__main__":
    _main(*sys.argv[1:])
