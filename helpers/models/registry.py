"""The wholes: one residual skeleton (stem, stages, head), named models, their sizes, the majority-class baseline."""

import contextlib
import copy
import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNeXt50_32X4D_Weights, WeightsEnum, get_model

from helpers.models.blocks import BasicBlock, Bottleneck, Res2NetBlock, ResidualBlock, convolution, require_positive
from helpers.models.zoo import SimpleNet, WideResNet, ZooResNeXt, start_he_normal
from helpers.runtime import UserError


@dataclass(frozen=True)
class Stem:
    """The layers before the first residual block; the defaults are those of ImageNet networks.

    `padding` is the convolution's; None keeps the image size at stride 1.
    """

    channels: int = 64
    kernel_size: int = 7
    stride: int = 2
    max_pool: bool = True
    padding: int | None = None
    pool_padding: int = 1


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one image size; the first block carries the stride and the change of width.

    `block_arguments` are further keywords of the block class, such as `cardinality` and `group_width`.
    """

    blocks: int
    out_channels: int
    stride: int = 1
    block_arguments: dict = field(default_factory=dict)


class ResidualNet(nn.Module):
    """Stem, stages `layer1`, `layer2`, …, average pooling and one linear layer, with torchvision's parameter names.

    Parameters are drawn in torchvision's order: under one seed, this network and torchvision's start bit for bit equal.

    Source: He et al. 2016, table 1; Xie et al. 2017, table 1.

    Raises:
        UserError: a size in the description is not a whole number of at least 1.
        TypeError: the block class does not know one of a stage's block arguments.
    """

    def __init__(self, block: type[ResidualBlock], stem: Stem, stages: Sequence[Stage], num_classes: int):
        super().__init__()
        require_positive(
            channels=stem.channels, kernel_size=stem.kernel_size, stride=stem.stride, num_classes=num_classes
        )
        self.conv1 = convolution(3, stem.channels, stem.kernel_size, stem.stride, padding=stem.padding)
        self.bn1 = nn.BatchNorm2d(stem.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=stem.pool_padding) if stem.max_pool else nn.Identity()
        self.stage_names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        channels = stem.channels
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, make_stage(block, channels, stage))
            channels = stage.out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to class scores (N, num_classes), before any softmax."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


@dataclass(frozen=True)
class Description:
    """A residual network before it is built, so that it can be changed (`dataclasses.replace`) and measured."""

    stem: Stem
    stages: tuple[Stage, ...]
    block: type[ResidualBlock] = BasicBlock

    def build(self, num_classes: int, *, image_size: int | None = None, budget: int | None = None) -> ResidualNet:
        """The network with `num_classes` outputs.

        Args:
            image_size: pixels of the images it must be able to take; None: not checked.
            budget: the most parameters it may have; None: as many as it has.

        Raises:
            UserError: a size in the description cannot be, the strides shrink the image to nothing, or the network has
                more parameters than the budget allows.
        """
        network = ResidualNet(self.block, self.stem, self.stages, num_classes)
        shrink = self.stem.stride * (2 if self.stem.max_pool else 1) * math.prod(stage.stride for stage in self.stages)
        if image_size is not None and shrink > image_size:
            raise UserError(
                f"The strides divide the image by {shrink}, and it has {image_size} pixels a side; take smaller strides."
            )
        parameters = count_parameters(network)
        if budget is not None and parameters > budget:
            raise UserError(f"The network has {parameters:,} parameters, and the budget is {budget:,}; take fewer channels.")
        return network


def make_stage(block: type[ResidualBlock], in_channels: int, stage: Stage) -> nn.Sequential:
    """The stage's blocks in a row."""
    require_positive(blocks=stage.blocks)
    first = block(in_channels, stage.out_channels, stride=stage.stride, **stage.block_arguments)
    rest = (block(stage.out_channels, stage.out_channels, **stage.block_arguments) for _ in range(1, stage.blocks))
    return nn.Sequential(first, *rest)


