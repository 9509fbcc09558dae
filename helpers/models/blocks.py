"""Residual blocks, and the three equivalent forms of a ResNeXt block. Parameters are named as in torchvision."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


def require_positive(**sizes: int) -> None:
    """Raise a ValueError that names the first size that is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}.")


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution without bias (the BatchNorm after it has one); by default, stride 1 keeps the image size."""
    padding = kernel_size // 2 if padding is None else padding
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)


def conv_bn(in_channels: int, out_channels: int, *arguments: int, **keywords: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A `convolution` and the BatchNorm after it."""
    return convolution(in_channels, out_channels, *arguments, **keywords), nn.BatchNorm2d(out_channels)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's 1×1 convolution where the shape changes, else None. Source: He et al. 2016, section 4.1, option B."""
    same = stride == 1 and in_channels == out_channels
    return None if same else nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))


class ResidualBlock(nn.Module):
    """Base of residual blocks: `relu(residual(x) + shortcut(x))`. A size that is not a whole number above 0 is a ValueError.

    A subclass registers layers in torchvision's order, `downsample` last: initialisation draws random numbers in that order.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, **sizes: int):
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, stride=stride, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        return self.relu(self.residual(x) + (x if self.downsample is None else self.downsample(x)))


def excitation(channels: int, reduction: int) -> SqueezeExcitation:
    """Scale each channel by a factor between 0 and 1, computed from all channel means. Source: Hu et al. 2018, section 3."""
    require_positive(reduction=reduction)
    if channels % reduction:
        raise ValueError(f"{channels} channels are not divisible by the reduction {reduction}; change one of the two.")
    return SqueezeExcitation(channels, channels // reduction)


class BasicBlock(ResidualBlock):
    """Two convolutions of `kernel_size`; `strided` ('first' or 'second') has the stride. An even kernel is a ValueError.

    With `reduction`, squeeze-and-excitation with `out_channels / reduction` hidden channels comes before the addition.
    Source: He et al. 2016, figure 5 left; squeeze-and-excitation as in Hu et al. 2018, figure 3.
    """

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
        super().__init__(in_channels, out_channels, stride, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"The kernel size is {kernel_size}; choose an odd one, so that the image keeps its size.")
        if strided not in ("first", "second"):
            raise ValueError(f"There is no {strided!r} convolution to carry the stride; choose 'first' or 'second'.")
        strides = (stride, 1) if strided == "first" else (1, stride)
        self.conv1, self.bn1 = conv_bn(in_channels, out_channels, kernel_size, strides[0])
        self.conv2, self.bn2 = conv_bn(out_channels, out_channels, kernel_size, strides[1])
        self.excitation = None if reduction is None else excitation(out_channels, reduction)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return out if self.excitation is None else self.excitation(out)


class Bottleneck(ResidualBlock):
    """1×1 down, grouped 3×3, 1×1 up: form (c) of a ResNeXt block, and with `cardinality=1` the block of ResNet-50.

    The 3×3 convolution has `cardinality` groups of `group_width` channels each, and it carries the stride, as in
    torchvision; He et al. 2016 have it in the first 1×1. Source: Xie et al. 2017, figure 3(c), table 1 and section 4.
    """

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int = 1, group_width: int, stride: int = 1):
        super().__init__(in_channels, out_channels, stride, cardinality=cardinality, group_width=group_width)
        width = cardinality * group_width
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride, groups=cardinality)
        self.conv3, self.bn3 = conv_bn(width, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))


class SplitBranches(ResidualBlock):
    """Form (a) of a ResNeXt block, Xie et al. 2017, figure 3: `cardinality` bottlenecks, summed before the last BatchNorm."""

    concatenated = False

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int, group_width: int, stride: int = 1):
        super().__init__(in_channels, out_channels, stride, cardinality=cardinality, group_width=group_width)
        self.branches = nn.ModuleList(narrow_branch(in_channels, group_width, stride) for _ in range(cardinality))
        if self.concatenated:
            self.conv3 = convolution(cardinality * group_width, out_channels, 1)
        else:
            for branch in self.branches:
                branch.add_module("conv3", convolution(group_width, out_channels, 1))
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        return self.bn3(self.conv3(torch.cat(outputs, dim=1)) if self.concatenated else sum(outputs))

    @classmethod
    def slices(cls, tensors: Mapping[str, Tensor], cardinality: int) -> dict[str, Tensor]:
        """A `Bottleneck`'s tensors (state dict, gradients) under this form's names; branch k has channels k·d to (k+1)·d."""
        dimensions = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0} | ({} if cls.concatenated else {"conv3": 1})
        sliced = {}
        for name, tensor in tensors.items():
            if (dimension := dimensions.get(name.split(".")[0])) is None:
                sliced[name] = tensor
            else:
                parts = tensor.chunk(cardinality, dimension) if tensor.dim() else [tensor] * cardinality
                sliced |= {f"branches.{branch}.{name}": part for branch, part in enumerate(parts)}
        return sliced

    @classmethod
    def from_grouped(cls, block: Bottleneck) -> "SplitBranches":
        """A new block of this form with copies of the grouped block's weights, statistics, dtype, device and mode."""
        cardinality, width, stride = block.conv2.groups, block.conv2.in_channels, block.conv2.stride[0]
        sizes = {"cardinality": cardinality, "group_width": width // cardinality, "stride": stride}
        twin = cls(block.conv1.in_channels, block.conv3.out_channels, **sizes)
        twin.to(block.conv1.weight).load_state_dict(cls.slices(block.state_dict(), cardinality))
        return twin.train(block.training)


class EarlyConcatenation(SplitBranches):
    """Form (b): the branches are concatenated after their 3×3, then one 1×1 convolution widens them."""

    concatenated = True


def narrow_branch(in_channels: int, group_width: int, stride: int) -> nn.Sequential:
    """One narrow path of figure 3: 1×1 down to `group_width` channels, then 3×3, each with BatchNorm and ReLU."""
    conv1, bn1 = conv_bn(in_channels, group_width, 1)
    conv2, bn2 = conv_bn(group_width, group_width, 3, stride)
    relu1, relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(conv1=conv1, bn1=bn1, relu1=relu1, conv2=conv2, bn2=bn2, relu2=relu2))


