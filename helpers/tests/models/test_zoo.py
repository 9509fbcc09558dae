"""The zoo: what each network is, layer by layer, from the papers' definitions written out and the report's own words."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import models
from helpers.models import inspect as anatomy
from helpers.models.blocks import Bottleneck, Res2NetBlock, WideBlock
from helpers.models.registry import ResidualNet, Stage, Stem, count_parameters
from helpers.models.zoo import SimpleNet, WideResNet, ZooResNeXt, start_he_normal
from helpers.report import diagrams as drawings
from helpers.runtime import UserError


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The output shape of each child of a network with 100 classes, for one CIFAR image."""
    return {row.name: row.output_shape[1:] for row in models.layer_table(models.build(name, 100), (1, 3, 32, 32))}


def stirred(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, its BatchNorm layers no longer at one and zero."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.double().eval()


def normalised(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    """What BatchNorm is in evaluation, from its four vectors."""
    mean, var, weight, bias = (v.view(1, -1, 1, 1) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / (var + bn.eps).sqrt() * weight + bias


@pytest.mark.parametrize(("scale", "cardinality"), [(4, 1), (4, 6), (2, 1), (5, 2)])
@pytest.mark.parametrize("in_channels", [24, 16])
def test_a_res2net_block_is_the_papers_equation_read_literally(scale, cardinality, in_channels):
    block = stirred(Res2NetBlock(in_channels, 24, scale=scale, cardinality=cardinality, group_width=3))
    images = torch.randn(2, in_channels, 7, 7, dtype=torch.float64)

    def k(i, features):  # K2 is the first 3×3 convolution
        out = F.conv2d(features, block.convs[i - 2].weight, padding=1, groups=cardinality)
        return normalised(out, block.bns[i - 2]).relu()

    wide = normalised(F.conv2d(images, block.conv1.weight), block.bn1).relu()
    width = 3 * cardinality
    x = {i: wide[:, (i - 1) * width : i * width] for i in range(1, scale + 1)}
    y = {1: x[1], 2: k(2, x[2])}
    for i in range(3, scale + 1):
        y[i] = k(i, x[i] + y[i - 1])
    out = normalised(F.conv2d(torch.cat([y[i] for i in range(1, scale + 1)], 1), block.conv3.weight), block.bn3)
    shortcut = images
    if in_channels != 24:
        shortcut = normalised(F.conv2d(images, block.downsample[0].weight), block.downsample[1])
    torch.testing.assert_close(block(images), (out + shortcut).relu(), rtol=1e-12, atol=1e-12)


def test_a_strided_res2net_block_averages_the_first_part_and_adds_none():
    block = stirred(Res2NetBlock(8, 8, scale=3, group_width=2, stride=2))
    images = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    first, *parts = normalised(F.conv2d(images, block.conv1.weight), block.bn1).relu().split(2, 1)
    y = [F.avg_pool2d(first, 3, 2, 1)]
    for part, conv, bn in zip(parts, block.convs, block.bns, strict=True):
        y.append(normalised(F.conv2d(part, conv.weight, stride=2, padding=1), bn).relu())
    out = normalised(F.conv2d(torch.cat(y, 1), block.conv3.weight), block.bn3)
    shortcut = normalised(F.conv2d(images, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(images), (out + shortcut).relu(), rtol=1e-12, atol=1e-12)
    assert block(images).shape == (2, 8, 4, 4)


def opened(block: nn.Module) -> nn.Module:
    """The block with positive weights and no ReLU that closes, so that nothing hides."""
    block = stirred(block)
    with torch.no_grad():
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.abs_()
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.fill_(9.0)
    return block


def widths(block: nn.Module, parts: int) -> list[int]:
    return [anatomy.field_width(field) for field in anatomy.receptive_fields(opened(block), parts)]


def test_the_parts_of_a_res2net_block_see_ever_further():
    # One pixel at first, then 3, 5 and 7: "the output contains a different number of receptive field sizes", section 3.1.
    assert widths(Res2NetBlock(4, 16, scale=4, group_width=1), 4) == [1, 3, 5, 7]
    assert widths(Res2NetBlock(4, 16, scale=4, group_width=1, stride=2), 4) == [3, 3, 3, 3], "nothing is handed on"
    assert widths(Bottleneck(4, 16, cardinality=4, group_width=1), 1) == [3]


def test_a_receptive_field_lies_around_the_middle_and_its_strength_is_the_gradient():
    block = opened(Bottleneck(2, 2, group_width=1))
    [field] = anatomy.receptive_fields(block, 1, image_size=7)
    assert (field > 0).nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    # With every ReLU open the block is linear up to there: the 3×3's weights times the 1×1's, each by its BatchNorm.
    scales = [(bn.weight / (bn.running_var + bn.eps).sqrt()).item() for bn in (block.bn1, block.bn2)]
    expected = block.conv2.weight[0, 0] * block.conv1.weight.sum() * scales[0] * scales[1]
    torch.testing.assert_close(field[2:5, 2:5], expected.detach())
    assert not block.conv3._forward_pre_hooks


def test_drawn_fields_have_a_square_around_all_that_count():
    fields = anatomy.receptive_fields(opened(Res2NetBlock(4, 16, scale=4, group_width=1)), 4)
    figure = drawings.receptive_fields({f"part {number}": field for number, field in enumerate(fields, 1)}, columns=2)
    squares = [axis.patches[0].get_bbox().bounds for axis in figure.axes]
    assert squares == [(5 - k - 0.5, 5 - k - 0.5, 2 * k + 1, 2 * k + 1) for k in range(4)]
    drawings.plt.close(figure)


@pytest.mark.parametrize(("width", "scale", "millions"), [(26, 4, 25.70), (14, 8, 25.06), (26, 8, 48.40)])
def test_plain_res2net_blocks_in_stages_make_res2net50(width, scale, millions):
    # Sizes as in the model tables of timm (26w×4s) and mmpretrain (the two of scale 8), converted from the authors' weights.
    stages = [
        Stage(blocks, 256 * 2**n, 2 if n else 1, {"group_width": width * 2**n, "scale": scale})
        for n, blocks in enumerate((3, 4, 6, 3))
    ]
    with torch.device("meta"):
        network = ResidualNet(Res2NetBlock, Stem(), stages, 1000)
    assert round(count_parameters(network) / 1e6, 2) == millions


def test_res2next29_has_the_shapes_groups_and_strides_of_resnext29():
    rows = shapes("res2next29_6c24w4s")
    assert rows["conv1"] == (64, 32, 32)
    assert [rows[f"layer{k}"] for k in (1, 2, 3)] == [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]
    model = models.build("res2next29_6c24w4s", 100)
    for k in (1, 2, 3):
        for number, block in enumerate(model.get_submodule(f"layer{k}")):
            assert [conv.groups for conv in block.convs] == [6, 6, 6]
            assert {conv.in_channels for conv in block.convs} == {6 * 24 * 2 ** (k - 1)}
            assert {conv.stride for conv in block.convs} == ({(2, 2)} if k > 1 and number == 0 else {(1, 1)})


@pytest.mark.parametrize("wrong", [{"scale": 1}, {"scale": 0}, {"group_width": 0}, {"cardinality": 2.0}, {"stride": 0}])
def test_a_res2net_block_that_cannot_be_gets_its_sentence(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Res2NetBlock(8, 8, **{"group_width": 2} | wrong)


@pytest.mark.parametrize(("in_channels", "stride"), [(6, 1), (4, 1), (6, 2)])
def test_a_wide_block_is_its_definition(in_channels, stride):
    block = stirred(WideBlock(in_channels, 6, stride=stride))
    images = torch.randn(2, in_channels, 8, 8, dtype=torch.float64)
    activated = normalised(images, block.bn1).relu()
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(normalised(out, block.bn2).relu(), block.conv2.weight, padding=1)
    # The shortcut is the image itself where the shape stays, else a 1×1 convolution of the activated image.
    if in_channels == 6 and stride == 1:
        assert block.downsample is None
        shortcut = images
    else:
        shortcut = F.conv2d(activated, block.downsample.weight, stride=stride)
    torch.testing.assert_close(block(images.clone()), out + shortcut, rtol=1e-12, atol=1e-12)


def test_dropout_in_a_wide_block_comes_between_its_convolutions():
    block = WideBlock(4, 4, dropout=0.3)
    seen = {}
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    block.dropout.register_forward_hook(lambda _, inputs, output: seen.update(dropped=output))
    block(torch.randn(2, 4, 8, 8))
    assert block.dropout.p == 0.3 and seen["x"] is seen["dropped"]
    layers = [layer.p for layer in WideResNet(10, 16, 1, dropout=0.3).modules() if isinstance(layer, nn.Dropout)]
    assert layers == [0.3] * 6
    assert not any(isinstance(layer, nn.Dropout) for layer in models.build("wrn16_2", 10).modules())


@pytest.mark.parametrize(("name", "blocks", "width"), [("wrn16_2", 2, 2), ("wrn16_4", 2, 4), ("wrn28_2", 4, 2)])
def test_wide_residual_networks_have_the_papers_table_1(name, blocks, width):
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
def test_a_depth_that_is_not_6n_plus_4_gets_its_sentence(depth):
    with pytest.raises(UserError, match=f"depth is {depth}, but a wide residual network has 6N . 4 layers"):
        WideResNet(10, depth, 2)


def test_simplenet_is_the_papers_thirteen_layers():
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


def test_simplenet_pools_after_layers_4_7_9_and_12_and_then_the_whole_map():
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
def test_the_reports_resnexts_are_its_table_row_by_row(name):
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
        assert {block.conv2.in_channels for block in stage} == {128}, "32 paths, 4 wide"


def by_hand(stages: list[tuple[int, int]], num_classes: int) -> int:
    """The parameters of a home-made ResNeXt, added up."""
    total = 27 * stages[0][0] + 2 * stages[0][0]
    for channels, after in stages:
        block = channels * 128 + 128 * 4 * 9 + 128 * channels + 2 * (128 + 128 + channels)
        total += 3 * block + channels * after * 9 + after
    return total + (stages[-1][1] + 1) * num_classes


def test_the_home_made_resnexts_added_up_by_hand():
    for name in ("zoo_resnext1", "zoo_resnext2", "zoo_resnext3"):
        assert count_parameters(models.build(name, 100)) == by_hand(reported(name), 100)
    assert count_parameters(models.build("zoo_resnext1_doubling", 100)) == by_hand([(12, 24), (24, 48)], 100)
    assert count_parameters(models.build("zoo_resnext1_doubling_wide", 100)) == by_hand([(32, 64), (64, 128)], 100)


def test_doubling_differs_from_halving_in_its_channels_alone_and_costs_as_much():
    halving, doubling = (models.build(f"zoo_resnext1{end}", 100) for end in ("", "_doubling"))
    assert [name for name, _ in halving.named_modules()] == [name for name, _ in doubling.named_modules()]
    assert abs(count_parameters(doubling) / count_parameters(halving) - 1) < 0.02
    down, up = shapes("zoo_resnext1"), shapes("zoo_resnext1_doubling")
    assert [down[f"transition{k}"][0] / down[f"layer{k}"][0] for k in (1, 2)] == [0.5, 0.5]
    assert [up[f"transition{k}"][0] / up[f"layer{k}"][0] for k in (1, 2)] == [2, 2]
    assert [down[name][1:] for name in down] == [up[name][1:] for name in up], "the same maps"


def test_rectified_scores_are_the_scores_cut_at_zero():
    torch.manual_seed(0)
    plain, rectified = (models.build(f"zoo_resnext1{end}", 10).eval() for end in ("", "_rectified"))
    rectified.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 32, 32)
    scores = plain(images)
    assert (scores < 0).any() and torch.equal(rectified(images), scores.clamp(min=0))


def test_he_normal_in_closed_form():
    """Standard deviation √(2 / fan in), where the fan in of a grouped convolution is that of one group; zero biases."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 256, 3), nn.Conv2d(256, 512, 3, groups=32), nn.Linear(300, 400)]
    start_he_normal(nn.Sequential(*layers))
    for layer, fan_in in zip(layers, (64 * 9, 8 * 9, 300), strict=True):
        weights, std = layer.weight.detach().flatten(), math.sqrt(2 / fan_in)
        error = std / math.sqrt(2 * len(weights))  # of an estimated standard deviation
        assert abs(weights.std() - std) < 4 * error
        assert abs(weights.mean()) < 4 * std / math.sqrt(len(weights))
        assert (weights.abs() < std).double().mean().item() == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01), "a normal"
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


def test_res2next29_starts_he_normal_too_by_the_channels_that_go_out():
    torch.manual_seed(0)
    for conv in models.build("res2next29_6c24w4s", 100).layer1[1].convs:
        expected = math.sqrt(2 / (9 * 144))  # torchvision's way, which counts the channels of all groups
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))
