"""The guide's example is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.plugins.discovery import get_projector
from harness.running.refusals import refusals

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "adding-a-projector.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "my" / "soft_pool.py"
    path.parent.mkdir()
    path.write_text(blocks("python")[0])
    return path


@pytest.fixture
def guided(example):
    path = example.with_name("asked_pool.py")
    path.write_text(blocks("python")[1])
    return path


def contract(command, example):
    arguments = command.replace("my/soft_pool.py", str(example)).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_passes_the_contract_tests_by_the_guides_command(example):
    result = contract(blocks("bash")[0].strip(), example)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout or "100%" in result.stdout


def test_the_example_that_is_guided_by_the_text_passes_them_too(guided):
    result = contract(blocks("bash")[0].strip(), guided)
    assert result.returncode == 0, result.stdout[-3000:]


def test_the_contract_finds_one_that_only_says_that_it_reads_the_expression(guided):
    guided.write_text(guided.read_text().replace("(1 + gate)", "(1 + 0 * gate)"))
    result = contract(blocks("bash")[0].strip() + " -k expression", guided)
    assert result.returncode == 1, result.stdout[-3000:]
    assert "test_tokens_depend_on_the_expression_where_it_is_read" in result.stdout


def test_the_command_finds_a_broken_example(example):
    example.write_text(example.read_text().replace(".softmax(1)", ".softmax(0)"))
    result = contract(blocks("bash")[0].strip() + " -k batch", example)
    assert result.returncode == 1, result.stdout[-3000:]
    assert "test_an_image_alone_gets_the_same_tokens_as_in_a_batch" in result.stdout


def test_the_study_names_the_example_and_what_it_is_held_against(example, monkeypatch):
    monkeypatch.chdir(example.parents[1])
    raw = {**read_study(ROOT / "config" / "default.yaml", ROOT), **yaml.safe_load(blocks("yaml")[0])}
    plan = Plan.from_raw(raw, ROOT)
    assert [run.projector for run in plan.runs.values()] == ["svp", "mlp", "avg_pool", "soft_pool"]
    assert plan.study_dir.name == "mine" and refusals(plan) == {}
    *_, run = plan.runs.values()
    assert run.budget in get_projector(run.source).declared["budgets"]
