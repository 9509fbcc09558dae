"""What a recipe may add to plain training, each checked against a closed form or a step worked out by hand."""

import copy
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from helpers import data, training
from helpers.runtime import UserError
from helpers.tests.training.test_optim import quadratic
from helpers.tests.training.test_training import RECIPE, TRAIN, VALIDATION, make_model, same
from helpers.training import loop
from helpers.training import step as stepping
from helpers.training.average import Average
from helpers.training.perturbation import AdversarialModelPerturbation, along_momentum, step_clipped
from helpers.training.recipe import is_perturbed, learning_rate, pixels_at


def weights_of(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Linear(nn.Module):
    """One weight per class: with two classes, equal weights and an image of value x, the gradient is ∓x/2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * self.weight


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("radius", [None, 1e-9])
def test_the_norm_of_all_gradients_is_clipped_in_a_step(scale, parts, radius):
    recipe = replace(RECIPE, learning_rate=0.1, momentum=0.0, clip_norm=0.5, perturbation=radius, mixed_precision=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    learner = training.Learner(Linear(), recipe, scaler=scaler, parts=parts)
    training.train_epoch(learner, [(torch.full((2, 3, 4, 4), 8.0), torch.tensor([0, 0]))])
    # The gradient is (−4, 4), of length 4√2; clipped to 0.5, it is (−1, 1) · 0.5/√2.
    step = 0.1 * 0.5 / math.sqrt(2)
    assert learner.model.weight.tolist() == pytest.approx([step, -step], rel=1e-5)


@pytest.mark.parametrize("scale", [None, 4096.0])
def test_the_norm_is_clipped_in_every_pass_of_a_perturbed_step(scale):
    weight = weights_of(3.0, 4.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    closure, seen = quadratic(weight, 1.0, scaler)
    AdversarialModelPerturbation([weight], lr=0.1, epsilon=10, inner_lr=2.0, clip_norm=1.0).step(closure, scaler)
    # The gradient (3, 4) is clipped to (0.6, 0.8), and twice that is added; there, (4.2, 5.6) is clipped to the same.
    assert seen[1].tolist() == pytest.approx([4.2, 5.6], rel=1e-5)
    assert weight.tolist() == pytest.approx([2.94, 3.92], rel=1e-5)


def test_a_gradient_within_the_norm_is_not_changed():
    plain, clipped = make_model(), make_model()
    training.fit(plain, TRAIN, VALIDATION, replace(RECIPE, epochs=1))
    training.fit(clipped, TRAIN, VALIDATION, replace(RECIPE, epochs=1, clip_norm=1e6))
    assert same(plain, clipped)


def test_clipping_covers_all_parameter_groups_and_matches_torchs():
    weights = [weights_of(3.0), weights_of(4.0, 12.0)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    for weight in weights:
        weight.grad = weight.detach().clone()
    expected = [weight.detach() - weight.grad * (2.0 / (13 + 1e-6)) for weight in weights]
    step_clipped(optimizer, None, 2.0)
    assert all(torch.allclose(weight, value) for weight, value in zip(weights, expected, strict=True))


def test_a_momentum_perturbed_step_takes_its_gradient_at_weights_moved_against_the_momentum():
    weight = weights_of(3.0, 4.0)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    closure, seen = quadratic(weight, 1.0)
    for _ in range(2):
        with along_momentum(optimizer, 0.5):
            closure()
        optimizer.step()
    # First step, no momentum yet: (3, 4) − 0.1 · (3, 4) = (2.7, 3.6); the momentum becomes (3, 4), of direction (0.6, 0.8).
    # Second, at (2.7, 3.6) − 0.5 · (0.6, 0.8) = (2.4, 3.2): the momentum becomes 0.5 · (3, 4) + (2.4, 3.2) = (3.9, 5.2).
    assert [value for point in seen for value in point.tolist()] == pytest.approx([3, 4, 2.4, 3.2])
    assert weight.tolist() == pytest.approx([2.7 - 0.39, 3.6 - 0.52])


def test_a_momentum_perturbation_costs_one_gradient_and_changes_the_run():
    plain, moved = make_model(), make_model()
    training.fit(plain, TRAIN, VALIDATION, RECIPE)
    done = training.fit(moved, TRAIN, VALIDATION, replace(RECIPE, momentum_perturbation=0.5))
    assert not same(plain, moved)
    assert moved[1].num_batches_tracked == 3 * done.best["epoch"], "three batches per epoch, each counted once"


def test_a_tiny_momentum_perturbation_trains_like_plain_sgd():
    plain, moved, recipe = make_model(), make_model(), replace(RECIPE, epochs=1, mixed_precision=False)
    training.fit(plain, TRAIN, VALIDATION, recipe)
    training.fit(moved, TRAIN, VALIDATION, replace(recipe, momentum_perturbation=1e-9))
    torch.testing.assert_close(moved.state_dict(), plain.state_dict())


def test_the_linear_schedule_in_closed_form():
    recipe = replace(RECIPE, epochs=6, learning_rate=1.0, schedule="linear", warmup_epochs=2, lowest_learning_rate=0.2)
    rates = [learning_rate(recipe, progress) for progress in (0, 1, 2, 3, 4, 5, 6)]
    assert rates == pytest.approx([0, 0.5, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_image_size_depends_on_the_share_of_the_run_and_each_step_uses_it(monkeypatch):
    recipe = replace(RECIPE, epochs=2, sizes=((0.0, 4), (0.4, 6), (0.7, 8)))
    assert [pixels_at(recipe, share) for share in (0, 0.39, 0.4, 0.69, 0.7, 0.99)] == [4, 4, 6, 6, 8, 8]
    assert pixels_at(replace(recipe, sizes=((0.5, 4), (0.8, 8))), 0.2) == 8, "image_size applies until the first entry"
    seen, step = [], stepping.step

    def note(learner, images, labels):
        seen.append(images.shape[-1])
        assert images.is_contiguous(memory_format=torch.channels_last)
        return step(learner, images, labels)

    monkeypatch.setattr(stepping, "step", note)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    training.fit(model, TRAIN, VALIDATION, recipe)
    assert seen == [4, 4, 4, 6, 6, 8], "steps begin at 0, 1/6, 1/3, 1/2, 2/3 and 5/6 of the run"


def test_perturbed_steps_can_start_late_and_come_every_few_steps(monkeypatch):
    recipe = replace(RECIPE, perturbation_start=0.5, perturbation_every=2)
    assert [is_perturbed(recipe, share, step) for share, step in ((0.4, 0), (0.5, 0), (0.5, 1), (0.9, 4))] == [0, 1, 0, 1]
    passes, gradients = [], stepping.gradients
    monkeypatch.setattr(stepping, "gradients", lambda *batch: (passes.append(None), gradients(*batch))[1])
    counts = []
    for changes in ({"perturbation": 0.1}, {"perturbation": None}):
        training.fit(make_model(), TRAIN, VALIDATION, replace(recipe, epochs=4, **changes))
        counts.append(len(passes))
        passes.clear()
    assert counts == [12 + 3, 12], "of 12 steps, counted from 0, steps 6, 8 and 10 are perturbed"


def test_a_run_whose_perturbation_never_starts_is_plain_training():
    late, plain = make_model(), make_model()
    training.fit(late, TRAIN, VALIDATION, replace(RECIPE, perturbation=0.3, perturbation_start=0.99, clip_norm=3.0))
    training.fit(plain, TRAIN, VALIDATION, replace(RECIPE, clip_norm=3.0))
    assert same(late, plain)


def test_the_moving_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = Average(model, decay=0.25)
    average.pair()
    for value in (4.0, 8.0):
        model.weight.data.fill_(value)
        model.running_mean.fill_(10 * value)
        model.num_batches_tracked += 1
        average.update()
    # Decays: min(0.25, 2/11), from the initial weight 1, then min(0.25, 3/12): 4 − 3 · 2/11 = 38/11; 8 − (8 − 38/11) / 4.
    assert average.values["weight"].item() == pytest.approx(6 + 38 / 44)
    assert average.values["running_mean"].item() == pytest.approx(60 + (40 - 40 * 2 / 11) / 4)
    with average.applied():
        assert model.num_batches_tracked == 2 and model.weight.item() == pytest.approx(6 + 38 / 44)
    assert model.weight.item() == 8.0


def test_the_average_uses_the_models_memory_layout_and_looks_its_tensors_up_once(monkeypatch):
    """On a GPU, tensors with other strides would take a launch each, and looking up 300 tensors takes milliseconds."""
    model = nn.Conv2d(2, 3, 3)
    average = Average(model, decay=0.0)
    model.to(memory_format=torch.channels_last)
    average.pair()
    average.update()
    assert average.values["weight"].stride() == model.weight.stride()
    monkeypatch.setattr(model, "state_dict", None)
    model.weight.data.fill_(2.0)
    average.update()
    assert (average.values["weight"] == 2).all() and not average.values["weight"].requires_grad


def test_memory_that_runs_out_for_the_average_does_so_before_the_first_step(monkeypatch):
    """After it, the batch would be split into parts, and trained on a second time."""
    model = make_model()
    before, learner = copy.deepcopy(model), training.Learner(model, replace(RECIPE, ema=0.9))
    allocated = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr("helpers.training.average.torch.empty_like", allocated)
    with pytest.raises(UserError, match="Not even one image fits"):
        training.train_epoch(learner, [(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)])
    assert allocated.called and same(model, before)


def test_the_averaged_weights_are_the_ones_validated_and_kept(monkeypatch):
    seen, evaluate, learners, train_epoch = [], loop.evaluate, [], loop.train_epoch

    def note(model, *rest):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *rest)

    monkeypatch.setattr(loop, "evaluate", note)
    monkeypatch.setattr(loop, "train_epoch", lambda *given: (learners.append(given[0]), train_epoch(*given))[1])
    model, plain = make_model(), make_model()
    done = training.fit(model, TRAIN, VALIDATION, replace(RECIPE, ema=0.5))
    values = seen[done.best["epoch"] - 1]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in values.items())
    assert all(torch.equal(value, seen[-1][name]) for name, value in learners[0].average.values.items())
    monkeypatch.setattr(loop, "evaluate", evaluate)
    done_plain = training.fit(plain, TRAIN, VALIDATION, RECIPE)
    assert [row["train_loss"] for row in done.history] == [row["train_loss"] for row in done_plain.history]
    assert [row["val_loss"] for row in done.history] != [row["val_loss"] for row in done_plain.history]


@pytest.mark.parametrize("augment", ["flip", "resized_crop_flip"])
def test_alternating_flips_mirror_each_image_in_every_other_epoch(augment):
    recipe = replace(RECIPE, augment=augment, padding=0, flip="alternating", batch_size=7)
    split = data.Split(torch.arange(400).view(100, 1, 1, 4).expand(-1, 3, 4, -1).to(torch.uint8), torch.arange(100), [])
    recipe = replace(recipe, image_size=4, mean=(0,) * 3, std=(1 / 255,) * 3)

    def mirrored(epoch: int, seed: int = 5) -> torch.Tensor:
        flips = torch.zeros(100, dtype=torch.bool)
        for images, labels in loop.batches_of_epoch(split, recipe, seed, epoch):
            flips[labels] = images[:, 0, 0, 0] > images[:, 0, 0, 3]
        return flips

    first = mirrored(1)
    assert 30 < first.sum() < 70
    assert torch.equal(mirrored(2), ~first) and torch.equal(mirrored(3), first) and torch.equal(mirrored(8), ~first)
    assert not torch.equal(mirrored(1, seed=6), first)


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_dropout_draws_other_numbers_in_every_epoch(flip):
    drawn = []
    for epoch in (1, 2):
        loop.batches_of_epoch(TRAIN, replace(RECIPE, flip=flip), 5, epoch)
        drawn.append(torch.rand(8))  # as dropout does
    assert not torch.equal(*drawn)


def test_flip_test_always_flips_the_same_images_and_mirrored_scores_are_means():
    model, recipe = make_model().eval(), replace(RECIPE, mixed_precision=False)
    plain = training.predict(model, VALIDATION, recipe)
    flipped = replace(VALIDATION, images=VALIDATION.images.flip(-1))
    mirror = training.predict(model, flipped, recipe)
    coins = data.sample_mirrors(len(VALIDATION), torch.Generator().manual_seed(0))
    assert 0 < coins.sum() < len(VALIDATION)
    tested = training.predict(model, VALIDATION, replace(recipe, flip_test=True))
    assert torch.equal(tested, torch.where(coins[:, None], mirror, plain))
    averaged = training.predict(model, VALIDATION, recipe, mirrored=True)
    torch.testing.assert_close(averaged, (plain + mirror) / 2)


def test_cudnn_chooses_algorithms_and_precision_only_if_the_recipe_lets_it():
    for exact, mixed in ((True, True), (False, True), (True, False)):
        with stepping.convolutions(torch.device("cuda"), replace(RECIPE, deterministic=exact, mixed_precision=mixed)):
            flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
        assert flags == (exact, not exact, mixed), "without mixed precision, no TF32 either"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be a finite number"),
        ({"label_smoothing": math.nan}, "label_smoothing is nan; it must be a finite number"),
        ({"momentum": math.inf}, "momentum is inf; it must be a finite number"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be less than 1"),
        ({"mean": (0.5, math.nan, 0.5)}, "cannot be normalised by mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std not 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be greater than 0, or None"),
        ({"ema": 1.0}, "ema is 1.0; it must be less than 1"),
        ({"ema": -0.1}, "ema is -0.1; it cannot be negative"),
        ({"perturbation_start": 1.0}, "perturbation_start is 1.0; it must be less than 1"),
        ({"perturbation_every": 0}, "perturbation_every is 0; it must be greater than 0"),
        ({"momentum_perturbation": -1.0}, "momentum_perturbation is -1.0; it cannot be negative"),
        ({"momentum_perturbation": 0.1, "optimizer": "adam"}, "needs the momentum of SGD"),
        ({"momentum_perturbation": 0.1, "momentum": 0.0}, "needs the momentum of SGD"),
        ({"momentum_perturbation": 0.1, "perturbation": 0.1}, "Choose either a perturbation or a momentum_perturbation"),
        ({"cutout": 9}, "The cutout is 9 pixels; choose 0 to 8"),
        ({"border": "wrap"}, "There is no border 'wrap'"),
        ({"flip": "never"}, "There is no flip 'never'"),
        ({"flip": "alternating", "augment": "none"}, "flip is 'alternating', but augment is 'none'"),
        ({"initialisation": "zero"}, "no initialisation 'zero'; choose one of torch, he"),
        ({"resize": "stretch"}, "no resize 'stretch'; choose one of crop, squash"),
        ({"sizes": ((0.0, 4),)}, r"sizes ends with \(0.0, 4\); the last fifth of a run must train at full size"),
        ({"sizes": ((0.0, 4), (0.9, 8))}, "the last fifth of a run must train at full size: end with .0.8 or less, 8."),
        ({"sizes": ((0.5, 4), (0.2, 8))}, "these fractions of the run must rise"),
        ({"sizes": ((math.nan, 8),)}, "these fractions of the run must rise"),
        ({"sizes": ((0.0, 9), (0.5, 8))}, "sizes has 9 pixels; choose whole numbers from 1 to 8"),
        ({"time_budget": math.inf}, "time_budget is inf; it must be a finite number"),
    ],
)
def test_invalid_ingredients_are_rejected(change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(RECIPE, **change)


def test_a_recipe_read_from_a_record_is_the_same_recipe():
    recipe = replace(RECIPE, sizes=((0.0, 4), (0.5, 8)))
    assert replace(recipe, sizes=[[0.0, 4], [0.5, 8]]) == recipe
