"""The residual skeleton (stem, stages, head), and the networks built from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from helpers.models.blocks import BasicBlock, Bottleneck, Res2NetBlock, ResidualBlock, WideBlock, conv_bn, require_positive


@dataclass(frozen=True)
class Stem:
    """The layers before the first residual block, by default as for ImageNet. `padding` None: stride 1 keeps the size."""

    channels: int = 64
    kernel_size: int = 7
    stride: int = 2
    max_pool: bool = True
    padding: int | None = None
    pool_padding: int = 1


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one image size; the first carries the stride. `block_arguments`: further keywords for the block."""

    blocks: int
    out_channels: int
    stride: int = 1
    block_arguments: dict = field(default_factory=dict)


class ResidualNet(nn.Module):
    """Stem, stages `layer1`, `layer2`, …, average pooling and one linear layer, with torchvision's parameter names.

    Parameters are drawn in torchvision's order: with the same seed, this network and torchvision's start bit-identical.
    An invalid size is a ValueError. Source: He et al. 2016, table 1; Xie et al. 2017, table 1.
    """

    def __init__(self, block: type[ResidualBlock], stem: Stem, stages: Sequence[Stage], num_classes: int):
        super().__init__()
        channels = stem.channels
        require_positive(channels=channels, kernel_size=stem.kernel_size, stride=stem.stride, num_classes=num_classes)
        self.conv1, self.bn1 = conv_bn(3, channels, stem.kernel_size, stem.stride, padding=stem.padding)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=stem.pool_padding) if stem.max_pool else nn.Identity()
        self.stage_names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, stage in zip(self.stage_names, stages, strict=True):
            require_positive(blocks=stage.blocks)
            first = block(channels, stage.out_channels, stride=stage.stride, **stage.block_arguments)
            channels = stage.out_channels
            rest = (block(channels, channels, **stage.block_arguments) for _ in range(1, stage.blocks))
            self.add_module(name, nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():  # the other layers keep torch's default. Source: He et al. 2015; torchvision's ResNet
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to class scores (N, num_classes), before any softmax."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def initialise_he(model: nn.Module, zero_biases: bool = True) -> None:
    """He-normal convolutions and linear layers (fan-in), with zero or unchanged biases. Source: He et al. 2015, section 2.2.

    Report `zoo`, section 3.4, uses Keras's `he_normal`, which is truncated; report `pikachu`'s code keeps torch's biases.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None and zero_biases:
                nn.init.zeros_(module.bias)


def initialise_torch(model: nn.Module) -> None:
    """Reinitialise every layer with torch's defaults."""
    for layer in [module for module in model.modules() if hasattr(module, "reset_parameters")]:
        layer.reset_parameters()


def zero_last_batchnorm(model: nn.Module) -> None:
    """Make every residual block start as its shortcut: its last BatchNorm's weight becomes 0. Goyal et al. 2017, section 5.1.

    Raises a ValueError if no block of the network ends in a BatchNorm, as in a WideResNet.
    """
    blocks = [block for block in model.modules() if hasattr(block, "downsample") and not isinstance(block, WideBlock)]
    if not blocks:
        raise ValueError("No residual block of this network ends in a BatchNorm, so none can start at zero.")
    for block in blocks:
        nn.init.zeros_((block.bn3 if hasattr(block, "bn3") else block.bn2).weight)


@dataclass(frozen=True)
class Description:
    """A residual network before it is built, so that it can be changed (`dataclasses.replace`) and measured."""

    stem: Stem
    stages: tuple[Stage, ...]
    block: type[ResidualBlock] = BasicBlock

    def build(self, num_classes: int) -> ResidualNet:
        """The network with `num_classes` outputs."""
        return ResidualNet(self.block, self.stem, self.stages, num_classes)


def bottlenecks(
    blocks: Sequence[int], stem: Stem, group_width: int, block: type[ResidualBlock] = Bottleneck, **block_arguments: int
) -> Description:
    """Bottlenecks, from 256 channels; when the image halves, channels and group width double. Xie et al. 2017, table 1."""
    stages = (
        Stage(count, 256 * 2**number, 2 if number else 1, block_arguments | {"group_width": group_width * 2**number})
        for number, count in enumerate(blocks)
    )
    return Description(stem, tuple(stages), block)


def slim_resnet(
    stem: Stem, blocks: Sequence[int], channels: Sequence[int], strides: Sequence[int], kernel_sizes: Sequence[int]
) -> Description:
    """A network as report `slim` specifies it in figure 1: for each setting it varied, one number per stage."""
    stages = zip(blocks, channels, strides, ({"kernel_size": size} for size in kernel_sizes), strict=True)
    return Description(stem, tuple(Stage(*stage) for stage in stages))


def _stride_second(network: Description) -> Description:
    stages = (replace(stage, block_arguments=stage.block_arguments | {"strided": "second"}) for stage in network.stages)
    return replace(network, stages=tuple(stages))


# Report `slim`, figures 1, 3 and 4. Figure 1 omits a stem's stride and max-pool. The first two get ImageNet's, as in the first
# version of its code, which also strides in each block's second convolution; the last two have neither, as text and code say.
SLIM_STEM = Stem(32, 3, 1, max_pool=False)
SLIM = {
    "slim_resnet_trial1": slim_resnet(Stem(32), (2, 2, 2, 2), (64, 128, 256, 512), (1, 2, 2, 2), (3, 3, 3, 3)),
    "slim_resnet_trial2": slim_resnet(Stem(32), (2, 1, 1, 1), (64, 128, 256, 512), (1, 1, 4, 2), (3, 3, 3, 3)),
    "slim_resnet_trial3": slim_resnet(SLIM_STEM, (3, 3, 2, 2), (32, 64, 128, 256), (1, 2, 2, 2), (5, 5, 5, 3)),
    "slim_resnet": slim_resnet(SLIM_STEM, (2, 4, 3, 3), (32, 64, 128, 256), (1, 2, 2, 2), (5, 5, 3, 3)),
    # Thakur et al. 2023 (arXiv 2306.12100), but with squeeze-and-excitation in every block, not once after the stem.
    "slim_resnet_strong": Description(
        Stem(64, 3, 1, max_pool=False),
        (Stage(4, 64, 1, {"reduction": 16}), Stage(4, 128, 2, {"reduction": 16}), Stage(3, 256, 2, {"reduction": 16})),
    ),
}
# The final network with one of the report's two other changes undone.
SLIM["slim_resnet_max_pool"] = replace(SLIM["slim_resnet"], stem=replace(SLIM_STEM, max_pool=True))
SLIM["slim_resnet_stride_second"] = _stride_second(SLIM["slim_resnet"])
# The second trial's blocks in the first version of the report's code (6a6ddec), which has other strides than figure 1.
_coded = slim_resnet(Stem(32), (2, 1, 1, 1), (64, 128, 256, 512), (1, 2, 2, 2), (3, 3, 3, 3))
SLIM["slim_resnet_trial2_coded"] = _stride_second(_coded)

CIFAR_STEM = Stem(64, 3, 1, max_pool=False)  # Xie et al. 2017, section 5.3
NETWORKS = {
    "resnext50_32x4d": bottlenecks((3, 4, 6, 3), Stem(), 4, cardinality=32),
    "resnet18": Description(Stem(), (Stage(2, 64), Stage(2, 128, 2), Stage(2, 256, 2), Stage(2, 512, 2))),
    "resnet50": bottlenecks((3, 4, 6, 3), Stem(), 64, cardinality=1),  # both ResNets: He et al. 2016, table 1
    # The paper's template for CIFAR, section 5.3; the paper's own networks are the last two.
    "resnext29_32x4d": bottlenecks((3, 3, 3), CIFAR_STEM, 4, cardinality=32),
    "resnext29_8x64d": bottlenecks((3, 3, 3), CIFAR_STEM, 64, cardinality=8),
    "resnext29_16x64d": bottlenecks((3, 3, 3), CIFAR_STEM, 64, cardinality=16),
    # Report `amp`, figure 2: 32×4d behind a 1×1 stem of 32 channels.
    "resnext29_under5m": bottlenecks((3, 3, 3), Stem(32, 1, 1, max_pool=False), 4, cardinality=32),
    # Report `pikachu` as coded: without padding in the max-pool, stage one of ResNeXt-50 sees 55×55 pixels; and its own
    # network for CIFAR, which shrinks 32×32 pixels to 8×8 before the first stage.
    "resnext50_unpadded": bottlenecks((3, 4, 6, 3), Stem(pool_padding=0), 4, cardinality=32),
    "pikachu_resnext29": Description(
        Stem(64, 3, 2, padding=3, pool_padding=0),
        tuple(Stage(3, 256 * 2**n, 2 if n else 1, {"cardinality": 32, "group_width": d}) for n, d in enumerate((2, 8, 16))),
        Bottleneck,
    ),
    # Gao et al. 2019, section 4.3: 6 groups of 24 channels in each of 4 parts.
    "res2next29_6c24w4s": bottlenecks((3, 3, 3), CIFAR_STEM, 24, Res2NetBlock, cardinality=6, scale=4),
    **SLIM,
}
