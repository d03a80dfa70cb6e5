"""A copy of this repository in a temporary folder, in which files may be edited and Snakemake run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "Snakefile",
    "workflow",
    "config",
    "slurm",
    "harness",
    "svp",
    "baselines",
    "pyproject.toml",
    "README.md",
)
# Writes what each job declares, and nothing else: planning is tested without computing anything.
FAKE_STAGES = """
import time
from pathlib import Path
from typing import Literal
from harness.planning.plan import Plan

StageName = Literal[
    "prepare", "pool", "pretrain", "features", "superpixels", "train", "tune", "predict", "score",
    "efficiency", "tables", "figures", "overlays", "publish",
]
TABLES = [
    "scores.csv", "overall.csv", "differences.csv", "phenomena.csv", "tokens.csv", "protocols.csv",
    "efficiency.csv", "learning_rates.csv", "main.csv", "main.md", "main.tex", "context.json",
]
FIGURES = "tokens_vs_giou differences per_split phenomena tokens_vs_objects loss_curves stage_times"


def run_stage(name, config, *, key=None, run=None, stage=None):
    plan = Plan.load(config)
    outputs = {
        "prepare": lambda: [plan.data_dir(key) / "prepared" / f for f in (
            "summary.json", "images.parquet", "annotations.parquet", "expressions.parquet")],
        "pool": lambda: [plan.data_dir(key) / "pool" / "summary.json"],
        "pretrain": lambda: [plan.model_dir(key) / "done.json"],
        "features": lambda: [plan.feature_dir(key) / "index.json"],
        "superpixels": lambda: [plan.superpixel_dir(key) / "manifest.json"],
        "train": lambda: [plan.weights(run, stage)],
        "tune": lambda: [plan.choice_file(run)],
        "predict": lambda: [plan.prediction_file(run)],
        "score": lambda: [plan.score_file(run)],
        "efficiency": lambda: [plan.efficiency_file],
        "tables": lambda: [plan.tables_dir / f for f in TABLES],
        "figures": lambda: [plan.figures_dir / f"{f}.{e}" for f in FIGURES.split() for e in ("png", "pdf")],
        "overlays": lambda: [plan.figures_dir / f"overlays.{e}" for e in ("png", "pdf")],
        "publish": lambda: [plan.published_file],
    }[name]()
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"tracking_uri": "none"}')
"""


@dataclass(frozen=True)
class Checkout:
    """A copied checkout."""

    path: Path

    @classmethod
    def at(cls, path: Path, *, fake_stages: bool = False) -> "Checkout":
        path.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, path / name)
        if fake_stages:
            (path / "harness" / "running" / "stages.py").write_text(FAKE_STAGES)
        return cls(path)

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RIS_")}
        return {**kept, "PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def run(self, *words: str, timeout: float = 3000) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def snakemake(self, *words: str, timeout: float = 3000) -> subprocess.CompletedProcess[str]:
        return self.run("snakemake", "--cores", "2", *words, timeout=timeout)

    def planned(self, *words: str) -> set[str]:
        """The jobs of a dry run, by their messages."""
        done = self.snakemake(*words, "--dry-run")
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, flags=re.M))

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.path / name
        text = path.read_text()
        assert old in text, f"{name} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1))