def initialise(model: nn.Module) -> None:
    """He-normal convolutions (fan out), BatchNorm at one and zero; a linear layer keeps torch's own start.

    Source: He et al. 2015, section 2.2; torchvision's ResNet.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


RESNET18 = Description(Stem(), (Stage(2, 64), Stage(2, 128, 2), Stage(2, 256, 2), Stage(2, 512, 2)))  # He et al. 2016, table 1


def slim_resnet(
    stem: Stem, blocks: Sequence[int], channels: Sequence[int], strides: Sequence[int], kernel_sizes: Sequence[int]
) -> Description:
    """A network as report `slim` writes it down, figure 1: for each thing it tried, one number a stage."""
    stages = zip(blocks, channels, strides, ({"kernel_size": size} for size in kernel_sizes), strict=True)
    return Description(stem, tuple(Stage(*stage) for stage in stages))


# Report `slim`, figures 1, 3 and 4. A trial's stem stride and max-pool are not recorded: the first two get ImageNet's, with
# whose small images torchvision's ResNet-18 reaches as little (78 %); the last two have neither, as its text and code say.
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
# The final network with one of the report's two other moves taken back.
SLIM["slim_resnet_max_pool"] = replace(SLIM["slim_resnet"], stem=replace(SLIM_STEM, max_pool=True))
SLIM["slim_resnet_stride_second"] = replace(
    SLIM["slim_resnet"],
    stages=tuple(
        replace(stage, block_arguments=stage.block_arguments | {"strided": "second"}) for stage in SLIM["slim_resnet"].stages
    ),
)


def resnet50(num_classes: int) -> ResidualNet:
    """ResNet-50: one group as wide as the bottleneck. Source: He et al. 2016, table 1."""
    return bottleneck50(num_classes, cardinality=1, group_width=64)


def resnext50_32x4d(num_classes: int) -> ResidualNet:
    """ResNeXt-50 (32×4d): 32 groups of 4 channels, twice as wide each stage. Source: Xie et al. 2017, table 1."""
    return bottleneck50(num_classes, cardinality=32, group_width=4)


def resnext50_unpadded(num_classes: int) -> ResidualNet:
    """ResNeXt-50 (32×4d) as report `pikachu` coded it: the max-pool has no padding, so stage one sees 55×55 pixels."""
    return bottleneck50(num_classes, cardinality=32, group_width=4, stem=Stem(pool_padding=0))


def bottleneck50(num_classes: int, cardinality: int, group_width: int, stem: Stem = Stem()) -> ResidualNet:  # noqa: B008
    """50 layers of bottlenecks: whenever the image halves, the channels and the group width double."""
    stages = []
    for number, blocks in enumerate((3, 4, 6, 3)):
        out_channels = 64 * 2**number * Bottleneck.expansion
        arguments = {"cardinality": cardinality, "group_width": group_width * 2**number}
        stages.append(Stage(blocks, out_channels, stride=1 if number == 0 else 2, block_arguments=arguments))
    return ResidualNet(Bottleneck, stem, stages, num_classes)


# Report `pikachu`'s own network for CIFAR-10, as its published code has it: the stem shrinks 32×32 pixels to 8×8.
PIKACHU_RESNEXT29 = Description(
    Stem(64, 3, 2, padding=3, pool_padding=0),
    tuple(
        Stage(3, out_channels, stride, {"cardinality": 32, "group_width": group_width})
        for out_channels, stride, group_width in ((256, 1, 2), (512, 2, 8), (1024, 2, 16))
    ),
    Bottleneck,
)


def resnext29(num_classes: int, cardinality: int, group_width: int, stem: Stem) -> ResidualNet:
    """A 29-layer ResNeXt for 32×32 images: three stages of three blocks, the images halved before the last two."""
    stages = []
    for number in range(3):
        arguments = {"cardinality": cardinality, "group_width": group_width * 2**number}
        stages.append(Stage(3, 256 * 2**number, stride=1 if number == 0 else 2, block_arguments=arguments))
    return ResidualNet(Bottleneck, stem, stages, num_classes)


def resnext29_paper(num_classes: int, cardinality: int, group_width: int) -> ResidualNet:
    """The CIFAR network of Xie et al. 2017, section 5.2 and appendix A: a 3×3 stem of 64 channels."""
    return resnext29(num_classes, cardinality, group_width, Stem(64, 3, 1, max_pool=False))


def resnext29_under5m(num_classes: int) -> ResidualNet:
    """Report `amp`'s network of 4,761,770 parameters, figure 2: 32×4d behind a 1×1 stem of 32 channels."""
    return resnext29(num_classes, 32, 4, Stem(32, 1, 1, max_pool=False))


