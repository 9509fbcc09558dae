"""The training loop: means over images, schedules, resuming, early stops, and what happens when things go wrong."""

import itertools
import math
import random
import statistics
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import data, models, training
from helpers.data.datasets import Split
from helpers.runtime import UserError, seed_epoch
from helpers.training import evaluation, loop
from helpers.training import step as stepping
from helpers.training.checkpoints import load_checkpoint, save_checkpoint
from helpers.training.loop import fit
from helpers.training.recipe import Recipe, learning_rate

RECIPE = Recipe(
    epochs=4, batch_size=8, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, learning_rate=0.05, augment="crop_flip", padding=1
)


def make_split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), labels] += 80
    return Split(images, labels, [str(index) for index in range(count)])


def make_model(seed: int = 0) -> nn.Module:
    seed_epoch(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(8),  # so that smaller images pass as well
        nn.Flatten(),
        nn.Linear(512, 3),
    )


TRAIN, VALIDATION = make_split(21, 1), make_split(13, 2)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in history]


class Frozen(nn.Module):
    """Fixed scores for each image, so that the loss can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.mean((2, 3)) * self.scale


def test_train_loss_and_accuracy_are_means_over_images_even_if_the_last_batch_is_smaller():
    model = Frozen()
    images = torch.randn(10, 3, 4, 4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    uneven = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    loss, accuracy = training.train_epoch(training.Learner(model, RECIPE, still), uneven)
    scores = images.mean((2, 3))
    assert loss == pytest.approx(F.cross_entropy(scores, labels).item(), abs=1e-6)
    assert accuracy == (scores.argmax(1) == labels).sum().item() / 10
    halves = [F.cross_entropy(scores[part], labels[part]).item() for part in (slice(8), slice(8, 10))]
    assert abs(loss - sum(halves) / 2) > 1e-3, "the mean of batch means must differ here, or this test proves nothing"


class Narrow(nn.Module):
    """A linear network that runs out of memory with more than `room` images at once."""

    def __init__(self, room: int):
        super().__init__()
        seed_epoch(0)
        self.room, self.linear = room, nn.Linear(3 * 4 * 4, 3)

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.linear(images.flatten(1))


def test_nesterov_label_smoothing_and_inner_steps_come_from_the_recipe():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    optimizer = training.make_optimizer(model, replace(RECIPE, learning_rate=0.1, momentum=0.9, nesterov=True))
    for _ in range(2):  # the gradient is (3, 4), which Nesterov multiplies by 1.9, then by 2.71
        optimizer.zero_grad()
        model(torch.tensor([3.0, 4.0])).sum().backward()
        optimizer.step()
    assert torch.allclose(model.weight, torch.tensor([[1 - 0.57 - 0.813, 2 - 0.76 - 1.084]]))
    images, labels, model = torch.randn(6, 3, 4, 4), torch.arange(6) % 3, Frozen()
    still, scores = torch.optim.SGD(model.parameters(), lr=0.0), images.mean((2, 3))
    learner = training.Learner(model, replace(RECIPE, label_smoothing=0.3, mixed_precision=False), still)
    smoothed = 0.7 * F.cross_entropy(scores, labels) - 0.3 * scores.log_softmax(1).mean()
    assert training.train_epoch(learner, [(images, labels)])[0] == pytest.approx(smoothed.item(), abs=1e-6)
    inner = training.make_optimizer(make_model(), replace(RECIPE, perturbation=0.3, inner_steps=2, inner_learning_rate=0.7))
    assert (inner.inner_steps, inner.param_groups[0]["inner_lr"]) == (2, 0.7)


@pytest.mark.parametrize("perturbation", [None, 0.5])
def test_a_batch_that_does_not_fit_is_split_into_parts_and_gives_the_same_step(perturbation, capsys):
    recipe = replace(RECIPE, perturbation=perturbation, mixed_precision=False, label_smoothing=0.1)
    batches = [(torch.randn(count, 3, 4, 4), torch.arange(count) % 3) for count in (7, 7, 3)]
    roomy, narrow = Narrow(7), Narrow(2)
    means = [training.train_epoch(training.Learner(model, recipe), batches) for model in (roomy, narrow)]
    assert means[1] == pytest.approx(means[0], rel=1e-6)
    torch.testing.assert_close(narrow.linear.weight, roomy.linear.weight, rtol=1e-6, atol=1e-7)
    printed = capsys.readouterr().out
    assert "A batch of 7 does not fit into memory: it is split into 4 parts" in printed and "8 parts" not in printed


def test_a_smaller_batch_is_split_into_parts_as_large_as_those_of_a_full_one():
    learner = training.Learner(Narrow(2), replace(RECIPE, batch_size=8), parts=4)
    assert [learner.passes(images) for images in (8, 6, 5, 2, 1)] == [4, 3, 3, 1, 1]


def test_a_single_image_that_does_not_fit_gives_a_clear_error():
    model = Narrow(0)
    with pytest.raises(UserError, match="Not even one image fits"):
        batches = [(torch.randn(5, 3, 4, 4), torch.arange(5) % 3)]
        training.train_epoch(training.Learner(model, RECIPE), batches)


@pytest.mark.parametrize(("fast", "tolerance"), [({"channels_last": True}, 1e-5), ({"mixed_precision": True}, 3e-2)])
def test_the_fast_paths_give_the_same_scores_as_the_plain_path(fast, tolerance, monkeypatch):
    """fp32 in channels-last agrees up to rounding; bf16, with 8 significant bits, to 3 % of the scores' norm."""
    monkeypatch.setattr(stepping, "autocast_dtype", lambda device: torch.bfloat16)
    split = data.sample("cifar10", counts=(10, 10, 8)).test
    plain = replace(RECIPE, image_size=16, channels_last=False, mixed_precision=False)
    scores = []
    for recipe in (plain, replace(plain, **fast)):
        seed_epoch(0)
        model = models.build("resnext29_under5m", 10)
        training.prepare(model, recipe, training.choose_channels_last(model, split, recipe))
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 16, 16))  # running statistics that fit the weights
        scores.append(training.predict(model, split, recipe))
    difference = (scores[1] - scores[0]).norm() / scores[0].norm()
    assert 0 < difference < tolerance


