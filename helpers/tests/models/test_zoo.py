"""Report `zoo`'s networks, layer by layer, compared with the papers' definitions and the report's words."""

import math

import pytest
import torch
from torch import nn

from helpers import models
from helpers.models.inspect import count_parameters
from helpers.models.resnet import initialise_he
from helpers.models.zoo import SimpleNet, WideResNet, ZooResNeXt


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The output shape of each child of a network with 100 classes, for one CIFAR image."""
    return {row.name: row.output_shape[1:] for row in models.layer_table(models.build(name, 100), (1, 3, 32, 32))}


@pytest.mark.parametrize(("name", "blocks", "width"), [("wrn16_2", 2, 2), ("wrn16_4", 2, 4), ("wrn28_2", 4, 2)])
def test_wide_residual_networks_match_the_papers_table_1(name, blocks, width):
    rows = shapes(name)
    assert rows["conv1"] == (16, 32, 32)
    assert [rows[f"layer{k}"] for k in (1, 2, 3)] == [
        (16 * width, 32, 32),
        (32 * width, 16, 16),
        (64 * width, 8, 8),
    ]
    model = models.build(name, 100)
    assert [len(model.get_submodule(f"layer{k}")) for k in (1, 2, 3)] == [blocks] * 3
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    main = [layer for layer in convolutions if layer.kernel_size == (3, 3)]
    assert len(main) == 1 + 6 * blocks and len(convolutions) - len(main) == 3
    assert all(layer.bias is None for layer in convolutions)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == 6 * blocks + 1
    order = list(rows)
    assert order.index("bn1") > order.index("layer3"), "one BatchNorm after the last block, none after the stem"


def test_wrn_28_10_and_40_4_have_the_papers_sizes():
    # Zagoruyko and Komodakis 2016, table 5.
    with torch.device("meta"):
        sizes = [count_parameters(WideResNet(10, depth, width)) for depth, width in ((28, 10), (40, 4), (16, 8))]
    assert [round(size / 1e6, 1) for size in sizes] == [36.5, 8.9, 11.0]


@pytest.mark.parametrize("depth", [4, 15, 17, 29])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}, but a wide residual network has 6N . 4 layers"):
        WideResNet(10, depth, 2)


def test_simplenet_has_the_papers_thirteen_layers():
    model = models.build("simplenet", 100)
    layers = [model.get_submodule(f"layer{number}") for number in range(1, 14)]
    convolutions = [layer[0] for layer in layers]
    assert [c.out_channels for c in convolutions] == [64, *[128] * 5, *[256] * 3, 512, 2048, 256, 256]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 10 + [(1, 1)] * 2 + [(3, 3)]
    assert all(c.bias is not None and c.stride == (1, 1) for c in convolutions)
    assert all(isinstance(layer[1], nn.BatchNorm2d) and isinstance(layer[2], nn.ReLU) for layer in layers)
    assert {layer[1].momentum for layer in layers} == {0.05}, "a moving average that keeps 0.95"
    dropped = [[part.p for part in layer if isinstance(part, nn.Dropout)] for layer in layers]
    assert dropped == [[0.2]] * 12 + [[]]


def test_simplenets_moving_average_keeps_95_percent():
    layer = SimpleNet(10).train().layer1
    images = torch.randn(4, 3, 8, 8)
    layer(images)
    seen = layer[0](images).mean((0, 2, 3))
    assert torch.allclose(layer[1].running_mean, 0.95 * torch.zeros(64) + 0.05 * seen, atol=1e-6)


def test_simplenet_pools_after_layers_4_7_9_and_12_and_globally_at_the_end():
    rows = shapes("simplenet")
    sides = [rows[f"layer{number}"][1] for number in range(1, 14)]
    assert sides == [32, 32, 32, 16, 16, 16, 8, 8, 4, 4, 4, 2, 2], "no pooling after the 10th, as in the paper"
    assert rows["maxpool"] == (256, 1, 1)
    layer = SimpleNet(10).eval().layer4
    images = torch.randn(1, 128, 6, 6)
    unpooled = layer[2](layer[1](layer[0](images)))
    assert torch.equal(layer(images), unpooled.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))


def reported(name: str) -> list[tuple[int, int]]:
    """The report's row, such as '1: 32, 16; 2: 16, 8', as pairs."""
    table = {
        "zoo_resnext1": "1: 32, 16; 2: 16, 8",
        "zoo_resnext2": "1: 64, 32; 2: 32, 16; 3: 16, 8",
        "zoo_resnext3": "1: 16, 8; 2: 8, 4; 3: 4, 4",
    }
    return [tuple(map(int, part.split(": ")[1].split(", "))) for part in table[name].split("; ")]


