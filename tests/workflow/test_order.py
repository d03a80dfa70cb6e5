"""No job starts before what its stage opens is there, whichever of those that are ready starts first."""

import json
import re

from checkout import Checkout
from config_files import planned
from opened_files import STUDY, OpenedFiles


def inputs(checkout):
    """Inputs of each job of a study of which nothing is there, by every file that it writes."""
    (checkout.path / "study.yaml").write_text(json.dumps(STUDY))
    done = checkout.snakemake("--configfile", "study.yaml", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for reason in re.findall(r"^Reason: (.*)", done.stdout + done.stderr, re.M):
        told = {kind: {*files.split(", ")} for kind, files in re.findall(r"([A-Z][^:;]+): ([^;]+)", reason)}
        for made in told["Missing output files"]:
            found[made] = told.get("Input files updated by another job", set())
    return found


def upstream(made, direct, seen):
    for file in direct[made] - seen:
        seen.add(file)
        upstream(file, direct, seen)
    return seen


def test_every_job_comes_after_all_that_its_stage_opens(tmp_path):
    direct = inputs(Checkout.at(tmp_path / "repo"))
    opened = OpenedFiles(planned(**STUDY)).by
    assert opened.keys() <= direct.keys()
    early = {made: files - upstream(made, direct, set()) for made, files in opened.items()}
    assert not {made: files for made, files in early.items() if files}
