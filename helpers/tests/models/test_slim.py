"""Report `slim`: its networks to the last parameter, where strides, kernels and pooling sit, and what a budget buys."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import models
from helpers.models import budget
from helpers.models.blocks import BasicBlock, Bottleneck, excitation
from helpers.models.registry import RESNET18, SLIM, Description, Stage, Stem, count_macs, count_parameters
from helpers.report import plots
from helpers.runtime import UserError

CIFAR = (1, 3, 32, 32)


def shapes(description: Description) -> dict[str, tuple[int, ...]]:
    return {row.name: row.output_shape[1:] for row in models.layer_table(description.build(10), CIFAR)}


def sizes(description: Description) -> list[int]:
    """Pixels a side after each stage, for 32×32 images."""
    return [shape[1] for name, shape in shapes(description).items() if name.startswith("layer")]


def randomised(block: nn.Module) -> nn.Module:
    """The block in eval mode, with BatchNorm layers that are no longer the identity."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return block.eval()


# The report's networks. Its counts are in figures 1 and 3; each is pinned in test_models.py too.


@pytest.mark.parametrize(
    ("name", "blocks", "channels", "strides", "kernels"),
    [
        ("slim_resnet_trial1", [2, 2, 2, 2], [32, 64, 128, 256, 512], [1, 2, 2, 2], [7, 3, 3, 3, 3]),
        ("slim_resnet_trial2", [2, 1, 1, 1], [32, 64, 128, 256, 512], [1, 1, 4, 2], [7, 3, 3, 3, 3]),
        ("slim_resnet_trial3", [3, 3, 2, 2], [32, 32, 64, 128, 256], [1, 2, 2, 2], [3, 5, 5, 5, 3]),
        ("slim_resnet", [2, 4, 3, 3], [32, 32, 64, 128, 256], [1, 2, 2, 2], [3, 5, 5, 3, 3]),  # figure 4
    ],
)
def test_the_networks_of_figures_1_and_4_column_by_column(name, blocks, channels, strides, kernels):
    network = models.build(name, 10)
    stages = [network.get_submodule(stage) for stage in network.stage_names]
    assert [len(stage) for stage in stages] == blocks
    assert [network.conv1.out_channels] + [stage[-1].conv2.out_channels for stage in stages] == channels
    assert [stage[0].conv1.stride[0] for stage in stages] == strides
    assert all(block.conv2.stride == (1, 1) for stage in stages for block in stage), "the first convolution carries it"
    sizes = [{layer.kernel_size[0] for block in stage for layer in (block.conv1, block.conv2)} for stage in stages]
    assert [network.conv1.kernel_size[0]] + [size for (size,) in sizes] == kernels


def test_the_sizes_of_figure_4_are_halves_of_what_they_are_without_the_max_pool():
    given = shapes(SLIM["slim_resnet"])
    assert [given[name] for name in ("conv1", "layer1", "layer2", "layer3", "layer4")] == [
        (32, 32, 32),  # the report prints 16, 8, 4, 2 and 1, as if the max-pool were still there, and stage 1 had a stride
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
    ]


def test_a_stride_in_stage_1_would_need_a_projection_that_the_reports_count_has_no_room_for():
    final = SLIM["slim_resnet"]
    strided = replace(final, stages=(replace(final.stages[0], stride=2), *final.stages[1:]))
    assert count_parameters(strided.build(10)) == 4_978_730 + 32 * 32 + 2 * 32


def test_the_image_sizes_of_the_trials():
    assert sizes(SLIM["slim_resnet_trial1"]) == [8, 4, 2, 1]
    assert sizes(SLIM["slim_resnet_trial2"]) == [8, 8, 2, 1]
    assert sizes(SLIM["slim_resnet_trial3"]) == [32, 16, 8, 4]


def test_multiply_adds_are_those_that_the_reports_code_printed():
    # torchinfo on a batch of 256, in the report's repository: 104.38 billion for the final network, 109.75 for the third trial.
    for name, printed in (("slim_resnet", 104.38), ("slim_resnet_trial3", 109.75)):
        assert round(256 * count_macs(models.build(name, 10), CIFAR) / 1e9, 2) == printed


def test_the_strong_network_is_the_papers_with_its_excitation_in_every_block():
    strong = SLIM["slim_resnet_strong"]
    plain = replace(strong, stages=tuple(replace(stage, block_arguments={}) for stage in strong.stages))

    def weights(channels):  # two 1×1 convolutions with biases, to a sixteenth and back
        return 2 * channels * channels // 16 + channels // 16 + channels

    # arXiv 2306.12100 gives 4,697,742: one excitation, after the stem of 64 channels.
    assert count_parameters(plain.build(10)) + weights(64) == 4_697_742
    every = 4 * weights(64) + 4 * weights(128) + 3 * weights(256)
    assert count_parameters(strong.build(10, image_size=32, budget=5_000_000)) == 4_697_742 - weights(64) + every == 4_733_610


# The block.


