"""The wholes: one residual skeleton (stem, stages, head), named models, their sizes, the majority-class baseline."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNeXt50_32X4D_Weights, WeightsEnum, get_model

from helpers.blocks import BasicBlock, Bottleneck, ResidualBlock, convolution, require_positive
from helpers.runtime import UserError


@dataclass(frozen=True)
class Stem:
    """The layers before the first residual block; the defaults are those of ImageNet networks."""

    channels: int = 64
    kernel_size: int = 7
    stride: int = 2
    max_pool: bool = True


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
        self.conv1 = convolution(3, stem.channels, stem.kernel_size, stem.stride)
        self.bn1 = nn.BatchNorm2d(stem.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem.max_pool else nn.Identity()
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


def resnet18(num_classes: int) -> ResidualNet:
    """ResNet-18. Source: He et al. 2016, table 1."""
    stages = [Stage(2, 64), Stage(2, 128, 2), Stage(2, 256, 2), Stage(2, 512, 2)]
    return ResidualNet(BasicBlock, Stem(), stages, num_classes)


def resnet50(num_classes: int) -> ResidualNet:
    """ResNet-50: one group as wide as the bottleneck. Source: He et al. 2016, table 1."""
    return bottleneck50(num_classes, cardinality=1, group_width=64)


def resnext50_32x4d(num_classes: int) -> ResidualNet:
    """ResNeXt-50 (32×4d): 32 groups of 4 channels, twice as wide each stage. Source: Xie et al. 2017, table 1."""
    return bottleneck50(num_classes, cardinality=32, group_width=4)


def bottleneck50(num_classes: int, cardinality: int, group_width: int) -> ResidualNet:
    """50 layers of bottlenecks: whenever the image halves, the channels and the group width double."""
    stages = []
    for number, blocks in enumerate((3, 4, 6, 3)):
        out_channels = 64 * 2**number * Bottleneck.expansion
        arguments = {"cardinality": cardinality, "group_width": group_width * 2**number}
        stages.append(Stage(blocks, out_channels, stride=1 if number == 0 else 2, block_arguments=arguments))
    return ResidualNet(Bottleneck, Stem(), stages, num_classes)


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


@dataclass(frozen=True)
class Model:
    """A row of the registry: how to make the network, and where its ImageNet weights are, if any."""

    make: Callable[[int], nn.Module]
    weights: WeightsEnum | None = None


def from_torchvision(name: str, num_classes: int) -> nn.Module:
    """torchvision's own network, from scratch."""
    return get_model(name, weights=None, num_classes=num_classes)


# Always the first published weights (V1): ResNet-18 has no others, and the two sets of one network come from different
# training recipes, so that only V1 against V1 compares the architectures.
MODELS = {
    "resnext50_32x4d": Model(resnext50_32x4d, ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
    "resnet18": Model(resnet18, ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": Model(resnet50, ResNet50_Weights.IMAGENET1K_V1),
    "resnext29_32x4d": Model(partial(resnext29_paper, cardinality=32, group_width=4)),
    "resnext29_8x64d": Model(partial(resnext29_paper, cardinality=8, group_width=64)),
    "resnext29_16x64d": Model(partial(resnext29_paper, cardinality=16, group_width=64)),
    "resnext29_under5m": Model(resnext29_under5m),
    "torchvision/resnext50_32x4d": Model(
        partial(from_torchvision, "resnext50_32x4d"), ResNeXt50_32X4D_Weights.IMAGENET1K_V1
    ),
    "torchvision/resnet18": Model(partial(from_torchvision, "resnet18"), ResNet18_Weights.IMAGENET1K_V1),
    "torchvision/resnet50": Model(partial(from_torchvision, "resnet50"), ResNet50_Weights.IMAGENET1K_V1),
}


def names() -> list[str]:
    """The names that `build` knows."""
    return list(MODELS)


def build(name: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """A named network with `num_classes` outputs, from scratch or (`pretrained`) from torchvision's ImageNet weights.

    Ours take torchvision's weights too: the parameter names are the same. The pretrained head is replaced by a new one.

    Raises:
        UserError: the name is unknown, `num_classes` is not a whole number of at least 1, this network has no published
            weights, or they cannot be downloaded.
    """
    if name not in MODELS:
        raise UserError(f"There is no model '{name}'; choose one of {', '.join(names())}.")
    require_positive(num_classes=num_classes)
    model = MODELS[name]
    if not pretrained:
        return model.make(num_classes)
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
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The ImageNet weights for '{name}' could not be had from {weights.url} ({reason}); "
            f"connect to the internet, or put a whole copy of that file into {torch.hub.get_dir()}/checkpoints."
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
