"""Memory layouts: the parameters, scores and gradients are the same in each, and a resumed run keeps its layout."""

import math
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import data, models, training
from helpers.runtime import UserError, seed_epoch
from helpers.training import layout, loop

RECIPE = training.Recipe(3, 8, 32, (0.5,) * 3, (0.5,) * 3, learning_rate=0.01, mixed_precision=False)
SPLITS = data.sample("cifar10", counts=(20, 10, 10))


def small() -> nn.Module:
    """Two grouped convolutions, each with eight groups of four channels; one has a stride and a bias."""
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


@pytest.mark.parametrize("name", ["resnext29_32x4d", "torchvision/resnext50_32x4d"])
def test_changing_the_layout_keeps_parameters_scores_and_gradients(name):
    """In double precision, where BatchNorm over a few images does not amplify rounding errors."""
    seed_epoch(0)
    model, images = models.build(name, 10).double().train(), torch.randn(4, 3, 32, 32).double()
    names = list(model.state_dict())

    def scores_and_gradient() -> torch.Tensor:
        scores = model(images)
        first = torch.autograd.grad(scores.square().sum(), model.layer1[0].conv2.weight)[0]
        return torch.cat([scores.detach().flatten(), first.flatten()])

    before, parameters = scores_and_gradient(), dict(model.named_parameters())
    assert layout.prepare(model, RECIPE) is model and list(model.state_dict()) == names
    assert all(parameters[key] is value for key, value in model.named_parameters())
    assert model.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    after = scores_and_gradient()
    assert (after - before).norm() < 1e-9 * before.norm()
    layout.prepare(model, RECIPE, channels_last=False)
    assert scores_and_gradient().equal(before)
    seen = []
    model.layer1[0].conv2.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    model(images.to(memory_format=torch.channels_last))
    assert all(tensor.is_contiguous() for tensor in seen), "one channels-last input would switch all later layers to it"


def test_on_a_cpu_the_recipe_decides():
    assert training.choose_channels_last(small(), SPLITS.train, RECIPE)
    assert not training.choose_channels_last(small(), SPLITS.train, replace(RECIPE, channels_last=False))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((1.0, 0.95), True), ((1.0, 0.5), False), ((0.5, 1.0), True), ((math.inf, 1.0), False)]
    + [((1.0, math.inf), True), ((math.inf, math.inf), True)],
)
def test_channels_last_is_used_unless_the_other_layout_is_clearly_faster(seconds, expected):
    assert layout.fastest(dict(zip((True, False), seconds, strict=True))) == expected


def test_layouts_are_timed_in_turns_after_a_second_of_warm_up_and_a_failing_one_takes_forever():
    now, calls = [0.0], []

    def step_of(name, seconds):
        def step():
            calls.append(name)
            now[0] += seconds if len(calls) > 1 else 9.0  # the first call compiles, and must not count
            if seconds == 7:
                raise RuntimeError("GET was unable to find an engine to execute this computation")

        return step

    found = layout.step_seconds({"a": step_of("a", 0.3), "b": step_of("b", 0.4), "c": step_of("c", 7)}, lambda: now[0])
    assert found == pytest.approx({"a": 0.3, "b": 0.4, "c": math.inf})
    assert "".join(calls) == "a" + "bbb" + "c" + "abc" * layout.ROUNDS


def test_a_resumed_run_keeps_its_layout_and_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    def fit(**more):
        model = small()
        fitted = training.fit(model, SPLITS.train, SPLITS.validation, RECIPE, **more)
        return fitted, torch.cat([value.double().flatten() for value in model.state_dict().values()])

    _, default = fit()
    monkeypatch.setattr(loop, "choose_channels_last", lambda *_: False)
    whole, weights = fit()
    assert not whole.channels_last and (weights - default).norm() < 1e-3 * default.norm()
    fit(checkpoint=tmp_path / "a.ckpt", until=1)
    monkeypatch.setattr(loop, "choose_channels_last", lambda *_: pytest.fail("the layouts were timed again"))
    resumed, again = fit(checkpoint=tmp_path / "a.ckpt")
    assert not resumed.channels_last and len(resumed.history) == 3 and torch.equal(again, weights)


COMPILER = any(map(shutil.which, ("c++", "g++", "clang++"))) and Path(sysconfig.get_path("include"), "Python.h").is_file()


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler and Python's headers")
def test_a_compiled_run_ends_with_the_same_weights():
    """Batches of eight, eight and four images: two compiled graphs, the same training."""
    ends = []
    for compiled in (False, True):
        model = small()
        recipe = replace(RECIPE, epochs=1, compiled=compiled)
        training.fit(model, SPLITS.train, SPLITS.validation, recipe)
        assert list(model.state_dict()) == list(small().state_dict())
        ends.append(torch.cat([value.double().flatten() for value in model.state_dict().values()]))
    assert (ends[1] - ends[0]).norm() < 1e-4 * ends[0].norm()


@pytest.mark.parametrize("name", ["resnext29_32x4d", "zoo_resnext1"])
def test_a_learner_takes_a_compiled_network(name):
    """As in `bench --compile`. A compiled network raises a TypeError if asked for its length, unless it is a Sequential."""
    model = models.build(name, 10)
    compiled = torch.compile(model)
    assert training.Learner(model, RECIPE, called=compiled).called is compiled


def test_compiling_where_it_does_not_work_gives_a_clear_error(monkeypatch):
    """As where a compiler is found, but not Python's headers; torch's error is an InductorError of many lines."""

    def fail(_):
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(UserError, match=r"install a C\+\+ compiler and Python's headers, or train without --compile"):
        training.fit(small(), SPLITS.train, SPLITS.validation, replace(RECIPE, compiled=True))
