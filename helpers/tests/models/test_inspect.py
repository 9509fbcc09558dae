"""Counts, layer tables and receptive fields."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from helpers import models
from helpers.models import inspect as anatomy
from helpers.models.blocks import Bottleneck, Res2NetBlock
from helpers.models.inspect import count_macs
from helpers.report import diagrams as drawings
from helpers.report import plots
from helpers.report.diagrams import draw_network
from helpers.tests.models.test_res2net_and_wide import stirred

CIFAR = (1, 3, 32, 32)


def test_counting_changes_nothing():
    torch.manual_seed(0)
    model = models.build("resnet18", 2)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    # Twice the image's side: four times the MACs of every convolution, the same for the head.
    assert models.count_macs(model, (1, 3, 448, 448)) == 4 * (1_813_562_368 - 1024) + 1024
    assert models.count_macs(model, (2, 3, 224, 224)) == 2 * 1_813_562_368
    models.layer_table(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_frozen_parameters_are_not_counted_and_shared_ones_once():
    layer = nn.Linear(3, 4)
    assert models.count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 16
    layer.bias.requires_grad_(False)
    assert models.count_parameters(layer) == 12


def test_torchsummary_agrees(capsys):
    pytest.importorskip("torchsummary").summary(models.build("resnet18", 2), (3, 64, 64), device="cpu")
    assert "Total params: 11,177,538" in capsys.readouterr().out


def test_the_drawing_shows_every_stage():
    figure = draw_network(models.build("resnext50_32x4d", 1000))
    texts = [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)
    assert "6 blocks of\n1×1, 512\n3×3, 512, C=32\n1×1, 1024" in texts
    assert "64×112×112\n9,536\n0.12" in texts
    assert "2048×7×7\n14,544,896\n0.87" in texts


def opened(block: nn.Module) -> nn.Module:
    """The block with positive weights and large BatchNorm biases: every ReLU is active, and no gradients cancel."""
    block = stirred(block)
    with torch.no_grad():
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.abs_()
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.fill_(9.0)
    return block


def widths(block: nn.Module, parts: int) -> list[int]:
    """The width, in pixels, of the receptive field of each part."""
    return [int((field > 0).any(0).sum()) for field in anatomy.receptive_fields(opened(block), parts)]


def test_receptive_fields_grow_from_part_to_part_of_a_res2net_block():
    # One pixel at first, then 3, 5 and 7: "the output contains a different number of receptive field sizes", section 3.1.
    assert widths(Res2NetBlock(4, 16, scale=4, group_width=1), 4) == [1, 3, 5, 7]
    assert widths(Res2NetBlock(4, 16, scale=4, group_width=1, stride=2), 4) == [3, 3, 3, 3], "no part is added to the next"
    assert widths(Bottleneck(4, 16, cardinality=4, group_width=1), 1) == [3]


def test_a_receptive_field_is_centred_and_its_values_are_the_gradient():
    block = opened(Bottleneck(2, 2, group_width=1))
    [field] = anatomy.receptive_fields(block, 1, image_size=7)
    assert (field > 0).nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    # With every ReLU active, the block is linear up to there: 3×3 weights times 1×1 weights, each scaled by its BatchNorm.
    scales = [(bn.weight / (bn.running_var + bn.eps).sqrt()).item() for bn in (block.bn1, block.bn2)]
    expected = block.conv2.weight[0, 0] * block.conv1.weight.sum() * scales[0] * scales[1]
    torch.testing.assert_close(field[2:5, 2:5], expected.detach())
    assert not block.conv3._forward_pre_hooks


def test_each_drawn_receptive_field_is_framed_by_a_square():
    fields = anatomy.receptive_fields(opened(Res2NetBlock(4, 16, scale=4, group_width=1)), 4)
    figure = drawings.receptive_fields({f"part {number}": field for number, field in enumerate(fields, 1)})
    squares = [axis.patches[0].get_bbox().bounds for axis in figure.axes]
    assert squares == [(5 - k - 0.5, 5 - k - 0.5, 2 * k + 1, 2 * k + 1) for k in range(4)]
    cross = torch.zeros(5, 5)
    cross[2, 1:4] = cross[1:4, 2] = 1
    [axis] = drawings.receptive_fields({"a cross, whose first pixel is not its corner": cross}).axes
    assert axis.patches[0].get_bbox().bounds == (0.5, 0.5, 3, 3)
    drawings.plt.close("all")


def test_the_stage_table_matches_hand_counts():
    table = anatomy.stage_table(models.build("slim_resnet", 10)).set_index("stage")
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


def test_the_bars_show_every_stage_of_every_network_in_millions():
    tables = {name: anatomy.stage_table(models.build(name, 10)) for name in ("slim_resnet", "slim_resnet_strong")}
    figure = plots.stage_bars(tables, list(tables))
    parameters, macs = figure.axes
    heights = [[bar.get_height() for bar in group] for group in parameters.containers]
    places = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in parameters.containers]
    labels = [text.get_text() for text in parameters.get_xticklabels()]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    assert heights == [[value / 1e6 for value in table["parameters"]] for table in tables.values()]
    assert labels == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert [round(place) for place in places[1]] == [0, 1, 2, 3, 5], "a three-stage network's head still stands above 'head'"
    assert legend[0] == "slim_resnet: 4,978,730 parameters, 407.7 million MACs"
