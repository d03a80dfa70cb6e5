"""The sentences under a table: each where it holds, and nowhere else."""

import json
from pathlib import Path

import pytest

from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.plugins.discovery import get_projector
from harness.reporting.notes import table_notes

ROOT = Path(__file__).parents[2]
DEFAULT = read_study(ROOT / "config/default.yaml", ROOT)


@pytest.fixture
def notes(tmp_path):
    """Notes of the default study with some keys changed; ``shared`` images stand in train and in val."""

    def found(shared=0, **changes):
        plan = Plan.from_raw({**DEFAULT, "results": str(tmp_path), **changes}, ROOT)
        pool = {"mode": "joint", "held_out_too": {"images": shared, "by_dataset": {}}}
        for run in plan.runs.values():
            folder = plan.prepared_dir(run)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps({"train_pool": pool}))
        return table_notes(plan)

    return found


def holding(words, notes):
    return [note for note in notes if words in note]


def test_the_default_study_says_what_its_models_and_its_recipe_are(notes):
    pretrained, captioned, rebuilt, chosen = notes()
    assert pretrained.startswith("Tiny models, pretrained on scenes of the same generator")
    assert captioned.startswith("Every row is also trained on captions of objects")
    assert rebuilt.startswith("svp is built from the abstract and from summaries of arXiv 2509.13676")
    assert chosen == "oracle has no language model: its tokens are what it chooses among."


def test_the_recipe_without_captions_says_nothing_of_them(notes):
    assert not holding("captions", notes(set={"training.caption_weight": 0}))


def test_a_study_s_own_notes_come_first_and_replace_none(notes):
    own = notes(notes=["Mine."], tiny_notes=["Of tiny models."])
    assert own == ("Mine.", "Of tiny models.", *notes())


def test_notes_of_tiny_models_are_not_printed_with_others(notes):
    larger = notes(tiny_notes=["Of tiny models."], set={"models.size": "small"})
    assert "Of tiny models." not in larger


def test_shared_images_are_told_once_however_many_runs_there_are(notes):
    assert len(holding("7 train images", notes(shared=7))) == 1


def test_a_projector_that_is_not_the_published_one_says_so_once(notes):
    rows = ["mlp", {"name": "q_former", "budget": [36, 9]}]
    (said,) = holding("q_former", notes(rows=rows))
    assert said == f"q_former {get_projector('q_former').departs}."
    assert "captions" in said
    assert not holding("q_former", notes())


def test_published_weights_that_a_projector_starts_from_are_named(notes):
    none = {"variant": "random", "set": {"models.projector_weights.q_former": None}}
    rows = ["mlp", {"name": "q_former", "variant": "blip2"}, {"name": "q_former", **none}]
    told = holding(
        "starts from bert", notes(rows=rows, set={"models.projector_weights": {"q_former": "bert"}})
    )
    assert told == ["q_former (blip2) starts from bert."]


@pytest.mark.parametrize("departs", ["3", '"ends with a full stop."'])
def test_what_cannot_end_a_sentence_is_refused_with_the_file(tmp_path, departs):
    file = tmp_path / "mine.py"
    file.write_text(f'class Mine:\n    name = "mine"\n    departs = {departs}\n')
    with pytest.raises(ValueError, match=r"mine\.py: Mine\.departs must be a string without a full stop"):
        get_projector(str(file))
