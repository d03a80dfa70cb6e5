"""A job's own processes end with it: killed, asked to end, or interrupted."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from checkout import ROOT

from harness.running.children import run_child

# What is started in the background of a shell without job control ignores SIGINT, and hands that on.
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from harness.running import children
children._GRACE_S = float(sys.argv[1])
sys.exit(children.run_child([sys.executable, *sys.argv[2:]]))
"""
CHILD = """
import os, pathlib, signal, time
from harness.running.children import die_with_parent
{first}
pathlib.Path(f"{{os.getpid()}}.pid").touch()
time.sleep(60)
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody may be there to reap it
    except psutil.NoSuchProcess:
        return False


def waited(test, seconds):
    end = time.monotonic() + seconds
    while not (found := test()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture
def start(tmp_path):
    """Starts a parent whose child does something first and then sleeps; it, and the pids of the sleepers."""
    started = []

    def go(first="", *words, count=1, grace=10.0):
        program = tmp_path / "child.py"
        program.write_text(CHILD.format(first=first))
        command = [sys.executable, "-c", PARENT, str(grace), *words, str(program)]
        parent = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        started.append(parent.pid)
        assert waited(lambda: len([*tmp_path.glob("*.pid")]) == count, 300), "no child was started"
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        started.extend(pids)
        return parent, pids

    yield go
    for pid in filter(alive, started):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, -2)]
)
def test_a_child_ends_with_its_parent(start, number, status):
    parent, (child,) = start()
    parent.send_signal(number)
    assert parent.wait(60) == status
    if number == signal.SIGKILL:
        assert waited(lambda: not alive(child), 60)
    else:
        assert not alive(child)  # it was waited for


def test_a_child_that_does_not_end_when_asked_is_killed(start):
    parent, (child,) = start(STUBBORN, grace=0.2)
    parent.terminate()
    assert parent.wait(60) == 143 and not alive(child)


@pytest.mark.parametrize("killed", ["the job", "torchrun"])
def test_what_torchrun_started_ends_with_the_job(start, killed):
    parent, workers = start("die_with_parent(os.getppid())", *TORCHRUN, count=2)
    psutil.Process(parent.pid if killed == "the job" else psutil.Process(workers[0]).ppid()).kill()
    assert waited(lambda: not any(map(alive, workers)), 60)


def test_a_child_tells_its_status_and_reads_its_words_whole():
    code = "import sys; sys.exit(3 if sys.argv[1:] == ['two words', '$HOME'] else 4)"
    before = signal.getsignal(signal.SIGTERM)
    assert run_child([sys.executable, "-c", code, "two words", "$HOME"]) == 3
    assert signal.getsignal(signal.SIGTERM) is before
