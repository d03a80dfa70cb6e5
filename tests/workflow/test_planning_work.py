"""What planning costs: work that grows with the rows, counted (a clock proves nothing); a bench times it."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.cli import app
from harness.config import ConfigError
from harness.config.resolve import read_study
from harness.measuring import planning
from harness.planning import triggers
from harness.planning.plan import Plan
from harness.training import trained

HARNESS = str(Path(planning.__file__).parents[1])
STUDY = [Path("config/paper.yaml"), Path("config/studies/main.yaml")]


def calls_to_plan(plan):
    """Calls of functions of the harness that the jobs' inputs and parameters take, as Snakemake asks them."""
    counted = Counter()

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(HARNESS):
            counted[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        for _ in range(2):
            for run in plan.trainable.values():
                plan.run_inputs(run)
                for stage in (1, 2):
                    trained.twin_weights(plan, run, stage)
                    triggers.train_trigger(plan, run, stage)
    finally:
        sys.setprofile(None)
    return counted


def test_the_work_grows_with_the_rows_not_with_their_square():
    raw = read_study(STUDY)
    sizes, work = [], []
    # the first only reads the code, which is hashed once a process
    for seeds in ([1], [1], [1, 2, 3, 4, 5, 6]):
        plan = Plan.from_raw({**raw, "full_seeds": seeds})
        counted = calls_to_plan(plan)
        sizes.append(len(plan.trainable))
        work.append(sum(counted.values()))
        assert counted["_train_trigger"] == 2 * sizes[-1]  # it is asked four times or more for each
    grown = sizes[2] / sizes[1]
    assert sizes[1] > 100 and grown > 1.8
    assert work[2] / work[1] < 1.1 * grown


def test_the_bench_plans_the_study_beside_as_many_plain_jobs(finished, monkeypatch, capsys):
    dry_run, planned = planning._dry_run, []

    def kept(folder, *words):
        planned.append((folder, words, found := dry_run(folder, *words)))
        return found

    monkeypatch.chdir(finished.path)
    monkeypatch.setattr(planning, "_dry_run", kept)
    app(["bench", "plan", "config/default.yaml", "--json"])
    printed = json.loads(capsys.readouterr().out)
    (own, words, told), (plain, none, as_many), *more = planned
    assert own == finished.path and words == ("--configfile", "config/default.yaml")
    assert plain != finished.path and none == () and len(more) == 4
    assert printed["jobs"] == told[0] == as_many[0] > 40
    assert printed["ratio"] == pytest.approx(printed["plan_cpu_s"] / printed["plain_cpu_s"])


def test_a_study_that_cannot_be_planned_is_one_sentence(finished, monkeypatch, tmp_path):
    (tmp_path / "wrong.yaml").write_text("rows: [mpl]\n")
    monkeypatch.chdir(finished.path)
    with pytest.raises(ConfigError, match="mlp"):
        planning.bench_plan([tmp_path / "wrong.yaml"])
