"""What moves in the steps of each stage of training, and from where: real, tiny runs."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from harness.tensors import save_tensors
from harness.training import loop
from harness.training.assembly import RunData, build_model
from harness.training.loop import Sampler, train_stage, training_step


@pytest.fixture
def prepared(study, tmp_path, monkeypatch):
    """``prepared({delta: value})``: a study with run folders of its own, its features written."""
    monkeypatch.chdir(tmp_path)  # checkpoints lie under the working folder

    def make(changes=None, rows=("mlp",)):
        this = study(rows, {"training.stage1_steps": 4, **(changes or {})})
        this.plan.study = this.plan.study.model_copy(update={"study": tmp_path.name})
        this.features()
        return this

    return make


def built(this):
    return build_model(this.plan, this.run, RunData(this.plan, this.run).vision_width)


def states(this, stage, monkeypatch):
    """What learns in either stage, before each step of ``stage`` and as it was written."""
    found = []

    def step(model, *args):
        found.append({name: tensor.clone() for name, tensor in model.trained_state().items()})
        return training_step(model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        train_stage(this.plan, this.run, stage)
    return [*found, load_file(this.plan.weights(this.run.id, stage))]


def moved(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of(part, state):
    return {name for name in state if name.startswith(part)}


def test_stage_2_starts_from_what_stage_1_wrote(prepared, monkeypatch):
    this = prepared()
    before, *_, written = states(this, 1, monkeypatch)
    first, *_, last = states(this, 2, monkeypatch)
    assert moved(before, written) and not moved(written, first)
    assert any("lora_" in name for name in moved(first, last))


def test_captions_alone_teach_the_projector_alone(prepared, monkeypatch):
    first, *_, last = states(prepared({"training.caption_share": 1.0}), 1, monkeypatch)
    assert moved(first, last) == of("projector.", first)


@pytest.mark.parametrize("decay", [0.0, 0.07])
def test_masks_alone_leave_lora_and_all_embeddings_but_that_of_seg(prepared, monkeypatch, decay):
    captions = {"training.caption_share": 0, "training.caption_weight": 0}
    this = prepared({**captions, "training.weight_decay": decay})
    first, *_, last = states(this, 1, monkeypatch)
    names, tables = moved(first, last), {"language.model.embed_tokens.weight", "language.lm_head.weight"}
    assert of("language.", names) == tables
    for name in tables:
        rows = (first[name] != last[name]).any(1).nonzero().flatten().tolist()
        assert rows == [built(this).seg_id]
    assert of("seg_head.", names) == of("seg_head.", first)
    assert of("projector.", names) and of("sam.mask_decoder.", names)


def test_masks_join_where_the_captions_share_ends(prepared, monkeypatch):
    *steps, last = states(prepared({"training.caption_share": 0.5}), 1, monkeypatch)
    assert len(steps) == 4
    for before, after in zip(steps[:2], steps[1:3], strict=True):
        assert moved(before, after) == of("projector.", before)
    for before, after in zip(steps[2:], (steps[3], last), strict=True):
        assert of("seg_head.", before) <= moved(before, after)


def test_without_weights_to_start_from_the_seg_head_alone_is_fitted_before_the_first_step(
    prepared, monkeypatch
):
    this = prepared()
    fresh = built(this).trained_state()
    assert moved(fresh, states(this, 1, monkeypatch)[0]) == of("seg_head.", fresh)


def test_a_seg_head_to_start_from_is_left_as_it_is(prepared, monkeypatch, tmp_path):
    head = {name: tensor + 1 for name, tensor in built(prepared()).trained_state().items()}
    head = {name: head[name] for name in of("seg_head.", head)}
    save_tensors(tmp_path / "start.safetensors", head)
    this = prepared({"models.start": str(tmp_path / "start.safetensors")})
    first = states(this, 1, monkeypatch)[0]
    assert not moved(head, {name: first[name] for name in head})


def test_the_optimiser_is_the_recipes_and_gradients_are_clipped(prepared, monkeypatch):
    recipe = {"betas": [0.5, 0.6], "weight_decay": 0.07, "grad_clip": 1e-3, "learning_rate": 0.01}
    this = prepared({f"training.{name}": value for name, value in recipe.items()})
    made, norms, rates = [], [], []

    class Recorded(torch.optim.AdamW):
        def step(self):
            learnt = [p for group in self.param_groups for p in group["params"]]
            squares = [p.grad.square().sum() for p in learnt if p.grad is not None]
            norms.append(torch.stack(squares).sum().sqrt().item())
            (rate,) = {group["lr"] for group in self.param_groups}
            rates.append(rate)
            (betas,) = {group["betas"] for group in self.param_groups}
            made.append((betas, self.param_groups[0]["weight_decay"]))
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    train_stage(this.plan, this.run, 1)
    train_stage(this.plan, this.run, 2)
    assert made == [((0.5, 0.6), 0.07)] * 7
    assert norms == pytest.approx([1e-3] * 7, rel=1e-3)  # the gradients of so small a model are larger
    # a warm-up of one step; then linear to 0 at the end, over what is left of four steps and of three
    assert rates == pytest.approx([0.01, 0.01, 0.02 / 3, 0.01 / 3, 0.01, 0.01, 0.005])


def gradients(model, *args):
    model.zero_grad(set_to_none=True)
    parts = training_step(model, *args)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return parts["loss"], found


def test_a_step_of_m3_is_the_mean_of_a_step_at_each_of_its_budgets(prepared, monkeypatch):
    this = prepared(rows=[{"name": "m3", "budget": 36}])
    data, model = RunData(this.plan, this.run), built(this)
    model.set_stage(2)
    groups = Sampler(data.expressions, this.run.training, 0).rows(2, 0)
    loss, together = gradients(model, data, groups, this.run, 2, 0)
    alone = []
    for budget in (144, 36, 9, 1):  # of 12 x 12 patches
        monkeypatch.setattr(model.projector, "training_budgets", lambda *_, budget=budget: [budget])
        alone.append(gradients(model, data, groups, this.run, 2, 0))
    losses = [value for value, _ in alone]
    assert len(set(losses)) == 4 and loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    for name, gradient in together.items():
        mean = torch.stack([found[name] for _, found in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, atol=1e-6, rtol=1e-4)


def test_a_projectors_own_loss_joins_every_step_that_it_learns_in(prepared, monkeypatch):
    """Captions alone, masks, several forward passes: the gradient is that of the recipe and its own."""
    for share, stage, each in ((1.0, 1, None), (0.0, 1, None), (0.0, 2, 2)):
        changes = {"training.caption_share": share, "training.images_per_forward": each}
        this = prepared(changes)
        data, model = RunData(this.plan, this.run), built(this)
        model.set_stage(stage, aligning=share == 1)
        groups = Sampler(data.expressions, this.run.training, 0).rows(stage, 0)
        plain, without = gradients(model, data, groups, this.run, stage, 0)
        forward = model.projector.forward
        weight = next(model.projector.parameters())
        monkeypatch.setattr(
            model.projector,
            "forward",
            lambda *a, **k: replace(forward(*a, **k), extra_loss=0.5 * weight.square().sum()),  # noqa: B023
        )
        loss, found = gradients(model, data, groups, this.run, stage, 0)
        assert loss == pytest.approx(plain + 0.5 * weight.square().sum().item(), rel=1e-5)
        (name,) = (n for n, p in model.named_parameters() if p is weight)
        torch.testing.assert_close(found.pop(name), without.pop(name) + weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found, without)


def test_a_projectors_own_loss_is_a_mean_over_images_in_however_many_passes(prepared, monkeypatch):
    """Images with one and with several expressions: a pass of few images with many must not weigh more."""
    this = prepared({"training.images_per_step": 4})
    data, model = RunData(this.plan, this.run), built(this)
    model.set_stage(2)
    drawn = Sampler(data.expressions, this.run.training, 0).rows(2, 0)
    groups = [drawn[0], drawn[1], drawn[2].head(1), drawn[3].head(1)]
    assert len({len(group) for group in groups}) > 1
    forward = model.projector.forward

    def with_own(image, **options):
        tokens = forward(image, **options)
        means = torch.stack([own.float().square().mean() for own in tokens.split()])
        return replace(tokens, extra_loss=means.mean())

    monkeypatch.setattr(model.projector, "forward", with_own)
    found = []
    for each in (None, 1, 2):
        training = this.run.training.model_copy(update={"images_per_forward": each})
        run = this.run.model_copy(update={"training": training})
        model.zero_grad(set_to_none=True)
        parts = training_step(model, data, groups, run, 2, 0)
        grads = torch.cat([p.grad.flatten() for p in model.projector.parameters()])
        assert parts["loss"] > parts["extra"] > 0
        found.append((parts["extra"], parts["loss"], grads))
    for extra, loss, grads in found[1:]:
        assert extra == pytest.approx(found[0][0], rel=1e-5) and loss == pytest.approx(found[0][1], rel=1e-4)
        torch.testing.assert_close(grads, found[0][2], atol=1e-5, rtol=1e-3)


def test_a_gradient_that_is_no_number_is_never_learnt_from(prepared, monkeypatch):
    """In the last step: no later loss would show it."""
    this = prepared()

    def poisoned(model, data, groups, run, stage, step, workers):
        parts = training_step(model, data, groups, run, stage, step, workers)
        if step == 3:
            next(model.projector.parameters()).grad[0] = float("inf")
        return parts

    monkeypatch.setattr(loop, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match="the gradient is .* at stage 1, step 3"):
        train_stage(this.plan, this.run, 1)
    assert not this.plan.weights(this.run.id, 1).exists()


def test_a_loss_that_is_no_number_before_anything_was_learnt_is_not_the_learning_rates(prepared, monkeypatch):
    this = prepared()
    data, model = RunData(this.plan, this.run), built(this)
    groups = Sampler(data.expressions, this.run.training, 0).rows(1, 0)
    forward = model.projector.forward
    monkeypatch.setattr(
        model.projector,
        "forward",
        lambda *a, **k: replace(t := forward(*a, **k), embeddings=t.embeddings * float("nan")),
    )
    model.set_stage(1)
    model.start_learning(checkpointing=False)
    with pytest.raises(ValueError, match="before anything was learnt; look at the projector's forward"):
        training_step(model, data, groups, this.run, 1, 0)
    with pytest.raises(FloatingPointError, match="the loss is nan at stage 1, step 1"):
        training_step(model, data, groups, this.run, 1, 1)


def test_the_states_that_fit_the_seg_head_are_read_a_few_images_at_a_time(prepared, monkeypatch):
    this = prepared({"models.start": None, "training.images_per_step": 6})
    data, model = RunData(this.plan, this.run), built(this)
    passes, visual_tokens = [], model.visual_tokens
    monkeypatch.setattr(
        model, "visual_tokens", lambda image: passes.append(len(image.patches)) or visual_tokens(image)
    )
    found = []
    for most in (None, 2):
        config = this.run.training.model_copy(update={"images_per_forward": most})
        with torch.no_grad():
            found.append(loop._first_states(model, data, Sampler(data.expressions, config, 0), steps=2))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert passes == [6] * 2 + [2] * 6
