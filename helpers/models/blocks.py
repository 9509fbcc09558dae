"""The parts: residual blocks, and the three equal forms of a ResNeXt block.

Names of parameters are torchvision's (`conv1`, `bn1`, …, `downsample.0`), so weights travel both ways.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from helpers.runtime import UserError


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution without bias (the BatchNorm after it has one); unless padded otherwise, it keeps the size at stride 1."""
    padding = kernel_size // 2 if padding is None else padding
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's 1×1 convolution where the shape changes, None where the shortcut is the identity.

    Source: He et al. 2016, section 4.1, option B.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class ResidualBlock(nn.Module):
    """What all residual blocks share: `relu(residual(x) + shortcut(x))`.

    A subclass defines `residual`, and registers its own layers first and the projection `downsample` last, as
    torchvision does: initialisation draws its random numbers in the order of registration.
    """

    downsample: nn.Sequential | None

    def residual(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut, before the last ReLU."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out = self.residual(x)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class BasicBlock(ResidualBlock):
    """Two convolutions, 3×3 with the stride in the first by default. It has no grouped form: a cardinality is a TypeError.

    Source: He et al. 2016, figure 5 left; squeeze-and-excitation as in Hu et al. 2018, figure 3.

    Args:
        kernel_size: of both convolutions; the shortcut's is 1×1.
        strided: which of them carries the stride, 'first' or 'second'.
        reduction: weigh the channels before the addition, by a network a `reduction`-th as wide; None: do not.

    Raises:
        UserError: a size is below 1, the kernel is even, or the channels do not divide by the reduction.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        kernel_size: int = 3,
        strided: str = "first",
        reduction: int | None = None,
    ):
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, stride=stride, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise UserError(f"The kernel size is {kernel_size}; choose an odd one, so that the image keeps its size.")
        if strided not in ("first", "second"):
            raise UserError(f"There is no {strided!r} convolution to carry the stride; choose 'first' or 'second'.")
        strides = (stride, 1) if strided == "first" else (1, stride)
        self.conv1 = convolution(in_channels, out_channels, kernel_size, strides[0])
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, kernel_size, strides[1])
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.excitation = None if reduction is None else excitation(out_channels, reduction)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return out if self.excitation is None else self.excitation(out)


def excitation(channels: int, reduction: int) -> SqueezeExcitation:
    """A factor between 0 and 1 for each channel of an image, from all its channels' means.

    Source: Hu et al. 2018, section 3.
    """
    require_positive(reduction=reduction)
    if channels % reduction:
        raise UserError(f"{channels} channels do not divide by the reduction {reduction}; change one of the two.")
    return SqueezeExcitation(channels, channels // reduction)


class Bottleneck(ResidualBlock):
    """1×1 down, grouped 3×3, 1×1 up: form (c) of a ResNeXt block, and with `cardinality=1` the block of ResNet-50.

    The 3×3 convolution has `cardinality` groups of `group_width` channels each, and it carries the stride, as in the
    ResNeXt paper and in torchvision; He et al. 2016 have it in the first 1×1.

    Source: Xie et al. 2017, figure 3(c), table 1 and section 4.

    Raises:
        UserError: a number of channels, the cardinality, the group width or the stride is below 1.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int = 1, group_width: int, stride: int = 1):
        super().__init__()
        require_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            cardinality=cardinality,
            group_width=group_width,
            stride=stride,
        )
        width = cardinality * group_width
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride, groups=cardinality)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))


class SplitBranches(ResidualBlock):
    """Form (a) of a ResNeXt block: `cardinality` separate bottlenecks whose outputs are summed.

    The last BatchNorm follows the sum, as the paper asks for the forms to be equal. Same arguments as `Bottleneck`.

    Source: Xie et al. 2017, figure 3(a) and section 4.
    """

    sliced_dimension: ClassVar = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int, group_width: int, stride: int = 1):
        super().__init__()
        self.branches = nn.ModuleList()
        for _ in range(cardinality):
            branch = narrow_branch(in_channels, group_width, stride)
            branch.add_module("conv3", convolution(group_width, out_channels, 1))
            self.branches.append(branch)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn3(sum(branch(x) for branch in self.branches))