class Res2NetBlock(ResidualBlock):
    """1×1 down, a hierarchy of small 3×3 convolutions, 1×1 up: each part of the channels sees more than the one before.

    The channels after the first 1×1 are split into `scale` parts x1, x2, … of `cardinality` · `group_width` channels, and
    y1 = x1, y2 = K2(x2), yi = Ki(xi + y(i-1)) for i > 2, where each K is a 3×3 convolution with `cardinality` groups,
    BatchNorm and ReLU. With a stride above 1, y(i-1) is smaller than xi; then, as in the authors' code, parts are not added
    and x1 is average-pooled over 3×3. (The authors do this in the first block of every stage, even where the stride is 1.)
    Source: Gao et al. 2019, section 3.1, equation 1, and section 3.2 for the groups.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, scale: int = 4, cardinality: int = 1, group_width: int, stride: int = 1
    ):
        super().__init__(in_channels, out_channels, stride, scale=scale, cardinality=cardinality, group_width=group_width)
        if scale == 1:
            raise ValueError("scale is 1, which leaves no 3×3 convolution; choose at least 2, or a Bottleneck.")
        width = cardinality * group_width
        self.conv1, self.bn1 = conv_bn(in_channels, scale * width, 1)
        self.convs = nn.ModuleList(convolution(width, width, 3, stride, groups=cardinality) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.conv3, self.bn3 = conv_bn(scale * width, out_channels, 1)
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
    """Two 3×3 convolutions, each preceded by BatchNorm and ReLU, without dropout; the first carries the stride.

    If the shape changes, the shortcut is a bare 1×1 convolution of the activated input; otherwise it is the input itself.
    Source: Zagoruyko and Komodakis 2016, figure 1(c), and the authors' code for the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else convolution(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        activated = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.downsample is None else self.downsample(activated))