@pytest.mark.parametrize(("strided", "strides", "inner"), [("first", [2, 1], 5), ("second", [1, 2], 9)])
def test_where_the_stride_sits(strided, strides, inner):
    block = BasicBlock(4, 6, stride=2, strided=strided)
    assert [block.conv1.stride[0], block.conv2.stride[0]] == strides
    assert block.downsample[0].stride == (2, 2)
    images = torch.zeros(1, 4, 9, 9)
    assert block.conv1(images).shape == (1, 6, inner, inner)
    assert block(images).shape == (1, 6, 5, 5)


def test_the_stride_in_the_second_convolution_costs_no_parameters_and_three_more_first_convolutions():
    def moved(strided):
        stages = (Stage(1, 16), Stage(1, 32, 2, {"strided": strided}))
        return Description(Stem(16, 3, 1, max_pool=False), stages).build(10)

    first, second = moved("first"), moved("second")
    assert count_parameters(first) == count_parameters(second)
    assert count_macs(second, CIFAR) - count_macs(first, CIFAR) == 3 * (16 * 16) * (9 * 16 * 32)


@pytest.mark.parametrize("strided", ["first", "second"])
def test_a_block_of_5x5_convolutions_is_its_definition(strided):
    torch.manual_seed(0)
    block = randomised(BasicBlock(4, 6, stride=2, kernel_size=5, strided=strided))
    images = torch.randn(2, 4, 8, 8)
    one, two = (2, 1) if strided == "first" else (1, 2)
    inner = torch.relu(block.bn1(F.conv2d(images, block.conv1.weight, stride=one, padding=2)))
    outer = block.bn2(F.conv2d(inner, block.conv2.weight, stride=two, padding=2))
    shortcut = block.downsample[1](F.conv2d(images, block.downsample[0].weight, stride=2))
    assert torch.allclose(block(images), torch.relu(outer + shortcut), atol=1e-6)
    assert block.downsample[0].kernel_size == (1, 1)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [7, 8])
def test_every_odd_kernel_keeps_the_size_and_halves_it_upwards(kernel_size, size):
    images = torch.zeros(1, 4, size, size)
    assert BasicBlock(4, 4, kernel_size=kernel_size)(images).shape[2:] == (size, size)
    assert BasicBlock(4, 4, kernel_size=kernel_size, stride=2, strided="second")(images).shape[2:] == (4, 4)


def test_a_max_pool_halves_every_image_and_costs_nothing():
    final = SLIM["slim_resnet"]
    pooled = SLIM["slim_resnet_max_pool"]
    assert pooled == replace(final, stem=replace(final.stem, max_pool=True))
    assert sizes(pooled) == [16, 8, 4, 2]
    assert count_parameters(pooled.build(10)) == count_parameters(final.build(10))
    stem, head = 32 * 32 * 27 * 32, 2560
    assert count_macs(pooled.build(10), CIFAR) - stem - head == (count_macs(final.build(10), CIFAR) - stem - head) / 4


def test_the_second_convolution_carries_every_stride_where_the_report_began():
    given, moved = (SLIM[name].build(10) for name in ("slim_resnet", "slim_resnet_stride_second"))
    assert sizes(SLIM["slim_resnet_stride_second"]) == sizes(SLIM["slim_resnet"])
    for stage in ("layer2", "layer3", "layer4"):
        strides = [
            [layer.stride for layer in (network.get_submodule(stage)[0].conv1, network.get_submodule(stage)[0].conv2)]
            for network in (given, moved)
        ]
        assert strides == [[(2, 2), (1, 1)], [(1, 1), (2, 2)]]


def test_excitation_by_hand():
    torch.manual_seed(0)
    block = randomised(BasicBlock(8, 8, reduction=4))
    images = torch.randn(2, 8, 5, 5)
    plain = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
    narrow, wide = block.excitation.fc1, block.excitation.fc2
    means = torch.relu(plain.mean((2, 3)) @ narrow.weight[:, :, 0, 0].T + narrow.bias)
    factors = torch.sigmoid(means @ wide.weight[:, :, 0, 0].T + wide.bias)
    assert factors.shape == (2, 8) and narrow.out_channels == 2
    assert torch.allclose(block(images), torch.relu(images + plain * factors[:, :, None, None]), atol=1e-6)


def test_without_a_reduction_the_state_is_torchvisions():
    assert not [name for name in BasicBlock(8, 8).state_dict() if "excitation" in name]


# Descriptions that cannot be.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 4}, "kernel size is 4; choose an odd one"),
        ({"kernel_size": 0}, "kernel_size must be a whole number of at least 1, not 0"),
        ({"strided": "third"}, "no 'third' convolution to carry the stride; choose 'first' or 'second'"),
        ({"reduction": 3}, "8 channels do not divide by the reduction 3"),
        ({"reduction": 0}, "reduction must be a whole number of at least 1"),
    ],
)
def test_a_block_that_cannot_be_gets_its_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Description(Stem(8), (Stage(1, 8, 1, arguments),)).build(10)


