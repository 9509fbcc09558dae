"""Saved models: one safetensors file with a network's weights and everything needed to use them."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import data, experiments, models, training
from helpers.runtime import UserError, choose_device, require, whole, writing
from helpers.training import checkpoints

LARGEST_SIZE = 2048  # pixels of an input's side
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)  # of metadata from elsewhere


@dataclass(frozen=True)
class Preprocessing:
    """Metadata stored with the weights."""

    model: str  # its name in `models.MODELS`
    classes: list[str]  # the name of each label
    image_size: int  # side of the input, in pixels
    stored_size: int  # side, in pixels, of the square from which the centre is cropped
    mean: tuple[float, ...]  # of each channel, for pixels in [0, 1]
    std: tuple[float, ...]
    sample: bool  # trained on generated images: its labels mean nothing
    resize: str = "crop"  # as in `data.load`

    def __post_init__(self):
        kinds = {"model": str, "classes": list, "image_size": int, "stored_size": int, "sample": bool}
        formed = all(type(getattr(self, name)) is kind for name, kind in kinds.items()) and self.resize in ("crop", "squash")
        named = formed and self.classes and all(isinstance(name, str) and name.isprintable() for name in self.classes)
        scaled = len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, [*self.mean, *self.std])) and min(self.std) > 0
        if not (named and scaled and 1 <= self.image_size <= self.stored_size <= LARGEST_SIZE):
            raise ValueError("a value is missing, of the wrong type or out of range")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network in eval mode, its preprocessing, and the facts of its model card, if it has one."""

    network: nn.Module
    about: Preprocessing
    card: dict | None = None


def save_model(path: str | Path, state_dict: dict[str, Tensor], about: Preprocessing, card: dict | None = None) -> Path:
    """Write weights and their metadata to one safetensors file, atomically; raises UserError if they do not fit the model.

    With a `card`, the facts of a model card, the weights are stored in half precision, except biases and BatchNorm.
    """
    path = Path(os.path.expanduser(path))
    build_network(state_dict, about, path.name)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    metadata = {"about": json.dumps(asdict(about))}
    if card:
        metadata["card"] = json.dumps(card)
        tensors = {name: value.half() if value.dim() > 1 else value for name, value in tensors.items()}
    blob = _safetensors().torch.save(tensors, metadata)
    with writing(f"The model {path.name}", "file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(blob)
    return path


def best_weights(record: dict, checkpoint_dir: str | Path | None = None) -> tuple[dict[str, Tensor], Preprocessing]:
    """The best weights of a recorded run and their metadata; raises UserError if its checkpoint is gone or was replaced."""
    name, profile, seed = record["experiment"], record["profile"], record["seed"]
    checkpoint = experiments.checkpoint_path(name, profile, seed, checkpoint_dir)
    state = checkpoints.load_checkpoint(checkpoint)
    again = f"train it again with python -m helpers run {name} --seed {seed} --profile {profile} --fresh"
    require(state is not None, f"There is no checkpoint of {name}, seed {seed}, under {checkpoint.parents[3].name}; {again}.")
    recipe, dataset = record["recipe"], record["dataset"]
    if state["best"] != record["best"] or state["identity"]["images"] != dataset["fingerprint"]:
        raise UserError(f"The checkpoint {checkpoint.name} of {name} is not that of its record; {again}.")
    stored = data.stored_size(dataset["name"], recipe["image_size"])
    shown = (recipe["image_size"], stored, tuple(recipe["mean"]), tuple(recipe["std"]))
    is_sample, resize = dataset["source"] == "sample", recipe.get("resize", "crop")
    return state["best_weights"], Preprocessing(record["model"]["name"], dataset["classes"], *shown, is_sample, resize)


def load_model(path: str | Path, device: str | torch.device | None = None) -> SavedModel:
    """Load a model from `save_model`; raises UserError if the file is missing, damaged, foreign or has the wrong weights."""
    path, device = Path(os.path.expanduser(path)), choose_device(device)
    require(os.path.isfile(path), f"There is no model file '{path}'; make one with python -m helpers save EXPERIMENT FILE.")
    metadata, tensors = _read(path)
    try:
        about = Preprocessing(**json.loads(metadata["about"]))
        card = _parse_card(metadata)
    except (UserError, *MALFORMED) as error:
        mend = "use a file written by python -m helpers save"
        raise UserError(f"The metadata of {path.name} do not describe a model of ours; {mend}.") from error
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    return SavedModel(build_network(tensors, about, path.name).to(device).eval(), about, card)


def _parse_card(metadata: dict[str, str]) -> dict | None:
    """The facts of a model card, or None; one of `MALFORMED` or a UserError if they are not as `ship` writes them."""
    card = json.loads(metadata.get("card", "null"))
    if card is not None:
        training.Recipe(**training.completed(card["recipe"]))
        facts = [(card["experiment"], str), (card["profile"], str), (card["seed"], int), (card["dataset"]["name"], str)]
        facts += [(card["dataset"]["fingerprint"], str)]
        facts += [(card["best"]["val_accuracy"], float), (card["test"]["accuracy"], float), (card["test"]["n"], int)]
        facts += [(label, int) for label in card["predicted"]]
        if not all(isinstance(value, kind) for value, kind in facts) or len(card["predicted"]) != card["test"]["n"]:
            raise ValueError("a fact is of another type, or predictions are missing")
    return card


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    library = _safetensors()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (library.SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is not a valid safetensors file; save the model again, or copy it again.") from error


def _safetensors():
    """Import safetensors only when it is needed: training machines do without it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("Saved models need a package: run 'pip install safetensors'.") from error
    return safetensors


def build_network(tensors: dict[str, Tensor], about: Preprocessing, name: str) -> nn.Module:
    """Build the network with these weights; raises UserError, calling them `name`, if they do not fit or are not finite."""
    unknown = f"{name} needs the model '{about.model[:40]}', which is unknown here; choose one of {', '.join(models.MODELS)}."
    require(about.model in models.MODELS, unknown)
    with torch.device("meta"):
        network = models.build(about.model, len(about.classes))
    kinds = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in (network.state_dict(), tensors)]
    wanted = f"'{about.model}' with {len(about.classes)} classes"
    require(kinds[0] == kinds[1], f"The weights of {name} are not those of {wanted}; save the model again from its run.")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise UserError(f"The weights of {name} are not all finite numbers, so it cannot classify; save another run's model.")
    network.load_state_dict(tensors, assign=True)
    return network
