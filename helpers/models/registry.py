"""The names of all networks, and their published ImageNet weights."""

import contextlib
import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNeXt50_32X4D_Weights, WeightsEnum, get_model

from helpers.models.blocks import require_positive
from helpers.models.resnet import NETWORKS, initialise_he, initialise_torch
from helpers.models.zoo import SimpleNet, WideResNet, ZooResNeXt
from helpers.runtime import UserError

INITIALISATIONS = {"torch": initialise_torch, "he": initialise_he}


@dataclass(frozen=True)
class Model:
    """A row of the registry: how to make the network, its ImageNet weights if any, its initialisation if not `make`'s."""

    make: Callable[[int], nn.Module]
    weights: WeightsEnum | None = None
    initialisation: str | None = None


# Always the first published weights (V1): ResNet-18 has no others, and the two sets of one network come from different
# training recipes, so that only V1 against V1 compares the architectures.
WEIGHTS = {
    "resnext50_32x4d": ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
}


def _from_torchvision(name: str, num_classes: int) -> nn.Module:
    return get_model(name, weights=None, num_classes=num_classes)


MODELS = {
    **{name: Model(network.build, WEIGHTS.get(name)) for name, network in NETWORKS.items()},
    "pikachu_resnext29": Model(NETWORKS["pikachu_resnext29"].build, initialisation="he"),
    **{f"torchvision/{name}": Model(partial(_from_torchvision, name), weights) for name, weights in WEIGHTS.items()},
    "simplenet": Model(SimpleNet),
    **{
        f"wrn{depth}_{width}": Model(partial(WideResNet, depth=depth, width=width))
        for depth, width in ((16, 2), (16, 4), (16, 8), (16, 16), (28, 2), (28, 4))
    },
    "zoo_resnext1": Model(partial(ZooResNeXt, stages=((32, 16), (16, 8)))),
    "zoo_resnext2": Model(partial(ZooResNeXt, stages=((64, 32), (32, 16), (16, 8)))),
    "zoo_resnext3": Model(partial(ZooResNeXt, stages=((16, 8), (8, 4), (4, 4)))),
    "zoo_resnext1_rectified": Model(partial(ZooResNeXt, stages=((32, 16), (16, 8)), rectify=True)),
    # 12 channels, doubled twice, make as many parameters as 32, halved twice: 76,864 against 75,484 for 100 classes.
    "zoo_resnext1_doubling": Model(partial(ZooResNeXt, stages=((12, 24), (24, 48)))),
    "zoo_resnext1_doubling_wide": Model(partial(ZooResNeXt, stages=((32, 64), (64, 128)))),  # from the report's own 32
}


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
    model = MODELS[name]
    try:
        require_positive(num_classes=num_classes)
        network = model.make(1000 if pretrained else num_classes)
    except ValueError as error:
        raise UserError(str(error)) from error
    if pretrained:
        network.load_state_dict(imagenet_weights(name))
        network.fc = nn.Linear(network.fc.in_features, num_classes)
    elif chosen := initialisation or model.initialisation:
        INITIALISATIONS[chosen](network)
    return network


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's ImageNet weights: from torch's cache, else downloaded; checked by its hash either way.

    Raises:
        UserError: there are none for this network, they cannot be downloaded, or the file in the cache is another one.
    """
    weights = MODELS[name].weights
    if weights is None:
        raise UserError(f"There are no ImageNet weights for '{name}'; train it from scratch.")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        require_published(cache / weights.url.rpartition("/")[2])
        # Torch would name this machine's folders, on stdout or, in older versions, on stderr.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason, folder = str(error).partition("\n")[0], str(cache).replace(str(Path.home()), "~", 1)
        raise UserError(
            f"The ImageNet weights for '{name}' could not be had from {weights.url} ({reason}); "
            f"connect to the internet, or put a whole copy of that file into {folder}."
        ) from error


def require_published(path: Path) -> None:
    """Raise an OSError if the file is there and its SHA-256 does not begin with the digits that end its name."""
    if path.exists():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise OSError(f"the {path.name} that is there is not the published one")