def res2next29_6c24w4s(num_classes: int) -> ResidualNet:
    """ResNeXt-29 with Res2Net blocks: 6 groups of 24 channels in each of 4 parts. Source: Gao et al. 2019, section 4.3."""
    stages = []
    for number in range(3):
        arguments = {"scale": 4, "cardinality": 6, "group_width": 24 * 2**number}
        stages.append(Stage(3, 256 * 2**number, stride=1 if number == 0 else 2, block_arguments=arguments))
    return ResidualNet(Res2NetBlock, Stem(64, 3, 1, max_pool=False), stages, num_classes)


@dataclass(frozen=True)
class Model:
    """A row of the registry: how to make the network, its ImageNet weights if any, and its initialisation if not `make`'s."""

    make: Callable[[int], nn.Module]
    weights: WeightsEnum | None = None
    initialisation: str | None = None


def from_torchvision(name: str, num_classes: int) -> nn.Module:
    """torchvision's own network, from scratch."""
    return get_model(name, weights=None, num_classes=num_classes)


# Always the first published weights (V1): ResNet-18 has no others, and the two sets of one network come from different
# training recipes, so that only V1 against V1 compares the architectures.
MODELS = {
    "resnext50_32x4d": Model(resnext50_32x4d, ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
    "resnet18": Model(RESNET18.build, ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": Model(resnet50, ResNet50_Weights.IMAGENET1K_V1),
    "resnext29_32x4d": Model(partial(resnext29_paper, cardinality=32, group_width=4)),
    "resnext29_8x64d": Model(partial(resnext29_paper, cardinality=8, group_width=64)),
    "resnext29_16x64d": Model(partial(resnext29_paper, cardinality=16, group_width=64)),
    "resnext29_under5m": Model(resnext29_under5m),
    "resnext50_unpadded": Model(resnext50_unpadded, ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
    "pikachu_resnext29": Model(PIKACHU_RESNEXT29.build, initialisation="he"),
    **{name: Model(description.build) for name, description in SLIM.items()},
    "torchvision/resnext50_32x4d": Model(
        partial(from_torchvision, "resnext50_32x4d"), ResNeXt50_32X4D_Weights.IMAGENET1K_V1
    ),
    "torchvision/resnet18": Model(partial(from_torchvision, "resnet18"), ResNet18_Weights.IMAGENET1K_V1),
    "torchvision/resnet50": Model(partial(from_torchvision, "resnet50"), ResNet50_Weights.IMAGENET1K_V1),
    "simplenet": Model(SimpleNet),
    "wrn16_2": Model(partial(WideResNet, depth=16, width=2)),
    "wrn16_4": Model(partial(WideResNet, depth=16, width=4)),
    "wrn16_8": Model(partial(WideResNet, depth=16, width=8)),
    "wrn16_16": Model(partial(WideResNet, depth=16, width=16)),
    "wrn28_2": Model(partial(WideResNet, depth=28, width=2)),
    "wrn28_4": Model(partial(WideResNet, depth=28, width=4)),
    "res2next29_6c24w4s": Model(res2next29_6c24w4s),
    "zoo_resnext1": Model(partial(ZooResNeXt, stages=((32, 16), (16, 8)))),
    "zoo_resnext2": Model(partial(ZooResNeXt, stages=((64, 32), (32, 16), (16, 8)))),
    "zoo_resnext3": Model(partial(ZooResNeXt, stages=((16, 8), (8, 4), (4, 4)))),
    "zoo_resnext1_rectified": Model(partial(ZooResNeXt, stages=((32, 16), (16, 8)), rectify=True)),
    # 12 channels, doubled twice, make as many parameters as 32, halved twice: 76,864 against 75,484 for 100 classes.
    "zoo_resnext1_doubling": Model(partial(ZooResNeXt, stages=((12, 24), (24, 48)))),
    "zoo_resnext1_doubling_wide": Model(partial(ZooResNeXt, stages=((32, 64), (64, 128)))),  # from the report's own 32
}


def initialise_torch(model: nn.Module) -> None:
    """Torch's default weights in every layer, drawn anew."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


INITIALISATIONS = {"torch": initialise_torch, "he": start_he_normal}


def names() -> list[str]:
    """The names that `build` knows."""
    return list(MODELS)


def build(name: str, num_classes: int, *, pretrained: bool = False, initialisation: str | None = None) -> nn.Module:
    """A named network with `num_classes` outputs, from scratch or (`pretrained`) from torchvision's ImageNet weights.

    Ours take torchvision's weights too: the parameter names are the same. The pretrained head is replaced by a new one.

    Args:
        initialisation: `torch` (each layer's default), `he` (He-normal convolutions and linear layers, fan-in), or None,
            the network's own.

    Raises:
        UserError: the name or the initialisation is unknown, `num_classes` is not a whole number of at least 1, this
            network has no published weights, or they cannot be downloaded.
    """
    if name not in MODELS:
        raise UserError(f"There is no model '{name}'; choose one of {', '.join(names())}.")
    if initialisation not in (None, *INITIALISATIONS):
        raise UserError(f"There is no initialisation '{initialisation}'; choose one of {', '.join(INITIALISATIONS)}, or None.")
    if pretrained and initialisation:
        raise UserError("Pretrained weights need no initialisation; leave out one of the two.")
    require_positive(num_classes=num_classes)
    model = MODELS[name]
    if not pretrained:
        network = model.make(num_classes)
        if chosen := initialisation or model.initialisation:
            INITIALISATIONS[chosen](network)
        return network
    network = model.make(1000)
    network.load_state_dict(imagenet_weights(name))
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    return network


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's ImageNet weights: from torch's cache, else downloaded and checked by its hash."""
    weights = MODELS[name].weights
    if weights is None:
        raise UserError(f"There are no ImageNet weights for '{name}'; train it from scratch.")
    try:
        # Torch would name this machine's folders, on stdout or, in older versions, on stderr.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        cache = torch.hub.get_dir().replace(str(Path.home()), "~", 1)
        raise UserError(
            f"The ImageNet weights for '{name}' could not be had from {weights.url} ({reason}); "
            f"connect to the internet, or put a whole copy of that file into {cache}/checkpoints."
        ) from error


def count_parameters(model: nn.Module) -> int:
    """How many trainable numbers the network has; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> int:
    """Multiply–adds of convolutions and linear layers in one forward pass; what papers often call FLOPs.

    Torch counts two operations for each multiply–add. The pass runs on a copy without data, so nothing of the model
    changes and nothing is really computed.
    """
    return sum(row.macs for row in layer_table(model, input_shape))


@dataclass(frozen=True)
class LayerRow:
    """One child of a network: its name, the shape that it gives, its trainable parameters and its multiply–adds."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> list[LayerRow]:
    """The direct children of a network in the order of their use, for a batch of `input_shape` (N, 3, H, W)."""
    ghost = copy.deepcopy(model).to("meta").eval()
    shapes = {}

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        shapes[name] = tuple(output.shape)

    for name, child in ghost.named_children():
        child.register_forward_hook(partial(note, name))
    images = torch.empty(input_shape, device="meta", dtype=next(ghost.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(images)
    operations = counter.get_flop_counts()
    root = type(ghost).__name__
    rows = []
    for name, shape in shapes.items():
        macs = sum(operations.get(f"{root}.{name}", {}).values()) // 2
        rows.append(LayerRow(name, shape, count_parameters(ghost.get_submodule(name)), macs))
    return rows


def torchsummary_table(model: nn.Module, image_size: int) -> str:
    """The text that torchsummary prints for square images, `image_size` pixels a side.

    It runs random images through the network in the mode it is in, so it gets a copy on the CPU and a fork of the
    random state: the model's BatchNorm statistics and the caller's random numbers stay as they were.
    """
    from torchsummary import summary

    text = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(text):
        summary(copy.deepcopy(model).cpu(), (3, image_size, image_size), device="cpu")
    return text.getvalue()


def majority_class(labels: Tensor) -> int:
    """The most frequent label (the smallest of equals): the baseline that every trained model must pass."""
    return int(torch.bincount(torch.as_tensor(labels)).argmax())
