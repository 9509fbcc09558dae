"""Another arrangement is the same network: same parameters, same scores, same gradients, and it outlives a kill."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import data, models, training
from helpers.runtime import UserError, seed_epoch
from helpers.training import layout as arrange
from helpers.training import loop
from helpers.training.layout import PLAIN, Arrangement

RECIPE = training.Recipe(3, 8, 32, (0.5,) * 3, (0.5,) * 3, learning_rate=0.01, mixed_precision=False)
SPLITS = data.sample("cifar10", counts=(20, 10, 10))


def small() -> nn.Module:
    """Two grouped convolutions, eight groups of four channels, one of them with a stride and a bias."""
    seed_epoch(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.Conv2d(32, 32, 3, 1, 1, groups=8, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@pytest.mark.parametrize("arrangement", [PLAIN, Arrangement(), Arrangement(True, 16), Arrangement(False, 64)])
@pytest.mark.parametrize("name", ["resnext29_32x4d", "torchvision/resnext50_32x4d"])
def test_parameters_scores_and_gradients_stay(name, arrangement):
    """In double precision, where BatchNorm over a few images does not blow rounding up."""
    seed_epoch(0)
    model, images = models.build(name, 10).double().train(), torch.randn(4, 3, 32, 32).double()
    names = list(model.state_dict())

    def look() -> torch.Tensor:
        scores = model(images)
        first = torch.autograd.grad(scores.square().sum(), model.layer1[0].conv2.weight)[0]
        return torch.cat([scores.detach().flatten(), first.flatten()])

    before, same = look(), dict(model.named_parameters())
    arrange.arrange(model, arrangement)
    widths = {conv.in_channels // conv.groups * conv.merged for conv in convolutions(model)}
    assert min(widths) >= arrangement.group_width and list(model.state_dict()) == names
    assert all(same[key] is value for key, value in model.named_parameters())
    after = look()
    assert (after - before).norm() < 1e-9 * before.norm()
    arrange.arrange(model, PLAIN)
    assert {type(conv) for conv in convolutions(model)} == {nn.Conv2d} and look().equal(before)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in model.modules() if isinstance(conv, nn.Conv2d) and conv.groups > 1]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({}, Arrangement(True, 1)),
        ({PLAIN: 0.95}, Arrangement(True, 1)),
        ({PLAIN: 0.5}, PLAIN),
        ({PLAIN: 0.5, Arrangement(False, 64): 0.3, Arrangement(True, 16): 0.1}, Arrangement(False, 64)),
        ({Arrangement(True, 16): 0.8, Arrangement(True, 64): 0.75}, Arrangement(True, 16)),
        ({Arrangement(): math.inf, PLAIN: math.inf}, Arrangement(True, 16)),
    ],
)
def test_only_what_is_clearly_faster_is_chosen(seconds, expected):
    assert arrange.fastest(lambda arrangement: seconds.get(arrangement, 1.0)) == expected


def test_a_trial_leaves_the_model_alone_and_lack_of_memory_is_no_choice():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []

    def step(candidate):
        steps.append([conv.merged for conv in convolutions(candidate)])
        candidate(torch.randn(2, 3, 8, 8)).sum().backward()

    assert 0 < arrange.step_seconds(model, Arrangement(True, 16), step) < math.inf
    assert steps == [[4, 4]] * (1 + arrange.STEPS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    def too_large(candidate):
        raise torch.OutOfMemoryError

    assert arrange.step_seconds(model, PLAIN, too_large) == math.inf


def test_a_resumed_run_keeps_its_arrangement_and_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    def fit(**more):
        model = small()
        fitted = training.fit(model, SPLITS.train, SPLITS.validation, RECIPE, **more)
        return fitted, torch.cat([value.double().flatten() for value in model.state_dict().values()])

    _, plain = fit()
    monkeypatch.setattr(loop, "choose_arrangement", lambda *_: Arrangement(False, 16))
    whole, weights = fit()
    assert whole.arrangement == Arrangement(False, 16) and (weights - plain).norm() < 1e-3 * plain.norm()
    fit(checkpoint=tmp_path / "a.ckpt", until=1)
    monkeypatch.setattr(loop, "choose_arrangement", lambda *_: pytest.fail("it was measured again"))
    resumed, again = fit(checkpoint=tmp_path / "a.ckpt")
    assert resumed.arrangement == whole.arrangement and len(resumed.history) == 3 and torch.equal(again, weights)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_ends_with_the_same_weights():
    """Eight, eight and four images: two programs, the same training."""
    ends = []
    for compiled in (False, True):
        model = small()
        recipe = replace(RECIPE, epochs=1, compiled=compiled)
        training.fit(model, SPLITS.train, SPLITS.validation, recipe)
        assert list(model.state_dict()) == list(small().state_dict())
        ends.append(torch.cat([value.double().flatten() for value in model.state_dict().values()]))
    assert (ends[1] - ends[0]).norm() < 1e-4 * ends[0].norm()


def test_without_a_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and none is here; install g\+\+, or train without --compile"):
        training.fit(small(), SPLITS.train, SPLITS.validation, replace(RECIPE, compiled=True))
