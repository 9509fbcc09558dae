"""What is slow on a CPU is computed in another way, with the same results; everything else is unchanged."""

import itertools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import models, training
from helpers.training import convolutions
from helpers.training.convolutions import FasterOnCPU

SHAPES = [(3, 1, 1, 2), (3, 2, 1, 4), (5, 1, 2, 2), (1, 2, 0, 3), (3, 1, 1, 1), (3, 1, 0, 4), ((3, 1), (2, 1), (1, 0), (4, 1))]


@pytest.mark.parametrize(("shape", "bias"), list(itertools.product(SHAPES, (True, False))))
def test_output_and_gradients_match_the_convolution(monkeypatch, shape, bias):
    kernel, stride, padding, side = shape
    layer = nn.Conv2d(5, 200, kernel, stride, padding, bias=bias).double().to(memory_format=torch.channels_last)
    images = torch.randn(3, 5, *((side, side) if isinstance(side, int) else side)).double().requires_grad_()
    calls = []
    monkeypatch.setattr(convolutions, "product", lambda *given, own=convolutions.product: calls.append(1) or own(*given))
    results = []
    for context in (torch.enable_grad(), FasterOnCPU()):
        with context:
            output = layer(images)
        results.append([output, *torch.autograd.grad(output.square().sum(), [images, *layer.parameters()])])
    assert calls == [1]
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 3),  # too few weights
        (nn.Conv2d(4, 40, 3, padding=1, groups=2), 2),
        (nn.Conv2d(4, 40, 3, padding=2, dilation=2), 2),
        (nn.Conv2d(4, 40, 3, padding="same"), 2),
        (nn.Conv2d(4, 40, 1, padding=1, stride=2), 2),  # some output pixels see only the border
    ],
)
def test_other_convolutions_are_unchanged(monkeypatch, layer, side):
    monkeypatch.setattr(convolutions, "product", None)
    images = torch.randn(3, 4, side, side)
    expected = layer(images)
    with FasterOnCPU():
        assert layer(images).equal(expected)


def test_single_images_and_kernels_that_do_not_fit_are_left_to_torch():
    layer = nn.Conv2d(5, 200, 3, padding=1)
    image = torch.randn(5, 2, 2)
    with FasterOnCPU():
        assert layer(image).shape == (200, 2, 2)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            nn.Conv2d(3, 200, 5, padding=1)(torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("channels", "groups", "fewer"),
    [(128, 32, 16), (16, 8, 2), (6, 3, 1), (60, 10, 5), (42, 14, 2), (4, 4, 4), (32, 4, 4)],  # the last two: depthwise, wide
)
def test_narrow_groups_are_joined_without_a_change_of_the_results(channels, groups, fewer):
    weight = torch.randn(2 * channels, channels // groups, 3, 3).double().requires_grad_()
    images, results = torch.randn(2, channels, 5, 5).double(), []
    for joined in (False, True):
        wide, number = convolutions.joined(weight, groups) if joined else (weight, groups)
        output = nn.functional.conv2d(images, wide, None, 2, 1, 1, number)
        results.append([output, *torch.autograd.grad(output.square().sum(), weight)])
    assert number == fewer
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_groups_are_joined_only_in_bf16(monkeypatch):
    given = []
    monkeypatch.setattr(convolutions, "joined", lambda *args: given.append(args[1]) or args)
    layer, images = nn.Conv2d(128, 128, 3, groups=32), torch.randn(1, 128, 5, 5)
    for half in (False, True):
        with FasterOnCPU(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(images)
        assert given == [32] * half


def test_relu_leaves_its_input_as_it_is():
    images = torch.randn(3, 4)
    kept = images.clone()
    with FasterOnCPU():
        assert nn.ReLU(inplace=True)(images).equal(kept.clamp_min(0)) and images.equal(kept)


@pytest.mark.parametrize("network", ["torchvision/resnet18", "torchvision/resnext50_32x4d", "resnext29_under5m"])
def test_a_whole_network_has_the_same_gradient(network):
    model, images = models.build(network, 10).double(), torch.randn(4, 3, 32, 32).double()
    found = []
    for context in (torch.enable_grad(), FasterOnCPU()):
        with context:
            loss = model(images).square().sum()
        found.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, model.parameters())]))
    assert (found[1] - found[0]).norm() < 1e-9 * found[0].norm()


def test_without_mixed_precision_a_step_is_the_textbooks():
    recipe = training.Recipe(1, 1, 8, (0.5,) * 3, (0.5,) * 3)
    cpu, model = torch.device("cpu"), nn.Conv2d(1, 1, 1)
    for mixed, context, kind in ((True, FasterOnCPU, "fused"), (False, nullcontext, "foreach")):
        exact = replace(recipe, mixed_precision=mixed)
        assert isinstance(convolutions.convolutions(cpu, exact), context)
        assert training.make_optimizer(model, exact).defaults[kind] is True
    assert isinstance(convolutions.convolutions(cpu, replace(recipe, compiled=True)), nullcontext)
