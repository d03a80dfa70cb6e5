import shutil

import pytest
from checkout import Checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A checkout in which the default study was run, with stages that only write their files."""
    checkout = Checkout.at(tmp_path_factory.mktemp("finished") / "repo", fake_stages=True)
    done = checkout.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout


@pytest.fixture
def edited(finished, tmp_path):
    """A copy of the finished checkout, times kept, that a test may edit."""
    shutil.copytree(finished.path, tmp_path / "repo", symlinks=True)
    return Checkout(tmp_path / "repo")
