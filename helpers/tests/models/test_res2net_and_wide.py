"""Res2Net's and WideResNet's blocks, compared with the papers' definitions written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.models.blocks import Res2NetBlock, WideBlock
from helpers.models.inspect import count_parameters
from helpers.models.resnet import ResidualNet, Stage, Stem


def stirred(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, with random BatchNorm parameters and statistics."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.double().eval()


def normalised(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    """BatchNorm in evaluation mode, written out."""
    mean, var, weight, bias = (v.view(1, -1, 1, 1) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / (var + bn.eps).sqrt() * weight + bias


@pytest.mark.parametrize(("scale", "cardinality"), [(4, 1), (4, 6), (2, 1), (5, 2)])
@pytest.mark.parametrize("in_channels", [24, 16])
def test_a_res2net_block_equals_the_papers_equation(scale, cardinality, in_channels):
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


def test_a_strided_res2net_block_pools_the_first_part_and_adds_no_part_to_the_next():
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


@pytest.mark.parametrize(("width", "scale", "millions"), [(26, 4, 25.70), (14, 8, 25.06), (26, 8, 48.40)])
def test_res2net50_built_from_our_blocks_has_the_known_sizes(width, scale, millions):
    # Sizes as in the model tables of timm (26w×4s) and mmpretrain (the two of scale 8), converted from the authors' weights.
    stages = [
        Stage(blocks, 256 * 2**n, 2 if n else 1, {"group_width": width * 2**n, "scale": scale})
        for n, blocks in enumerate((3, 4, 6, 3))
    ]
    with torch.device("meta"):
        network = ResidualNet(Res2NetBlock, Stem(), stages, 1000)
    assert round(count_parameters(network) / 1e6, 2) == millions


@pytest.mark.parametrize("wrong", [{"scale": 1}, {"scale": 0}, {"group_width": 0}, {"cardinality": 2.0}, {"stride": 0}])
def test_the_error_for_an_invalid_res2net_block_names_the_argument(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Res2NetBlock(8, 8, **{"group_width": 2} | wrong)


@pytest.mark.parametrize(("in_channels", "stride"), [(6, 1), (4, 1), (6, 2)])
def test_a_wide_block_equals_its_definition(in_channels, stride):
    block = stirred(WideBlock(in_channels, 6, stride=stride))
    images = torch.randn(2, in_channels, 8, 8, dtype=torch.float64)
    activated = normalised(images, block.bn1).relu()
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(normalised(out, block.bn2).relu(), block.conv2.weight, padding=1)
    # The shortcut is the image itself if the shape stays the same, else a 1×1 convolution of the activated image.
    if in_channels == 6 and stride == 1:
        assert block.downsample is None
        shortcut = images
    else:
        shortcut = F.conv2d(activated, block.downsample.weight, stride=stride)
    torch.testing.assert_close(block(images.clone()), out + shortcut, rtol=1e-12, atol=1e-12)