class EarlyConcatenation(ResidualBlock):
    """Form (b) of a ResNeXt block: the branches are concatenated after their 3×3, then one 1×1 convolution widens them.

    Same arguments as `Bottleneck`.

    Source: Xie et al. 2017, figure 3(b).
    """

    sliced_dimension: ClassVar = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0}

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int, group_width: int, stride: int = 1):
        super().__init__()
        self.branches = nn.ModuleList(narrow_branch(in_channels, group_width, stride) for _ in range(cardinality))
        self.conv3 = convolution(cardinality * group_width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn3(self.conv3(torch.cat([branch(x) for branch in self.branches], dim=1)))


class Res2NetBlock(ResidualBlock):
    """1×1 down, a hierarchy of small 3×3 convolutions, 1×1 up: each part of the channels sees what the one before saw.

    The channels after the first 1×1 are split into `scale` parts x1, x2, … of `cardinality` · `group_width` channels, and
    y1 = x1, y2 = K2(x2), yi = Ki(xi + y(i-1)) for i > 2, where a K is a 3×3 convolution of `cardinality` groups with
    BatchNorm and ReLU. A stride above 1 leaves y(i-1) smaller than xi; then, as in the authors' code, the parts are not
    added and x1 is averaged over 3×3 instead. (That code does so in every first block of a stage, stride 1 included.)

    Source: Gao et al. 2019, section 3.1, equation 1, and section 3.2 for the groups.

    Raises:
        UserError: a size is not a whole number of at least 1, or `scale` is below 2, which is a `Bottleneck`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        scale: int = 4,
        cardinality: int = 1,
        group_width: int,
        stride: int = 1,
    ):
        super().__init__()
        require_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            scale=scale,
            cardinality=cardinality,
            group_width=group_width,
            stride=stride,
        )
        if scale == 1:
            raise UserError("scale is 1, which leaves no 3×3 convolution; choose at least 2, or a Bottleneck.")
        width = cardinality * group_width
        self.conv1 = convolution(in_channels, scale * width, 1)
        self.bn1 = nn.BatchNorm2d(scale * width)
        self.convs = nn.ModuleList(convolution(width, width, 3, stride, groups=cardinality) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.conv3 = convolution(scale * width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        first, *parts = out.chunk(len(self.convs) + 1, dim=1)
        outputs = [self.pool(first)]
        for index, (part, conv, bn) in enumerate(zip(parts, self.convs, self.bns, strict=True)):
            if index and conv.stride == (1, 1):
                part = part + outputs[-1]
            outputs.append(self.relu(bn(conv(part))))
        return self.bn3(self.conv3(torch.cat(outputs, dim=1)))


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after its BatchNorm and ReLU, with dropout between them; the first carries the stride.

    Where the shape changes, the shortcut is a bare 1×1 convolution of the activated input; else it is the input itself.

    Source: Zagoruyko and Komodakis 2016, figure 1(d), and the authors' code for the shortcut.

    Args:
        dropout: the part of the activations that is dropped before the second convolution; the paper takes 0.3 or none.
    """

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dropout: float = 0.0):
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else convolution(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        activated = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        return out + (x if self.downsample is None else self.downsample(activated))


def zero_last_batchnorm(model: nn.Module) -> None:
    """Start every residual block as its shortcut: the weights of its last BatchNorm become 0, in place.

    Works for our blocks and torchvision's.

    Source: Goyal et al. 2017, section 5.1.

    Raises:
        ValueError: no residual block ends in a BatchNorm. That of a WideResNet ends in a convolution.
    """
    blocks = [block for block in model.modules() if hasattr(block, "downsample") and not isinstance(block, WideBlock)]
    if not blocks:
        raise ValueError("No residual block of this network ends in a BatchNorm, so none can start at zero.")
    for block in blocks:
        nn.init.zeros_((block.bn3 if hasattr(block, "bn3") else block.bn2).weight)


def narrow_branch(in_channels: int, group_width: int, stride: int) -> nn.Sequential:
    """One narrow path of figure 3: 1×1 down to `group_width` channels, then 3×3, each with BatchNorm and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv1=convolution(in_channels, group_width, 1),
            bn1=nn.BatchNorm2d(group_width),
            relu1=nn.ReLU(inplace=True),
            conv2=convolution(group_width, group_width, 3, stride),
            bn2=nn.BatchNorm2d(group_width),
            relu2=nn.ReLU(inplace=True),
        )
    )


def slice_into_branches(
    form: type[SplitBranches] | type[EarlyConcatenation], tensors: Mapping[str, Tensor], cardinality: int
) -> dict[str, Tensor]:
    """The named tensors of a `Bottleneck`, sliced and named as in another of its forms.

    It maps a state dict and a dictionary of gradients alike: channels k·d to (k+1)·d belong to branch k. Scalars
    (BatchNorm's step counter) go to every branch; layers that the form keeps whole keep their names.
    """
    mapped = {}
    for name, tensor in tensors.items():
        dimension = form.sliced_dimension.get(name.split(".")[0])
        if dimension is None:
            mapped[name] = tensor
            continue
        slices = [tensor] * cardinality if tensor.dim() == 0 else tensor.chunk(cardinality, dimension)
        mapped |= {f"branches.{branch}.{name}": part for branch, part in enumerate(slices)}
    return mapped


def as_form(
    form: type[SplitBranches] | type[EarlyConcatenation], block: Bottleneck
) -> SplitBranches | EarlyConcatenation:
    """A new block of another form with copies of the grouped block's weights, statistics, dtype, device and mode."""
    twin = form(
        block.conv1.in_channels,
        block.conv3.out_channels,
        cardinality=block.conv2.groups,
        group_width=block.conv2.in_channels // block.conv2.groups,
        stride=block.conv2.stride[0],
    )
    twin.to(block.conv1.weight).load_state_dict(slice_into_branches(form, block.state_dict(), block.conv2.groups))
    return twin.train(block.training)


def require_positive(**sizes: int) -> None:
    """Raise a UserError that names the first size which is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {size!r}.")
