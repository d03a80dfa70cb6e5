"""What the stage of each job opens, told of the stages and not of the rules; a study of every kind of row."""

from collections import defaultdict
from pathlib import Path

from harness.config import RunConfig
from harness.planning.plan import Plan

NEEDS = {
    "svp": ("superpixels",),
    "svp_slic": ("superpixels",),
    "token_packer": ("levels",),
    "visionzip": ("cls_attention", "keys"),
}
ACTS_ON = {"text_blind": "svp", "image_blind": "mlp"}
STUDY = {
    "rows": ["svp", "mlp", "svp_slic", "token_packer", {"name": "visionzip", "budget": 36}, "oracle"]
    + [{"name": name, "of": base} for name, base in ACTS_ON.items()],
    "tuning": {"factors": [0.5, 2]},
    "effort": "full",
}


class OpenedFiles:
    """``by[made]``: what the job that writes the file ``made`` opens."""

    def __init__(self, plan: Plan):
        self.plan, self.by = plan, defaultdict(set)
        self.runs = {run.projector: run for run in plan.runs.values()}
        self.trained = [run for name, run in self.runs.items() if name not in (*ACTS_ON, "oracle")]
        for run in self.trained:
            self._models_and_features(run)
            self._training(run)
        self._superpixels()
        for name, run in self.runs.items():
            self._answers(name, run)
        self._reports()

    def _opens(self, made: Path, *files: Path) -> None:
        self.by[str(made)] |= {str(file) for file in files}

    def _prepared(self, run: RunConfig) -> Path:
        return self.plan.data_dir(self.plan.keys(run).data) / "prepared" / "summary.json"

    def _model(self, run: RunConfig, part: str) -> Path:
        return self.plan.model_dir(self.plan.keys(run).model(part)) / "done.json"

    def _features(self, run: RunConfig, item: str) -> Path:
        return self.plan.feature_dir(self.plan.keys(run).feature(item)) / "index.json"

    def _pixels(self, run: RunConfig) -> Path:
        return self.plan.superpixel_dir(self.plan.keys(run).superpixels) / "manifest.json"

    def _assembled(self, run: RunConfig) -> list[Path]:
        """What a run's data and model are put together from."""
        found = [self._prepared(run), self._model(run, "sam"), self._model(run, "start")]
        items = ("patches", "sam", *NEEDS.get(run.projector, ()))
        pixels = "superpixels"
        return found + [self._pixels(run) if item == pixels else self._features(run, item) for item in items]

    def _models_and_features(self, run: RunConfig) -> None:
        pool = self.plan.data_dir(self.plan.keys(run).pool) / "pool" / "summary.json"
        language, sam, vision = (self._model(run, part) for part in ("language", "sam", "vision"))
        for model in (language, sam, vision):
            self._opens(model, pool)
        self._opens(self._model(run, "start"), pool, language, sam)
        # encoders must not have been pretrained on an image that they encode
        self._opens(self._features(run, "sam"), self._prepared(run), pool, sam)
        for item in {"patches", *NEEDS.get(run.projector, ())} - {"superpixels"}:
            self._opens(self._features(run, item), self._prepared(run), pool, vision)

    def _superpixels(self) -> None:
        for name in ("svp", "oracle"):
            run = self.runs[name]
            self._opens(self._pixels(run), self._prepared(run))
            self._opens(self._pixels(run), self._model(run, "sam"), self._features(run, "sam"))
        self._opens(self._pixels(self.runs["svp_slic"]), self._prepared(self.runs["svp_slic"]))

    def _training(self, run: RunConfig) -> None:
        plan, assembled = self.plan, self._assembled(run)
        choice, trials = plan.choice_file(run.row), plan.trials[run.row].values()
        for each, before in ((run, [choice]), *((trial, []) for trial in trials)):
            first, second = (plan.weights(each.id, stage) for stage in (1, 2))
            self._opens(first, *assembled, *before)
            self._opens(second, *assembled, *before, first)
        self._opens(choice, *assembled, *(plan.weights(trial.id, 2) for trial in trials))
        self._opens(plan.efficiency_file, *assembled, self._model(run, "vision"), plan.weights(run.id, 2))

    def _answers(self, name: str, run: RunConfig) -> None:
        base, predicted = self.runs[ACTS_ON.get(name, name)], self.plan.prediction_file(run.id)
        if name == "oracle":
            self._opens(predicted, self._prepared(run), self._pixels(run))
        else:
            self._opens(predicted, *self._assembled(base), self.plan.weights(base.id, 2))
        self._opens(self.plan.score_file(run.id), self._prepared(run), predicted)

    def _reports(self) -> None:
        plan, table = self.plan, self.plan.tables_dir / "main.csv"
        figure, overlays = (plan.figures_dir / f"{name}.png" for name in ("per_split", "overlays"))
        for run in self.runs.values():
            score, predicted = plan.score_file(run.id), plan.prediction_file(run.id)
            self._opens(table, self._prepared(run), score, predicted, plan.efficiency_file)
            self._opens(figure, self._prepared(run), score, table)
            self._opens(plan.published_file, score)
        for run in self.trained:
            self._opens(table, plan.choice_file(run.row))
        for name in ("svp", "mlp", "token_packer"):  # the first projectors
            run = self.runs[name]
            self._opens(overlays, plan.score_file(run.id), plan.prediction_file(run.id))
        self._opens(overlays, self._prepared(self.runs["svp"]), self._pixels(self.runs["svp"]))
        self._opens(plan.published_file, table, figure, overlays)
