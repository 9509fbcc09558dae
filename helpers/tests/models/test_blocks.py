"""The residual blocks: groups, strides, parameter counts, and the equality of the three forms of a ResNeXt block."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from helpers import models
from helpers.models.blocks import BasicBlock, Bottleneck, EarlyConcatenation, Res2NetBlock, SplitBranches, WideBlock, excitation
from helpers.models.inspect import count_parameters
from helpers.models.resnet import zero_last_batchnorm
from helpers.report.diagrams import draw_block
from helpers.tests.models.test_res2net_and_wide import stirred

FORMS = [SplitBranches, EarlyConcatenation]


SHAPES = {"identity": (24, 24, 1), "projection": (16, 24, 1), "stride": (16, 24, 2)}


def grouped_block(shape: str) -> Bottleneck:
    """A small block, 4 groups of 3 channels, in float64 and evaluation mode."""
    torch.manual_seed(0)
    in_channels, out_channels, stride = SHAPES[shape]
    return stirred(Bottleneck(in_channels, out_channels, cardinality=4, group_width=3, stride=stride))


def outputs_and_gradients(block, images):
    """The output, the gradient of the images, and the gradient of every parameter, for one fixed loss."""
    images = images.clone().requires_grad_()
    out = block(images)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out, images.grad, {name: parameter.grad for name, parameter in block.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_three_forms_are_equal(form, shape, training):
    block = grouped_block(shape).train(training)
    twin = form.from_grouped(block)
    images = torch.randn(2, block.conv1.in_channels, 6, 6, dtype=torch.float64)
    out, image_gradient, gradients = outputs_and_gradients(block, images)
    twin_out, twin_image_gradient, twin_gradients = outputs_and_gradients(twin, images)

    def equal(left, right):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

    equal(twin_out, out)
    equal(twin_image_gradient, image_gradient)
    equal(twin_gradients, form.slices(gradients, cardinality=4))
    equal(twin.state_dict(), form.slices(block.state_dict(), cardinality=4))
    assert (out == 0).any() and (out > 0).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_block_has_its_own_copy_of_all_parameters(form):
    block = grouped_block("stride")
    twin = form.from_grouped(block)
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in block.parameters())
    assert len(twin.branches) == 4 and not twin.training
    kept = block.conv1.weight.clone()
    with torch.no_grad():
        twin.branches[0].conv1.weight.zero_()
    assert torch.equal(block.conv1.weight, kept)


def test_swapping_the_weights_of_two_branches_changes_the_output():
    block = grouped_block("identity")
    twin = SplitBranches.from_grouped(block)
    first, second = twin.branches[0].conv2, twin.branches[1].conv2
    with torch.no_grad():
        swapped = second.weight.clone()
        second.weight.copy_(first.weight)
        first.weight.copy_(swapped)
    images = torch.randn(2, 24, 6, 6, dtype=torch.float64)
    assert not torch.allclose(twin(images), block(images), atol=1e-3)


def test_groups_and_stride_are_in_the_3x3():
    block = Bottleneck(256, 512, cardinality=32, group_width=8, stride=2)
    convolutions = [block.conv1, block.conv2, block.conv3]
    assert [c.groups for c in convolutions] == [1, 32, 1]
    assert [c.kernel_size for c in convolutions] == [(1, 1), (3, 3), (1, 1)]
    assert [c.stride for c in convolutions] == [(1, 1), (2, 2), (1, 1)]
    assert block.downsample[0].stride == (2, 2)
    assert block(torch.zeros(1, 256, 9, 9)).shape == (1, 512, 5, 5)


def test_the_number_of_weights_in_a_block_matches_the_papers_formula():
    # Xie et al. 2017, section 3.4: C·(256·d + 3·3·d·d + d·256) is about 70 k for C = 32, d = 4, and so is the plain
    # bottleneck's 256·64 + 3·3·64·64 + 64·256.
    def convolution_weights(block):
        return sum(m.weight.numel() for m in block.modules() if isinstance(m, torch.nn.Conv2d))

    assert convolution_weights(Bottleneck(256, 256, cardinality=32, group_width=4)) == 32 * (256 * 4 + 9 * 4 * 4 + 4 * 256)
    assert convolution_weights(Bottleneck(256, 256, group_width=64)) == 256 * 64 + 9 * 64 * 64 + 64 * 256


def test_the_shortcut_is_the_identity_only_if_the_shape_stays_the_same():
    assert BasicBlock(8, 8).downsample is None
    assert BasicBlock(8, 8, stride=2).downsample is not None
    assert BasicBlock(8, 9).downsample is not None


def test_a_basic_block_has_no_groups():
    with pytest.raises(TypeError, match="cardinality"):
        BasicBlock(64, 64, cardinality=32)


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"cardinality": -1}, {"group_width": 4.0}, {"in_channels": True}])
def test_sizes_must_be_positive_whole_numbers(wrong):
    arguments = {"in_channels": 8, "out_channels": 8, "cardinality": 2, "group_width": 4, "stride": 1} | wrong
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of at least 1"):
        Bottleneck(**arguments)


def test_the_drawing_shows_the_blocks_own_numbers():
    figure = draw_block(Bottleneck(256, 512, cardinality=8, group_width=64, stride=2))
    split, early, grouped = ([text.get_text() for text in axis.texts] for axis in figure.axes)
    plt.close(figure)
    assert [split.count(layer) for layer in ("256, 1×1, 64", "64, 3×3, 64", "64, 1×1, 512", "path 8")] == [3, 3, 3, 1]
    assert "concatenate: 512 channels" in early and "512, 1×1, 512" in early
    assert "512, 3×3, 512, 8 groups" in grouped
    assert "shortcut: 256, 1×1, 512" in grouped


@pytest.mark.parametrize(
    "block",
    [
        lambda: BasicBlock(16, 16),
        lambda: BasicBlock(16, 16, reduction=4),
        lambda: Bottleneck(16, 16, cardinality=2, group_width=4),
        lambda: Res2NetBlock(16, 16, group_width=4),
        lambda: SplitBranches(16, 16, cardinality=2, group_width=4),
        lambda: models.build("torchvision/resnet18", 2).layer1[0],
    ],
)
def test_a_block_whose_last_batchnorm_is_zero_equals_its_shortcut(block):
    torch.manual_seed(0)
    block = block()
    images = torch.randn(2, block.conv1.in_channels if hasattr(block, "conv1") else 16, 6, 6)
    assert not torch.equal(block(images), images.relu())
    zero_last_batchnorm(block)
    assert torch.equal(block(images), images.relu())


def test_in_a_network_only_the_last_batchnorm_of_each_block_is_zeroed():
    model = models.build("resnext29_under5m", 10)
    models.zero_last_batchnorm(model)
    zeros = [name for name, parameter in model.named_parameters() if name.endswith("weight") and not parameter.any()]
    assert zeros == [f"layer{stage}.{block}.bn3.weight" for stage in (1, 2, 3) for block in (0, 1, 2)]


@pytest.mark.parametrize("model", [WideBlock(8, 8), torch.nn.Linear(2, 2)])
def test_zeroing_is_refused_if_no_block_ends_in_a_batchnorm(model):
    with pytest.raises(ValueError, match="No residual block of this network ends in a BatchNorm"):
        zero_last_batchnorm(model)


@pytest.mark.parametrize(("strided", "strides", "inner"), [("first", [2, 1], 5), ("second", [1, 2], 9)])
def test_which_convolution_carries_the_stride(strided, strides, inner):
    block = BasicBlock(4, 6, stride=2, strided=strided)
    assert [block.conv1.stride[0], block.conv2.stride[0]] == strides
    assert block.downsample[0].stride == (2, 2)
    images = torch.zeros(1, 4, 9, 9)
    assert block.conv1(images).shape == (1, 6, inner, inner)
    assert block(images).shape == (1, 6, 5, 5)


@pytest.mark.parametrize(("kernel_size", "strided"), [(3, "first"), (5, "first"), (5, "second")])
def test_a_basic_block_equals_its_definition(kernel_size, strided):
    block = stirred(BasicBlock(4, 6, stride=2, kernel_size=kernel_size, strided=strided))
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    one, two = (2, 1) if strided == "first" else (1, 2)
    inner = torch.relu(block.bn1(F.conv2d(images, block.conv1.weight, stride=one, padding=kernel_size // 2)))
    outer = block.bn2(F.conv2d(inner, block.conv2.weight, stride=two, padding=kernel_size // 2))
    shortcut = block.downsample[1](F.conv2d(images, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(images), torch.relu(outer + shortcut), rtol=1e-12, atol=1e-12)
    assert block.downsample[0].kernel_size == (1, 1)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [7, 8])
def test_every_odd_kernel_keeps_the_size_or_halves_it_rounded_up(kernel_size, size):
    images = torch.zeros(1, 4, size, size)
    assert BasicBlock(4, 4, kernel_size=kernel_size)(images).shape[2:] == (size, size)
    assert BasicBlock(4, 4, kernel_size=kernel_size, stride=2, strided="second")(images).shape[2:] == (4, 4)


def test_excitation_equals_its_definition():
    block = stirred(BasicBlock(8, 8, reduction=4))
    images = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    plain = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
    narrow, wide = block.excitation.fc1, block.excitation.fc2
    means = torch.relu(plain.mean((2, 3)) @ narrow.weight[:, :, 0, 0].T + narrow.bias)
    factors = torch.sigmoid(means @ wide.weight[:, :, 0, 0].T + wide.bias)
    assert factors.shape == (2, 8) and narrow.out_channels == 2
    torch.testing.assert_close(block(images), torch.relu(images + plain * factors[:, :, None, None]), rtol=1e-12, atol=1e-12)


def test_without_a_reduction_there_is_no_excitation():
    assert not [name for name in BasicBlock(8, 8).state_dict() if "excitation" in name]


def test_the_parameter_count_of_an_excitation():
    assert count_parameters(excitation(64, 16)) == 64 * 4 + 4 + 4 * 64 + 64 == 580