def test_an_image_shrunk_to_nothing_and_a_broken_budget_get_their_sentences():
    with pytest.raises(UserError, match="The strides divide the image by 32, and it has 31 pixels a side"):
        RESNET18.build(10, image_size=31)
    assert RESNET18.build(10, image_size=32, budget=11_181_642)
    with pytest.raises(UserError, match="has 11,181,642 parameters, and the budget is 11,181,641; take fewer channels"):
        RESNET18.build(10, budget=11_181_641)
    with pytest.raises(UserError, match="out_channels must be a whole number of at least 1, not 32.5"):
        Description(Stem(8), (Stage(1, 32.5),)).build(10)


# The budget.


def test_stage_table_by_hand():
    table = budget.stage_table(models.build("slim_resnet", 10)).set_index("stage")
    assert list(table.index) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert list(table["output"]) == ["32×32×32", "32×32×32", "64×16×16", "128×8×8", "256×4×4", "10"]
    assert table.loc["stem", "parameters"] == 27 * 32 + 64
    assert table.loc["layer1", "parameters"] == 2 * 2 * (25 * 32 * 32 + 64)
    assert table.loc["layer1", "MACs"] == 2 * 2 * 25 * 32 * 32 * 32 * 32
    assert table.loc["head", "parameters"] == 256 * 10 + 10 and table.loc["head", "MACs"] == 256 * 10
    assert table["parameters"].sum() == 4_978_730
    assert table["MACs"].sum() == count_macs(models.build("slim_resnet", 10), CIFAR)
    assert table["share of parameters"].sum() == pytest.approx(1) == table["share of MACs"].sum()
    assert table.loc["layer1", "share of parameters"] == pytest.approx(102_656 / 4_978_730)


def parameters_of_resnet18(width: int) -> int:
    """In closed form: ResNet-18 with `width` channels where the original has 64, for ten classes."""

    def block(into, out):
        return 9 * into * out + 9 * out * out + 4 * out + (into * out + 2 * out if into != out else 0)

    channels = [width, width, 2 * width, 4 * width, 8 * width]
    stages = sum(block(into, out) + block(out, out) for into, out in zip(channels, channels[1:], strict=False))
    return 49 * 3 * width + 2 * width + stages + 8 * width * 10 + 10


def test_the_widest_resnet18_under_five_million_has_42_channels_where_the_original_has_64():
    assert parameters_of_resnet18(64) == 11_181_642
    assert parameters_of_resnet18(42) <= 5_000_000 < parameters_of_resnet18(43)
    found = budget.widest(RESNET18, 10, 5_000_000)
    assert [found.stem.channels, *(stage.out_channels for stage in found.stages)] == [42, 42, 84, 168, 336]
    assert count_parameters(found.build(10)) == parameters_of_resnet18(42)


def test_the_widest_is_exact_at_its_own_count_and_one_less():
    for width in (1, 2, 7):
        exactly = parameters_of_resnet18(width)
        assert budget.widest(RESNET18, 10, exactly).stem.channels == width
        if width > 1:
            assert budget.widest(RESNET18, 10, exactly - 1).stem.channels == width - 1
    with pytest.raises(UserError, match="Even the narrowest network of this form has more than 3,"):
        budget.widest(RESNET18, 10, parameters_of_resnet18(1) - 1)


def test_the_reports_network_already_is_the_widest_of_its_form():
    assert budget.widest(SLIM["slim_resnet"], 10, 5_000_000) == SLIM["slim_resnet"]


def test_with_excitation_only_widths_that_divide_count():
    strong = SLIM["slim_resnet_strong"]
    found = budget.widest(strong, 10, 4_733_609)
    assert [stage.out_channels for stage in found.stages] == [48, 96, 192], "sixteen channels less, not one"
    assert budget.widest(strong, 10, 5_000_000) == strong


def test_the_width_of_a_bottleneck_grows_with_the_rest():
    stages = (Stage(1, 32, 1, {"cardinality": 2, "group_width": 4}), Stage(1, 64, 2, {"cardinality": 2, "group_width": 8}))
    wide = budget.at_width(Description(Stem(8, 3, 1, False), stages, Bottleneck), 6)
    assert wide.stem.channels == 12 and [stage.out_channels for stage in wide.stages] == [48, 96]
    assert [stage.block_arguments["group_width"] for stage in wide.stages] == [6, 12]
    assert wide.build(10).layer1[0].conv2.groups == 2


def test_bars_show_every_stage_of_every_network_in_millions():
    tables = {name: budget.stage_table(models.build(name, 10)) for name in ("slim_resnet", "slim_resnet_strong")}
    figure = plots.budget_bars(tables, list(tables))
    parameters, macs = figure.axes
    heights = [[bar.get_height() for bar in group] for group in parameters.containers]
    places = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in parameters.containers]
    labels = [text.get_text() for text in parameters.get_xticklabels()]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    assert heights == [[value / 1e6 for value in table["parameters"]] for table in tables.values()]
    assert labels == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert [round(place) for place in places[1]] == [0, 1, 2, 3, 5], "a network of three stages has its head under head"
    assert legend[0] == "slim_resnet: 4,978,730 parameters, 407.7 million MACs"


def test_excitation_counts():
    assert count_parameters(excitation(64, 16)) == 64 * 4 + 4 + 4 * 64 + 64 == 580
