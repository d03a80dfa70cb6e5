"""Failures that no check foresees say what helps."""

import errno
import os

import pytest
import torch

from harness import cli
from harness.running.failures import explained


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "images_per_forward"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/x"), "lie on another disk"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "budget_gb"),
        (FloatingPointError("mlp: the loss is nan at stage 1, step 3"), "training.learning_rate"),
    ],
)
def test_a_job_that_fails_so_says_what_helps(monkeypatch, capsys, tmp_path, error, helps):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, "run_stage", fail)
    monkeypatch.setattr("sys.argv", ["svp", "stage", "train", "--config", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    *_, last = said.strip().splitlines()
    first = str(error).splitlines()[0].rstrip(".")
    assert last.startswith(f"svp: {first}; ") and helps in last
    assert said.startswith("Traceback")


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.EACCES, "no"), RuntimeError("no")])
def test_other_errors_keep_their_own_words(error):
    assert explained(error) is None