def test_evaluation_is_a_mean_over_images_and_does_not_depend_on_the_batch_size(monkeypatch):
    model = make_model()
    whole = training.evaluate(model, VALIDATION, RECIPE)
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 5)
    assert training.evaluate(model, VALIDATION, RECIPE) == pytest.approx(whole, abs=1e-6)


def test_score_in_closed_form():
    loss, accuracy = training.score(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    assert loss == pytest.approx(0.6931471805599453)
    assert accuracy == 0.75


def test_the_reports_schedule_divides_by_ten_every_seven_epochs():
    recipe = replace(RECIPE, epochs=20, learning_rate=0.1, schedule="step", step_epochs=7)
    rates = [learning_rate(recipe, epoch) for epoch in range(20)]
    assert rates == pytest.approx([0.1] * 7 + [0.01] * 7 + [0.001] * 6)


def test_cosine_schedule_in_closed_form():
    recipe = replace(RECIPE, epochs=4, learning_rate=1.0, schedule="cosine")
    assert [learning_rate(recipe, epoch) for epoch in range(4)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


def test_warm_up_is_a_straight_line_from_zero_and_the_cosine_ends_at_zero():
    recipe = replace(RECIPE, epochs=6, learning_rate=1.0, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(recipe, progress) for progress in (0, 0.5, 1.5, 2, 4, 6)]
    assert rates == pytest.approx([0, 0.25, 0.75, 1, 0.5, 0])


def torchs_cosine(steps: int, period: int, lowest: float) -> list[float]:
    """The rate before each step of torch's scheduler, started at 0.1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period, eta_min=lowest)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_cosine_by_epochs_matches_torchs_and_rises_again_after_its_period():
    recipe = replace(RECIPE, epochs=80, learning_rate=0.1, schedule="periodic_epochs", lowest_learning_rate=1e-4)
    rates = [learning_rate(recipe, epoch, 1000) for epoch in range(80)]
    assert rates == pytest.approx(torchs_cosine(80, 25, 1e-4), rel=1e-9)
    assert rates[25] == pytest.approx(1e-4) == rates[75] and rates[50] == pytest.approx(0.1)
    assert [learning_rate(recipe, epoch + 0.999, 1000) for epoch in range(80)] == rates, "the same within an epoch"


def test_the_cosine_by_batches_matches_torchs_stepped_after_each_batch():
    recipe = replace(RECIPE, epochs=3, learning_rate=0.1, schedule="periodic_batches", period=7, lowest_learning_rate=0.02)
    rates = [learning_rate(recipe, epoch + batch / 11, 11) for epoch in range(3) for batch in range(11)]
    assert rates == pytest.approx(torchs_cosine(33, 7, 0.02), rel=1e-9)


def test_every_cosine_ends_at_the_lowest_rate():
    recipe = replace(RECIPE, epochs=4, learning_rate=1.0, schedule="cosine", lowest_learning_rate=0.2)
    assert [learning_rate(recipe, epoch) for epoch in (0, 2, 4)] == pytest.approx([1, 0.6, 0.2])


def note_rates(monkeypatch) -> list[float]:
    """A list that grows by the learning rate of every step from now on."""
    rates, step = [], stepping.step

    def note(learner, *batch):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        return step(learner, *batch)

    monkeypatch.setattr(stepping, "step", note)
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "periodic_batches"])
def test_fourfold_augmentation_takes_four_times_as_many_steps(monkeypatch, schedule):
    rates = note_rates(monkeypatch)
    recipe = replace(RECIPE, epochs=1, learning_rate=1.0, schedule=schedule, period=11, augment="fourfold")
    fit(make_model(), TRAIN, VALIDATION, recipe)
    cosine = [math.cos(math.pi * number / 22) ** 2 for number in range(11)]
    assert rates == pytest.approx(cosine), "84 images are 11 batches of 8, the last of 4"


def test_the_learning_rate_changes_within_an_epoch(monkeypatch):
    rates = note_rates(monkeypatch)
    fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1, learning_rate=1.0, schedule="cosine"))
    assert rates == pytest.approx([1, 0.75, 0.25]), "three batches of 8, 8 and 5 images: cos² of 0, 30 and 60 degrees"


@pytest.mark.parametrize("perturbation", [None, 0.1])
def test_weight_decay_on_weights_only(perturbation):
    recipe = replace(RECIPE, weight_decay=5e-4, decay_weights_only=True, perturbation=perturbation)
    weights, others = training.make_optimizer(make_model(), recipe).param_groups
    assert [tuple(p.shape) for p in weights["params"]] == [(8, 3, 3, 3), (3, 512)] and weights["weight_decay"] == 5e-4
    assert [tuple(p.shape) for p in others["params"]] == [(8,), (8,), (8,), (3,)] and others["weight_decay"] == 0


def test_a_perturbation_of_zero_trains_like_plain_sgd_bit_for_bit_including_batchnorm_statistics():
    perturbed, plain = (nn.Sequential(*(layer for layer in make_model() if not isinstance(layer, nn.Dropout))) for _ in "ab")
    first = fit(perturbed, TRAIN, VALIDATION, replace(RECIPE, perturbation=0.0))
    second = fit(plain, TRAIN, VALIDATION, RECIPE)
    assert same(perturbed, plain)
    assert without_times(first.history) == without_times(second.history)


def test_the_second_pass_leaves_batchnorms_running_statistics_alone():
    model, recipe = make_model(), replace(RECIPE, perturbation=5.0, mixed_precision=False)
    images = torch.randn(8, 3, 8, 8)
    training.train_epoch(training.Learner(model, recipe), [(images, torch.arange(8) % 3)])
    seen = make_model()[0](images)  # the first pass, at the initial weights
    assert torch.allclose(model[1].running_mean, 0.1 * seen.mean((0, 2, 3)), atol=1e-6)
    assert model[1].num_batches_tracked == 1 and model[1].track_running_stats


def test_one_sgd_step_by_hand():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    optimizer = training.make_optimizer(model, replace(RECIPE, learning_rate=0.1, momentum=0.9, weight_decay=0.0))
    for _ in range(2):  # gradient (3, 4) twice: velocity (3, 4), then 0.9 · (3, 4) + (3, 4) = (5.7, 7.6)
        optimizer.zero_grad()
        model(torch.tensor([3.0, 4.0])).sum().backward()
        optimizer.step()
    assert torch.allclose(model.weight, torch.tensor([[1 - 0.3 - 0.57, 2 - 0.4 - 0.76]]))


KINDS = {
    "sgd": {"momentum": 0.9, "schedule": "step", "step_epochs": 2},
    "adam": {"optimizer": "adam"},
    "fourfold": {"augment": "fourfold", "schedule": "periodic_batches", "period": 3, "lowest_learning_rate": 0.001},
    "limited": {"time_budget": 1e9, "patience": 99},
    "perturbed": {"perturbation": 0.3, "inner_steps": 2, "schedule": "cosine", "warmup_epochs": 1, "decay_weights_only": True},
    "everything": {
        **{"perturbation": 0.3, "perturbation_start": 0.2, "perturbation_every": 2, "clip_norm": 0.5, "ema": 0.9},
        **{"schedule": "linear", "warmup_epochs": 1, "flip": "alternating", "border": "reflect", "cutout": 3},
        **{"sizes": ((0.0, 4), (0.3, 6), (0.6, 8)), "flip_test": True, "deterministic": False},
    },
    "along the momentum": {"momentum_perturbation": 0.2, "augment": "resized_crop_flip", "flip": "alternating", "ema": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed_in", [1, 3])
def test_resume_after_a_kill_equals_an_uninterrupted_run_bit_for_bit(tmp_path, monkeypatch, capsys, killed_in, kind):
    recipe = replace(RECIPE, learning_rate=0.01, **KINDS[kind])
    whole = make_model()
    expected = fit(whole, TRAIN, VALIDATION, recipe, seed=3)

    train_epoch, calls = training.train_epoch, []

    def kill(learner, batches):
        calls.append(None)
        if len(calls) == killed_in + 1:
            next(iter(batches))  # in the middle of the epoch, after random numbers were drawn
            raise KeyboardInterrupt
        return train_epoch(learner, batches)

    monkeypatch.setattr(loop, "train_epoch", kill)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), TRAIN, VALIDATION, recipe, seed=3, checkpoint=tmp_path / "a.ckpt")
    assert "the last checkpoint is kept in a.ckpt; rerun to continue" in capsys.readouterr().out
    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    torch.rand(99)  # other random numbers in between must not matter
    resumed = make_model(seed=8)
    done = fit(resumed, TRAIN, VALIDATION, recipe, seed=3, checkpoint=tmp_path / "a.ckpt")
    assert same(whole, resumed)
    assert without_times(done.history) == without_times(expected.history)
    assert done.best == expected.best


def test_slow_saves_are_not_made_after_every_epoch_and_lose_nothing_but_time(tmp_path, monkeypatch):
    """Each save counts as slow, and no training as long enough for another: only the first and the last epoch are saved."""
    whole, path, saved, save = make_model(), tmp_path / "a.ckpt", [], loop.save_checkpoint
    recipe = replace(RECIPE, epochs=4)
    expected = fit(whole, TRAIN, VALIDATION, recipe, checkpoint=tmp_path / "b.ckpt")
    monkeypatch.setattr(loop, "SLOW_SAVE", -1)
    monkeypatch.setattr(loop, "SAVING", 1e-9)
    monkeypatch.setattr(loop, "save_checkpoint", lambda state, path: saved.append(len(state["history"])) or save(state, path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, 4)
        fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=path)
    assert saved == [1]
    resumed = make_model(seed=8)
    done = fit(resumed, TRAIN, VALIDATION, recipe, checkpoint=path)
    assert saved == [1, 2, 4] and same(whole, resumed) and without_times(done.history) == without_times(expected.history)


def interrupt_in(monkeypatch, number: int) -> None:
    """Have Ctrl-C come in this epoch, counted from 1."""
    epoch = loop._epoch

    def interrupted(*arguments):
        if arguments[-1] + 1 == number:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(loop, "_epoch", interrupted)


@pytest.mark.parametrize(("stopped_in", "sentence"), [(1, "nothing of this run was kept"), (2, "kept in run.ckpt")])
def test_ctrl_c_reports_what_is_kept_of_this_run(tmp_path, monkeypatch, capsys, stopped_in, sentence):
    """There is a checkpoint of an earlier run, but `resume=False` ignores it."""
    checkpoint = tmp_path / "run.ckpt"
    fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=checkpoint)
    interrupt_in(monkeypatch, stopped_in)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=checkpoint, resume=False)
    assert sentence in capsys.readouterr().out


def test_ctrl_c_during_the_first_save_does_not_take_an_earlier_runs_checkpoint_for_this_ones(tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / "run.ckpt"
    fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=checkpoint)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=checkpoint, resume=False)
    assert "nothing of this run was kept" in capsys.readouterr().out


def test_ctrl_c_copies_the_last_checkpoint_to_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SLOW_SAVE", math.inf)  # a busy disk must not delay the second one
    interrupt_in(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "a.ckpt", mirror=tmp_path / "drive")
    assert len(load_checkpoint(tmp_path / "drive" / "a.ckpt")["history"]) == 2, "the second, and not only the first"


def test_a_run_stopped_after_an_epoch_continues_like_an_uninterrupted_one(tmp_path):
    recipe = replace(RECIPE, schedule="cosine")
    whole = make_model()
    expected = fit(whole, TRAIN, VALIDATION, recipe)
    first = fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=tmp_path / "a.ckpt", until=3)
    assert first.stopped == "asked to stop after epoch 3"
    assert without_times(first.history) == without_times(expected.history[:3])
    resumed = make_model()
    done = fit(resumed, TRAIN, VALIDATION, recipe, checkpoint=tmp_path / "a.ckpt", until=9)
    assert same(whole, resumed) and done.stopped is None
    assert without_times(done.history) == without_times(expected.history)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = make_model()
    done = fit(first, TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "a.ckpt")
    monkeypatch.setattr(loop, "train_epoch", None)
    again = make_model(seed=5)
    assert fit(again, TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "a.ckpt").history == done.history
    assert same(first, again)


@pytest.mark.parametrize(("keep", "epoch", "accuracy", "loss"), [("best", 2, 0.7, 0.8), ("last", 4, 0.6, 0.6)])
def test_the_best_epoch_by_validation_or_the_last_one_is_kept(monkeypatch, keep, epoch, accuracy, loss):
    scores = iter([(0.9, 0.5), (0.8, 0.7), (0.7, 0.7), (0.6, 0.6)])
    weights = []

    def evaluate(model, split, recipe):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    model = make_model()
    done = fit(model, TRAIN, VALIDATION, replace(RECIPE, keep=keep))
    assert done.best == {"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss}, "a tie goes to the earlier epoch"
    assert all(torch.equal(value, weights[epoch - 1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_training_stops_after_patience_epochs_without_improvement(monkeypatch, keep, kept):
    scores, weights = iter([(1, 0.5), (1, 0.6), (1, 0.6), (1, 0.55), (1, 0.9)]), []

    def evaluate(model, *_):
        weights.append(next(model.parameters()).clone())
        return next(scores)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    model = make_model()
    done = fit(model, TRAIN, VALIDATION, replace(RECIPE, epochs=10, keep=keep), patience=2)
    assert [row["epoch"] for row in done.history] == [1, 2, 3, 4]
    assert torch.equal(next(model.parameters()), weights[kept - 1])
    assert "no better validation accuracy in 2 epochs after epoch 2" in done.stopped


def test_no_epoch_starts_that_would_not_end_within_the_time_budget():
    ticks = iter(range(0, 1000, 10))  # the clock advances 10 s each time it is read: 20 s per epoch
    done = fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=10), time_budget=50, clock=lambda: next(ticks))
    assert [row["seconds"] for row in done.history] == [20, 20]
    assert done.stopped == "time budget of 50 s: 40 s spent after epoch 2, and no other fits"


def clock_of(*durations: float):
    """Clock readings, three per epoch: the epochs take these durations, half of it in training, and the last one repeats."""
    now = 0.0
    for duration in itertools.chain(durations, itertools.repeat(durations[-1])):
        yield from (now, now + duration / 2, now + duration)
        now += duration


@pytest.mark.parametrize("budget", [1, 40, 55, 100, 333])
@pytest.mark.parametrize("seed", range(3))
def test_a_time_budget_is_never_exceeded_by_more_than_one_epoch_however_epochs_vary(budget, seed):
    draw = random.Random(seed)
    clock = clock_of(*(draw.choice((5, 10, 80)) for _ in range(40)), 10)
    recipe = replace(RECIPE, epochs=80)
    done = fit(make_model(), TRAIN.subset(range(8)), VALIDATION, recipe, time_budget=budget, clock=lambda: next(clock))
    seconds = [row["seconds"] for row in done.history]
    assert seconds and sum(seconds[:-1]) < budget, "only the last epoch may end late"
    assert sum(seconds) + statistics.median(seconds) > budget, "no epoch that fits is left out"
    assert done.stopped.startswith(f"time budget of {budget} s: {sum(seconds):.0f} s spent after epoch {len(seconds)}")


def test_after_the_first_epochs_the_number_that_fits_the_budget_is_printed(capsys):
    clock = clock_of(30, 10, 12, 15)
    done = fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=9), time_budget=100, clock=lambda: next(clock))
    # The median of 30, 10 and 12 s fits 8 times into 100 s.
    assert capsys.readouterr().out == "At the pace of the first 3 epochs, 8 fit the time budget of 100 s.\n"
    assert done.limits == {"time_budget": 100, "patience": None}
    assert [row["seconds"] for row in done.history] == [30, 10, 12, 15, 15, 15], "97 s, and the estimate was too high"
    assert loop.estimate_epochs(done.history, 100) == 8


def test_the_seconds_of_training_leave_out_validation(monkeypatch):
    now = [0.0]

    def taking(seconds):
        return lambda *_: (now.append(now[-1] + seconds), (1.0, 0.5))[1]

    monkeypatch.setattr(loop, "train_epoch", taking(6))
    monkeypatch.setattr(loop, "evaluate", taking(2))
    [row] = fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1), clock=lambda: now[-1]).history
    assert (row["train_seconds"], row["seconds"]) == (6, 8)


def test_a_budget_shorter_than_an_epoch_gives_one_epoch():
    clock = clock_of(30)
    done = fit(make_model(), TRAIN, VALIDATION, RECIPE, time_budget=7, clock=lambda: next(clock))
    assert len(done.history) == loop.estimate_epochs(done.history, 7) == 1


def test_the_recipes_limits_apply_unless_an_argument_replaces_them(monkeypatch):
    clock, recipe = clock_of(10), replace(RECIPE, epochs=10, time_budget=40, patience=3)
    done = fit(make_model(), TRAIN, VALIDATION, recipe, patience=9, clock=lambda: next(clock))
    assert (len(done.history), done.limits["time_budget"], done.limits["patience"]) == (4, 40, 9)
    assert len(fit(make_model(), TRAIN, VALIDATION, recipe, time_budget=10, clock=lambda: next(clock)).history) == 1
    monkeypatch.setattr(loop, "evaluate", lambda *_: (1, 0.5))
    done = fit(make_model(), TRAIN, VALIDATION, recipe, time_budget=1000, clock=lambda: next(clock))
    assert len(done.history) == 4 and done.stopped == "no better validation accuracy in 3 epochs after epoch 1"


def test_a_checkpoint_from_before_a_setting_existed_has_its_default(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path, until=1)
    state = load_checkpoint(path)
    for setting in ("time_budget", "patience", "nesterov", "period"):
        del state["identity"][setting]
    state["identity"]["pace"] = "epochs"  # a setting that no longer exists
    save_checkpoint(state, path)
    with pytest.raises(UserError, match="belongs to a run with nesterov False, not True; period 25, not 9"):
        fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, nesterov=True, period=9), checkpoint=path)
    assert len(fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path).history) == 4


def test_each_epochs_scalars_are_written_for_tensorboard_beside_the_checkpoint(tmp_path, monkeypatch):
    written = []

    class SummaryWriter(nullcontext):
        def __init__(self, folder, purge_step):
            self.folder, self.replaced = folder, purge_step  # from this epoch on, TensorBoard forgets what it read before

        def __enter__(self):
            return self

        def add_scalar(self, name, value, epoch):
            assert self.replaced == epoch
            written.append((self.folder, name, value, epoch))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    (tmp_path / "a.tensorboard").mkdir()
    (tmp_path / "a.tensorboard" / "of an earlier run").touch()
    done = fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "a.ckpt", tensorboard=True)
    names = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    folder = str(tmp_path / "a.tensorboard")
    assert written == [(folder, name, row[name], row["epoch"]) for row in done.history for name in names]
    assert not list(tmp_path.glob("a.tensorboard/*"))


def test_the_time_budget_includes_earlier_sessions(tmp_path):
    def clock():
        return next(ticks)

    ticks = iter(range(0, 10000, 10))
    recipe = replace(RECIPE, epochs=10)
    fit(make_model(), TRAIN, VALIDATION, recipe, time_budget=20, clock=clock, checkpoint=tmp_path / "a.ckpt")
    done = fit(make_model(), TRAIN, VALIDATION, recipe, time_budget=40, clock=clock, checkpoint=tmp_path / "a.ckpt")
    assert len(done.history) == 2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    losses = iter([(0.5, 0.5), (float("nan"), 0.5)])
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(losses))
    sentence = "not finite in epoch 2; lower the learning rate. The last checkpoint is kept"
    with pytest.raises(training.Diverged, match=sentence):
        fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "a.ckpt")
    assert len(load_checkpoint(tmp_path / "a.ckpt")["history"]) == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1), checkpoint=tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="belongs to a run with batch_size 8, not 4.*--fresh"):
        fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1, batch_size=4), checkpoint=tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="belongs to a run with images None, not other"):
        other = {"about": {"images": "other"}, "checkpoint": tmp_path / "a.ckpt"}
        fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1), **other)
    with pytest.raises(UserError, match="belongs to a run with seed 0, not 1; train_images 21, not 20"):
        few = TRAIN.subset(range(20))
        fit(make_model(), few, VALIDATION, replace(RECIPE, epochs=1), seed=1, checkpoint=tmp_path / "a.ckpt")
    fresh = replace(RECIPE, epochs=1, batch_size=4)
    done = fit(make_model(), TRAIN, VALIDATION, fresh, checkpoint=tmp_path / "a.ckpt", resume=False)
    assert len(done.history) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; it must be greater than 0"),
        ({"epochs": 10**400}, "it must be a whole number of at most 1,000,000,000"),
        ({"inner_steps": 1.5}, "inner_steps is 1.5; it must be a whole number"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"batch_size": -8}, "batch_size is -8"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"momentum": -0.1}, "momentum is -0.1; it cannot be negative"),
        ({"perturbation": -0.5}, "perturbation is -0.5; it cannot be negative"),
        ({"period": 0}, "period is 0; it must be greater than 0"),
        ({"lowest_learning_rate": -1e-4}, "lowest_learning_rate is -0.0001; it cannot be negative"),
        ({"warmup_epochs": 4}, "warmup_epochs is 4; it must be less than the 4 epochs"),
        ({"optimizer": "magic"}, "no optimizer 'magic'; choose one of sgd, adam"),
        ({"schedule": "up"}, "no schedule 'up'"),
        ({"augment": "spin"}, "no augmentation 'spin'"),
        ({"time_budget": 0}, "time_budget is 0; it must be greater than 0, or None"),
        ({"patience": -1}, "patience is -1; it must be greater than 0, or None"),
    ],
)
def test_invalid_recipes_are_rejected(change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(RECIPE, **change)


@pytest.mark.parametrize("name", ["image_size", "step_epochs", "inner_steps"])
def test_a_count_must_be_greater_than_zero(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be greater than 0"):
        replace(RECIPE, **{name: 0})


RATES = ("weight_decay", "label_smoothing", "warmup_epochs", "inner_learning_rate", "perturbation_start")


@pytest.mark.parametrize("name", RATES)
def test_a_rate_cannot_be_negative(name):
    with pytest.raises(UserError, match=f"{name} is -1; it cannot be negative"):
        replace(RECIPE, **{name: -1})


BUDGETS = [{"time_budget": seconds} for seconds in (0, -1.0, math.inf, math.nan, 1e308)]


@pytest.mark.parametrize("arguments", [*BUDGETS, {"patience": 0}, {"until": 0}])
def test_invalid_budgets_are_rejected(arguments):
    with pytest.raises(UserError, match="must be greater than 0"):
        fit(make_model(), TRAIN, VALIDATION, RECIPE, **arguments)


def test_seeds_and_epochs_show_other_batches_and_validation_is_on_the_validation_images(monkeypatch):
    shown, step = [], stepping.step
    monkeypatch.setattr(stepping, "step", lambda learner, *batch: shown.append(batch[0]) or step(learner, *batch))
    for seed in (0, 1):
        model = make_model()
        done = fit(model, TRAIN, VALIDATION, replace(RECIPE, epochs=2, keep="last"), seed=seed)
    firsts = shown[::3]  # of the four epochs, of three batches each
    assert len(firsts) == 4 and not any(torch.equal(*pair) for pair in itertools.combinations(firsts, 2))
    assert training.evaluate(model, VALIDATION, RECIPE) == (done.history[-1]["val_loss"], done.history[-1]["val_accuracy"])


def test_a_step_is_in_mixed_precision_and_in_the_fast_context(monkeypatch):
    monkeypatch.setattr(stepping, "autocast_dtype", lambda device: torch.bfloat16)
    seen = []

    class Seen(Frozen):
        def forward(self, images):
            seen.append((torch.is_autocast_enabled("cpu"), F.relu(images, inplace=True) is not images))
            return super().forward(images)

    training.train_epoch(training.Learner(Seen(), RECIPE), [(torch.randn(6, 3, 4, 4), torch.arange(6) % 3)])
    assert seen == [(True, True)]


def test_the_loss_is_computed_in_full_precision_from_scores_in_half(monkeypatch):
    monkeypatch.setattr(stepping, "autocast_dtype", lambda device: torch.bfloat16)
    images, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 3
    scores, loss = stepping.gradients(training.Learner(Narrow(6), RECIPE), images, labels)
    assert (scores.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(F.cross_entropy(scores.double(), labels).item(), rel=1e-6)