@pytest.mark.parametrize("name", ["zoo_resnext1", "zoo_resnext2", "zoo_resnext3"])
def test_the_reports_resnexts_match_its_table_row_by_row(name):
    rows, stages = shapes(name), reported(name)
    side = 30
    assert rows["conv1"] == (stages[0][0], side, side), "no padding in the first layer"
    for number, (channels, after) in enumerate(stages, start=1):
        assert rows[f"layer{number}"] == (channels, side, side)
        side = (side + 1) // 2
        assert rows[f"transition{number}"] == (after, side, side)
    model = models.build(name, 100)
    for number in range(1, len(stages) + 1):
        stage = model.get_submodule(f"layer{number}")
        assert len(stage) == 3 and {block.conv2.groups for block in stage} == {32}
        assert {block.conv2.in_channels for block in stage} == {128}, "32 paths of width 4"


def by_hand(stages: list[tuple[int, int]], num_classes: int) -> int:
    """The parameters of a home-made ResNeXt, added up."""
    total = 27 * stages[0][0] + 2 * stages[0][0]
    for channels, after in stages:
        block = channels * 128 + 128 * 4 * 9 + 128 * channels + 2 * (128 + 128 + channels)
        total += 3 * block + channels * after * 9 + after
    return total + (stages[-1][1] + 1) * num_classes


def test_the_home_made_resnexts_match_hand_counts():
    for name in ("zoo_resnext1", "zoo_resnext2", "zoo_resnext3"):
        assert count_parameters(models.build(name, 100)) == by_hand(reported(name), 100)
    assert count_parameters(models.build("zoo_resnext1_doubling", 100)) == by_hand([(12, 24), (24, 48)], 100)
    assert count_parameters(models.build("zoo_resnext1_doubling_wide", 100)) == by_hand([(32, 64), (64, 128)], 100)


def test_doubling_differs_from_halving_only_in_channels_and_has_about_as_many_parameters():
    halving, doubling = (models.build(f"zoo_resnext1{end}", 100) for end in ("", "_doubling"))
    assert [name for name, _ in halving.named_modules()] == [name for name, _ in doubling.named_modules()]
    assert abs(count_parameters(doubling) / count_parameters(halving) - 1) < 0.02
    down, up = shapes("zoo_resnext1"), shapes("zoo_resnext1_doubling")
    assert [down[f"transition{k}"][0] / down[f"layer{k}"][0] for k in (1, 2)] == [0.5, 0.5]
    assert [up[f"transition{k}"][0] / up[f"layer{k}"][0] for k in (1, 2)] == [2, 2]
    assert [down[name][1:] for name in down] == [up[name][1:] for name in up], "feature maps of the same size"


def test_rectified_scores_are_the_scores_clamped_at_zero():
    torch.manual_seed(0)
    plain, rectified = (models.build(f"zoo_resnext1{end}", 10).eval() for end in ("", "_rectified"))
    rectified.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 32, 32)
    scores = plain(images)
    assert (scores < 0).any() and torch.equal(rectified(images), scores.clamp(min=0))


def test_he_initialisation_has_the_right_distribution():
    """Standard deviation √(2 / fan in), where the fan in of a grouped convolution is that of one group; zero biases."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 256, 3), nn.Conv2d(256, 512, 3, groups=32), nn.Linear(300, 400)]
    initialise_he(nn.Sequential(*layers))
    for layer, fan_in in zip(layers, (64 * 9, 8 * 9, 300), strict=True):
        weights, std = layer.weight.detach().flatten(), math.sqrt(2 / fan_in)
        error = std / math.sqrt(2 * len(weights))  # the standard error of the estimate
        assert abs(weights.std() - std) < 4 * error
        assert abs(weights.mean()) < 4 * std / math.sqrt(len(weights))
        assert (weights.abs() < std).double().mean().item() == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01), "normal"
        assert not layer.bias.any()


@pytest.mark.parametrize("model", [lambda: SimpleNet(10), lambda: WideResNet(10, 16, 4), lambda: ZooResNeXt(10, [(32, 16)])])
def test_every_network_of_the_zoo_starts_he_normal(model):
    torch.manual_seed(0)
    network = model()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 1000:
            expected = math.sqrt(2 / layer.weight[0].numel())
            assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * layer.weight.numel())), name
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and not layer.bias.any()
