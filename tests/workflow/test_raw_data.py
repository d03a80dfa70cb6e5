"""Annotation files that are fetched again are prepared again, and all that follows."""

import pytest
from checkout import Checkout


@pytest.fixture
def prepared(tmp_path):
    """A run over made-up annotation files; stages only write their files."""
    checkout = Checkout.at(tmp_path / "repo", fake_stages=True)
    root = tmp_path / "raw"
    for dataset in ("refcoco", "refcoco+", "refcocog"):
        (root / dataset).mkdir(parents=True)
        for name in ("refs(unc).p", "refs(umd).p", "instances.json"):
            (root / dataset / name).write_text(dataset + name)
    (root / "images").mkdir()
    return checkout, root


def test_fetched_again_they_are_prepared_again(prepared):
    checkout, root = prepared
    study = ("--configfile", "config/real_sample.yaml", "--config", f"data_root={root}", "rows=[mlp]")
    done = checkout.snakemake(*study)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkout.planned(*study) == set()
    (root / "refcoco" / "refs(unc).p").touch()  # moved or copied, but the same
    assert checkout.planned(*study) == set()
    (root / "refcoco" / "refs(unc).p").write_text("a newer release")
    assert {job.split("-")[0].split()[0] for job in checkout.planned(*study)} >= {
        "prepare",
        "features",
        "train",
    }
