"""All networks by name, and their published ImageNet weights."""

import contextlib
import hashlib
import io
import pickle
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from helpers.models.blocks import require_positive
from helpers.models.resnet import NETWORKS, initialise_he, initialise_torch
from helpers.models.zoo import SimpleNet, WideResNet, ZooResNeXt
from helpers.runtime import UserError, require

# Each layer's default; He-normal (fan-in) with zero biases; the same with biases unchanged.
INITIALISATIONS = {"torch": initialise_torch, "he": initialise_he, "he_weights": partial(initialise_he, zero_biases=False)}
OWN_INITIALISATIONS = {"pikachu_resnext29": "he_weights"}  # where a network's own is not that of its class

# Always the first published weights: ResNet-18 has no others, and the second set comes from another training recipe.
WEIGHTS = {name: get_model_weights(name).IMAGENET1K_V1 for name in ("resnext50_32x4d", "resnet18", "resnet50")}

MODELS = {  # each is called with `num_classes`
    **{name: network.build for name, network in NETWORKS.items()},
    **{f"torchvision/{name}": partial(get_model, name, weights=None) for name in WEIGHTS},
    "simplenet": SimpleNet,
    **{
        f"wrn{depth}_{width}": partial(WideResNet, depth=depth, width=width)
        for depth, width in ((16, 2), (16, 4), (16, 8), (16, 16), (28, 2), (28, 4))
    },
    "zoo_resnext1": partial(ZooResNeXt, stages=((32, 16), (16, 8))),
    "zoo_resnext2": partial(ZooResNeXt, stages=((64, 32), (32, 16), (16, 8))),
    "zoo_resnext3": partial(ZooResNeXt, stages=((16, 8), (8, 4), (4, 4))),
    "zoo_resnext1_rectified": partial(ZooResNeXt, stages=((32, 16), (16, 8)), rectify=True),
    # 12 channels, doubled twice, give about as many parameters as 32, halved twice: 76,864 against 75,484 for 100 classes.
    "zoo_resnext1_doubling": partial(ZooResNeXt, stages=((12, 24), (24, 48))),
    "zoo_resnext1_doubling_wide": partial(ZooResNeXt, stages=((32, 64), (64, 128))),  # from the report's own 32
}


def build(name: str, num_classes: int, *, pretrained: bool = False, initialisation: str | None = None) -> nn.Module:
    """A named network with `num_classes` outputs, from scratch or (`pretrained`) from torchvision's ImageNet weights.

    Our networks load torchvision's weights too: parameter names are the same. The pretrained head is replaced by a new one.
    `initialisation` is one of `INITIALISATIONS`, or None for the network's own. Anything unavailable is a UserError.
    """
    require(name in MODELS, f"There is no model '{name}'; choose one of {', '.join(MODELS)}.")
    known = initialisation in (None, *INITIALISATIONS)
    require(known, f"There is no initialisation '{initialisation}'; choose one of {', '.join(INITIALISATIONS)}, or None.")
    require(not (pretrained and initialisation), "Pretrained weights need no initialisation; leave out one of the two.")
    try:
        require_positive(num_classes=num_classes)
        network = MODELS[name](num_classes=1000 if pretrained else num_classes)
    except ValueError as error:
        raise UserError(str(error)) from error
    if pretrained:
        network.load_state_dict(imagenet_weights(name))
        network.fc = nn.Linear(network.fc.in_features, num_classes)
    elif chosen := initialisation or OWN_INITIALISATIONS.get(name):
        INITIALISATIONS[chosen](network)
    return network


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's weights, from torch's cache or downloaded, verified by hash; else a UserError."""
    weights = WEIGHTS.get(name.removeprefix("torchvision/"))
    require(weights is not None, f"There are no ImageNet weights for '{name}'; train it from scratch.")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        require_published(cache / weights.url.rpartition("/")[2])
        # Torch would print local paths to stdout or, in older versions, to stderr.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason, folder = str(error).partition("\n")[0], str(cache).replace(str(Path.home()), "~", 1)
        failed = f"The ImageNet weights for '{name}' could not be loaded from {weights.url} ({reason})"
        raise UserError(f"{failed}; connect to the internet, or put an intact copy of that file into {folder}.") from error


def require_published(path: Path) -> None:
    """Raise an OSError if the file exists and its SHA-256 does not start with the digits at the end of its name."""
    if path.exists():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise OSError(f"the existing {path.name} is not the published one")
