"""The residual networks, stage by stage: groups, strides, kernels and pooling."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import models
from helpers.models.blocks import BasicBlock
from helpers.models.inspect import count_macs, count_parameters
from helpers.models.resnet import NETWORKS, SLIM, Description, ResidualNet, Stage, Stem


def test_stage_shapes_halve_from_56_to_7():
    rows = {row.name: row for row in models.layer_table(models.build("resnext50_32x4d", 1000))}
    assert rows["conv1"].output_shape == (1, 64, 112, 112)
    assert rows["maxpool"].output_shape == (1, 64, 56, 56)
    assert [rows[f"layer{k}"].output_shape[1:] for k in range(1, 5)] == [
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
    ]
    assert rows["avgpool"].output_shape == (1, 2048, 1, 1)
    assert rows["fc"].parameters == 2048 * 1000 + 1000 and rows["fc"].macs == 2048 * 1000
    assert sum(row.parameters for row in rows.values()) == 25_028_904


def test_groups_strides_and_batchnorms_of_resnext50():
    model = models.build("resnext50_32x4d", 2)
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 1 + 3 * 16 + 4
    assert all((m.groups == 32) == (m.kernel_size == (3, 3)) and m.groups in (1, 32) for m in convolutions.values())
    strided = [name for name, m in convolutions.items() if m.stride == (2, 2)]
    assert strided == ["conv1"] + [f"layer{k}.0.{part}" for k in (2, 3, 4) for part in ("conv2", "downsample.0")]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 53
    assert [model.get_submodule(f"layer{k}")[0].conv2.out_channels for k in range(1, 5)] == [128, 256, 512, 1024]


@pytest.mark.parametrize("name", ["resnext29_32x4d", "resnext29_under5m"])
def test_resnext29_keeps_32_pixels_in_its_first_stage_and_halves_them_twice(name):
    model = models.build(name, 10)
    rows = {row.name: row.output_shape[1:] for row in models.layer_table(model, (1, 3, 32, 32))}
    assert rows["conv1"] == ((64 if name == "resnext29_32x4d" else 32), 32, 32)
    assert [rows[f"layer{k}"] for k in (1, 2, 3)] == [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 1 + 3 * 3 * 3 + 3, "28 on the main path and 3 projections; the linear layer is the 29th"
    grouped = [layer for layer in convolutions if layer.groups > 1]
    assert [layer.kernel_size for layer in grouped] == [(3, 3)] * 9 and {layer.groups for layer in grouped} == {32}
    assert [layer.in_channels for layer in grouped] == [128] * 3 + [256] * 3 + [512] * 3
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == len(convolutions)


def test_unsupported_combinations_raise():
    with pytest.raises(TypeError, match="cardinality"):
        ResidualNet(BasicBlock, Stem(), [Stage(2, 64, block_arguments={"cardinality": 32})], 10)
    with pytest.raises(ValueError, match="blocks must be a whole number"):
        ResidualNet(BasicBlock, Stem(), [Stage(0, 64)], 10)
    with pytest.raises(ValueError, match="kernel_size must be a whole number"):
        ResidualNet(BasicBlock, Stem(kernel_size=0), [Stage(1, 64)], 10)


def test_pikachus_own_network_as_coded():
    """Stem 3×3, stride 2, padding 3, then a max-pool without padding: 32 pixels become 18, then 8; stages 8, 4, 2."""
    model = models.build("pikachu_resnext29", 10)
    rows = {row.name: row.output_shape[1:] for row in models.layer_table(model, (1, 3, 32, 32))}
    assert (rows["conv1"], rows["maxpool"]) == ((64, 18, 18), (64, 8, 8))
    assert [rows[f"layer{k}"] for k in (1, 2, 3)] == [(256, 8, 8), (512, 4, 4), (1024, 2, 2)]
    blocks = [block for k in (1, 2, 3) for block in model.get_submodule(f"layer{k}")]
    assert [block.conv2.out_channels for block in blocks] == [64] * 3 + [256] * 3 + [512] * 3
    assert {block.conv2.groups for block in blocks} == {32}
    assert 0 < model.fc.bias.abs().max() <= 1024**-0.5 < model.fc.weight.abs().max(), "only biases keep torch's initialisation"


def test_resnext50_without_padding_differs_from_torchvisions_only_in_its_outputs():
    ours, theirs = models.build("resnext50_unpadded", 2), models.build("torchvision/resnext50_32x4d", 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    rows = {row.name: row.output_shape[1:] for row in models.layer_table(ours)}
    assert (rows["maxpool"], rows["layer1"], rows["layer2"]) == ((64, 55, 55), (256, 55, 55), (512, 28, 28))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(ours.eval()(images), theirs.eval()(images))


def test_res2next29_has_the_shapes_groups_and_strides_of_resnext29():
    rows = shapes(NETWORKS["res2next29_6c24w4s"])
    assert rows["conv1"] == (64, 32, 32)
    assert [rows[f"layer{k}"] for k in (1, 2, 3)] == [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]
    model = models.build("res2next29_6c24w4s", 100)
    for k in (1, 2, 3):
        for number, block in enumerate(model.get_submodule(f"layer{k}")):
            assert [conv.groups for conv in block.convs] == [6, 6, 6]
            assert {conv.in_channels for conv in block.convs} == {6 * 24 * 2 ** (k - 1)}
            assert {conv.stride for conv in block.convs} == ({(2, 2)} if k > 1 and number == 0 else {(1, 1)})


def test_res2next29_starts_he_normal_with_fan_out():
    torch.manual_seed(0)
    for conv in models.build("res2next29_6c24w4s", 100).layer1[1].convs:
        expected = math.sqrt(2 / (9 * 144))  # as in torchvision, the fan out counts the channels of all groups
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))


CIFAR = (1, 3, 32, 32)


def shapes(description: Description) -> dict[str, tuple[int, ...]]:
    return {row.name: row.output_shape[1:] for row in models.layer_table(description.build(10), CIFAR)}


def sizes(description: Description) -> list[int]:
    """Pixels a side after each stage, for 32×32 images."""
    return [shape[1] for name, shape in shapes(description).items() if name.startswith("layer")]


@pytest.mark.parametrize(
    ("name", "blocks", "channels", "strides", "kernels"),
    [
        ("slim_resnet_trial1", [2, 2, 2, 2], [32, 64, 128, 256, 512], [1, 2, 2, 2], [7, 3, 3, 3, 3]),
        ("slim_resnet_trial2", [2, 1, 1, 1], [32, 64, 128, 256, 512], [1, 1, 4, 2], [7, 3, 3, 3, 3]),
        ("slim_resnet_trial3", [3, 3, 2, 2], [32, 32, 64, 128, 256], [1, 2, 2, 2], [3, 5, 5, 5, 3]),
        ("slim_resnet", [2, 4, 3, 3], [32, 32, 64, 128, 256], [1, 2, 2, 2], [3, 5, 5, 3, 3]),  # figure 4
    ],
)
def test_the_networks_match_figures_1_and_4_column_by_column(name, blocks, channels, strides, kernels):
    network = models.build(name, 10)
    stages = [network.get_submodule(stage) for stage in network.stage_names]
    assert [len(stage) for stage in stages] == blocks
    assert [network.conv1.out_channels] + [stage[-1].conv2.out_channels for stage in stages] == channels
    assert [stage[0].conv1.stride[0] for stage in stages] == strides
    assert all(block.conv2.stride == (1, 1) for stage in stages for block in stage), "the first convolution carries the stride"
    sizes = [{layer.kernel_size[0] for block in stage for layer in (block.conv1, block.conv2)} for stage in stages]
    assert [network.conv1.kernel_size[0]] + [size for (size,) in sizes] == kernels


def test_the_final_network_has_larger_maps_than_figure_4_prints():
    given = shapes(SLIM["slim_resnet"])
    assert [given[name] for name in ("conv1", "layer1", "layer2", "layer3", "layer4")] == [
        (32, 32, 32),  # the report prints 16, 8, 4, 2 and 1, as if the max-pool were still there and stage 1 had a stride
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
    ]


def test_a_stride_in_stage_1_would_add_a_projection_that_the_reports_count_excludes():
    final = SLIM["slim_resnet"]
    strided = replace(final, stages=(replace(final.stages[0], stride=2), *final.stages[1:]))
    assert count_parameters(strided.build(10)) == 4_978_730 + 32 * 32 + 2 * 32


def test_the_image_sizes_of_the_trials():
    assert sizes(SLIM["slim_resnet_trial1"]) == [8, 4, 2, 1]
    assert sizes(SLIM["slim_resnet_trial2"]) == [8, 8, 2, 1]
    assert sizes(SLIM["slim_resnet_trial2_coded"]) == [8, 4, 2, 1]
    assert sizes(SLIM["slim_resnet_trial3"]) == [32, 16, 8, 4]


def test_multiply_adds_equal_those_that_the_reports_code_printed():
    # torchinfo on a batch of 256, in the report's repository: 104.38 billion for the final network, 109.75 for the third trial.
    for name, printed in (("slim_resnet", 104.38), ("slim_resnet_trial3", 109.75)):
        assert round(256 * count_macs(models.build(name, 10), CIFAR) / 1e9, 2) == printed


def test_the_strong_network_is_the_papers_with_an_excitation_in_every_block():
    strong = SLIM["slim_resnet_strong"]
    plain = replace(strong, stages=tuple(replace(stage, block_arguments={}) for stage in strong.stages))

    def weights(channels):  # two 1×1 convolutions with biases, to a sixteenth of the channels and back
        return 2 * channels * channels // 16 + channels // 16 + channels

    # arXiv 2306.12100 gives 4,697,742: one excitation, after the stem of 64 channels.
    assert count_parameters(plain.build(10)) + weights(64) == 4_697_742
    every = 4 * weights(64) + 4 * weights(128) + 3 * weights(256)
    assert count_parameters(strong.build(10)) == 4_697_742 - weights(64) + every == 4_733_610


def test_a_stride_in_the_second_convolution_adds_no_parameters_but_quadruples_the_first_ones_macs():
    def moved(strided):
        stages = (Stage(1, 16), Stage(1, 32, 2, {"strided": strided}))
        return Description(Stem(16, 3, 1, max_pool=False), stages).build(10)

    first, second = moved("first"), moved("second")
    assert count_parameters(first) == count_parameters(second)
    assert count_macs(second, CIFAR) - count_macs(first, CIFAR) == 3 * (16 * 16) * (9 * 16 * 32)


def test_a_max_pool_halves_every_size_quarters_the_macs_and_adds_no_parameters():
    final = SLIM["slim_resnet"]
    pooled = SLIM["slim_resnet_max_pool"]
    assert pooled == replace(final, stem=replace(final.stem, max_pool=True))
    assert sizes(pooled) == [16, 8, 4, 2]
    assert count_parameters(pooled.build(10)) == count_parameters(final.build(10))
    stem, head = 32 * 32 * 27 * 32, 2560
    assert count_macs(pooled.build(10), CIFAR) - stem - head == (count_macs(final.build(10), CIFAR) - stem - head) / 4


def test_slim_resnet_stride_second_moves_every_stride_to_the_second_convolution():
    first = SLIM["slim_resnet_trial2_coded"].build(10)
    assert [getattr(first, f"layer{stage}")[0].conv2.stride for stage in (1, 2, 3, 4)] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    given, moved = (SLIM[name].build(10) for name in ("slim_resnet", "slim_resnet_stride_second"))
    assert sizes(SLIM["slim_resnet_stride_second"]) == sizes(SLIM["slim_resnet"])
    for stage in ("layer2", "layer3", "layer4"):
        strides = [
            [layer.stride for layer in (network.get_submodule(stage)[0].conv1, network.get_submodule(stage)[0].conv2)]
            for network in (given, moved)
        ]
        assert strides == [[(2, 2), (1, 1)], [(1, 1), (2, 2)]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 4}, "kernel size is 4; choose an odd one"),
        ({"kernel_size": 0}, "kernel_size must be a whole number of at least 1, not 0"),
        ({"strided": "third"}, "no 'third' convolution to carry the stride; choose 'first' or 'second'"),
        ({"reduction": 3}, "8 channels are not divisible by the reduction 3"),
        ({"reduction": 0}, "reduction must be a whole number of at least 1"),
    ],
)
def test_invalid_block_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Description(Stem(8), (Stage(1, 8, 1, arguments),)).build(10)


def test_half_a_channel_is_refused():
    with pytest.raises(ValueError, match="out_channels must be a whole number of at least 1, not 32.5"):
        Description(Stem(8), (Stage(1, 32.5),)).build(10)
