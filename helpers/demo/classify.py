"""Your image: saved models that bring their preprocessing with them, labels for files and URLs, and what a label rests on."""

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import experiments, models, runtime, training
from helpers.data import Split, batches, cifar
from helpers.data.photographs import decode_photograph
from helpers.data.pools import why
from helpers.experiments import records as results
from helpers.runtime import UserError, choose_device
from helpers.training import checkpoints

LARGEST_DOWNLOAD = 32 * 2**20  # bytes
LONGEST_DOWNLOAD = 20.0  # seconds
CHUNK = 256  # images held in memory at a time


@dataclass(frozen=True)
class Preprocessing:
    """All that a model's weights mean nothing without.

    Attributes:
        model: its name in `models.MODELS`.
        classes: the name of each label.
        image_size: pixels of its input; stored_size: those to which an image is made small before its middle is cut out.
        mean, std: of each channel, for pixels in [0, 1].
        sample: whether it was trained on generated images; then its labels mean nothing.
    """

    model: str
    classes: list[str]
    image_size: int
    stored_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sample: bool

    def __post_init__(self):
        texts = isinstance(self.model, str) and isinstance(self.classes, list) and len(self.classes) > 0
        texts = texts and all(isinstance(name, str) for name in self.classes)
        whole = all(type(size) is int for size in (self.image_size, self.stored_size)) and type(self.sample) is bool
        numbers = [*self.mean, *self.std]
        if not (texts and whole and len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, numbers))):
            raise ValueError("a value is missing or of another kind")
        if not 1 <= self.image_size <= self.stored_size or min(self.std) <= 0:
            raise ValueError("its image sizes or deviations cannot be")

    @property
    def recipe(self) -> training.Recipe:
        """A recipe with this preprocessing, for `training.predict`; in full precision, as there is no hurry."""
        sizes = {"epochs": 1, "batch_size": 1, "image_size": self.image_size}
        return training.Recipe(**sizes, mean=tuple(self.mean), std=tuple(self.std), mixed_precision=False)


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network in eval mode, and how its images are made."""

    network: nn.Module
    about: Preprocessing


def save_model(
    path: str | Path,
    model_name: str,
    state_dict: dict[str, Tensor],
    classes: Sequence[str],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    stored_size: int,
    sample: bool,
) -> Path:
    """Write weights and their `Preprocessing` into one safetensors file, whole or not at all.

    Raises:
        UserError: the weights are not this model's, a value cannot be, or the file cannot be written.
    """
    path = Path(path).expanduser()
    try:
        about = Preprocessing(model_name, list(classes), image_size, stored_size, tuple(mean), tuple(std), sample)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path.name} was not saved: of its preprocessing, {error}.") from error
    _check_weights(state_dict, about, path.name)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    blob = _safetensors().torch.save(tensors, {"about": json.dumps(asdict(about))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime.save_bytes(path, blob)
    except OSError as error:
        raise UserError(f"The model {path.name} could not be written ({error.strerror}); choose another file.") from error
    return path


def save_run(path: str | Path, record: dict, checkpoint_dir: str | Path | None = None) -> Path:
    """Write the model of a recorded run: the weights of its best epoch, which its checkpoint keeps.

    Raises:
        UserError: its checkpoint is not there any more, or is another run's.
    """
    name, profile, seed = record["experiment"], record["profile"], record["seed"]
    checkpoint = experiments.checkpoint_path(name, profile, seed, checkpoint_dir)
    state = checkpoints.load_checkpoint(checkpoint)
    again = f"train it again with python -m helpers run {name} --seed {seed} --profile {profile} --fresh"
    if state is None:
        raise UserError(f"There is no checkpoint of {name}, seed {seed}, under {checkpoint.parents[3].name}; {again}.")
    if state["best"] != record["best"] or state["identity"]["images"] != record["dataset"]["fingerprint"]:
        raise UserError(f"The checkpoint {checkpoint.name} of {name} is not that of its record; {again}.")
    recipe, dataset = record["recipe"], experiments.find(name).dataset
    return save_model(
        path,
        record["model"]["name"],
        state["best_weights"],
        record["dataset"]["classes"],
        recipe["image_size"],
        recipe["mean"],
        recipe["std"],
        stored_size=stored_size(dataset, recipe["image_size"]),
        sample=record["dataset"]["source"] == "sample",
    )


def save_best(
    path: str | Path,
    fingerprint: str,
    results_dirs: Sequence[str | Path],
    checkpoint_dir: str | Path | None = None,
) -> dict | None:
    """Write the model of the best run on some images; returns its record, or None where no run can be saved.

    The best has the highest validation accuracy, then the lowest validation loss, of the runs that have a record in one of
    the folders and still have their checkpoint.

    Args:
        fingerprint: that of the data set.
    """
    records = [record for folder in results_dirs for record in results.load_all(folder)]
    own = [record for record in records if record["dataset"]["fingerprint"] == fingerprint]
    for record in sorted(own, key=lambda record: (-record["best"]["val_accuracy"], record["best"]["val_loss"])):
        with suppress(UserError):  # no checkpoint, or another run's: the next best may have its own
            save_run(path, record, checkpoint_dir)
            return record
    return None


def save_imagenet(path: str | Path, model_name: str = "resnext50_32x4d") -> Path:
    """Write a network with torchvision's ImageNet weights, their 1,000 class names and their preprocessing.

    Raises:
        UserError: there are no such weights for this network, they cannot be had, or the file cannot be written.
    """
    network = models.build(model_name, 1000)
    network.load_state_dict(models.imagenet_weights(model_name))
    weights = models.MODELS[model_name].weights
    shown = weights.transforms()
    return save_model(
        path,
        model_name,
        network.state_dict(),
        weights.meta["categories"],
        shown.crop_size[0],
        shown.mean,
        shown.std,
        stored_size=shown.resize_size[0],
        sample=False,
    )


def stored_size(dataset: str, image_size: int) -> int:
    """Pixels to which `data.load` makes the images of a data set small, for inputs of `image_size`."""
    return cifar.PIXELS if dataset in cifar.NAMES else image_size * 8 // 7


def load_model(path: str | Path, device: str | torch.device | None = None) -> SavedModel:
    """A model that `save_model` wrote, ready to classify.

    Raises:
        UserError: the file is missing, not a whole safetensors file, not ours, or its weights are another network's.
    """
    path = Path(path).expanduser()
    device = choose_device(device)
    if not path.is_file():
        raise UserError(f"There is no model file '{path}'; make one with python -m helpers save EXPERIMENT FILE.")
    library = _safetensors()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (library.SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is not a whole safetensors file; save the model again, or copy it again.") from error
    try:
        about = Preprocessing(**json.loads(metadata["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path.name} does not say how its images are made; use a file written by python -m helpers save."
        ) from error
    _check_weights(tensors, about, path.name)
    with torch.device("meta"):
        network = models.build(about.model, len(about.classes))
    network.load_state_dict(tensors, assign=True)
    return SavedModel(network.to(device).eval(), about)


def _safetensors():
    """The library, when it is first needed: training machines do without it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("Saved models need a package: run 'pip install safetensors'.") from error
    return safetensors


def _check_weights(tensors: dict[str, Tensor], about: Preprocessing, name: str) -> None:
    if about.model not in models.MODELS:
        raise UserError(
            f"{name} is of a model '{about.model}', which is not known here; choose one of {', '.join(models.names())}."
        )
    with torch.device("meta"):
        wanted = models.build(about.model, len(about.classes)).state_dict()
    kinds = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in (wanted, tensors)]
    if kinds[0] != kinds[1]:
        network = f"'{about.model}' with {len(about.classes)} classes"
        raise UserError(f"The weights of {name} are not those of {network}; save the model under its own name.")


def read_image(source: str | Path, size: int, name: str | None = None) -> Tensor:
    """An image file or a URL as in training: uint8 (3, size, size), upright and in colour.

    Args:
        name: what an error calls it; by default the source.

    Raises:
        UserError: it is not there, cannot be reached, or is no image.
    """
    image, reason = _read(str(source), size)
    if reason:
        raise UserError(f"{name or source} cannot be classified: {reason}.")
    return image


def _read(source: str, size: int) -> tuple[Tensor | None, str]:
    """(image, "") or (None, why not)."""
    try:
        is_url = source.lower().startswith(("http://", "https://"))
        content = _download(source) if is_url else Path(source).expanduser().read_bytes()
        with warnings.catch_warnings(action="ignore"):
            pixels, _ = decode_photograph(content, size)
        return torch.from_numpy(pixels.copy()), ""
    except Exception as error:  # a broken file can make Pillow raise nearly anything, and the other images must go on
        return None, " ".join(why(error).split())


def _download(url: str) -> bytes:
    """A URL's content. Raises OSError with a reason."""
    blocks, size, deadline = [], 0, time.monotonic() + LONGEST_DOWNLOAD
    try:
        request = Request(url, headers={"User-Agent": "Mozilla/5.0"})  # some servers refuse Python's own name
        with urlopen(request, timeout=LONGEST_DOWNLOAD) as response:
            while block := response.read1(2**16):
                blocks.append(block)
                size += len(block)
                if size > LARGEST_DOWNLOAD:
                    raise OSError(f"it is larger than {LARGEST_DOWNLOAD // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError as error:
        raise OSError(f"it took longer than {LONGEST_DOWNLOAD:g} seconds") from error
    except (URLError, HTTPException, ValueError) as error:
        detail = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise OSError(f"it could not be reached ({detail})") from error
    return b"".join(blocks)


def probabilities(model: SavedModel, images: Tensor) -> Tensor:
    """The probability of each class, float32 (N, C), for images as `read_image` gives them, uint8 (N, 3, S, S)."""
    return training.predict(model.network, _unlabelled(images), model.about.recipe).softmax(1)


def _unlabelled(images: Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64), [""] * len(images))


def classify(model: SavedModel, sources: Sequence[str | Path]) -> pd.DataFrame:
    """A row an image: `image`, the most probable `label`, its `probability`, and `probability of …` for each class.

    An image that cannot be read has the reason in its `error`, and the others are classified. The labels of a model that was
    trained on generated images say so.
    """
    classes, stamp = model.about.classes, "SAMPLE: " if model.about.sample else ""
    rows = []
    for start in range(0, len(sources), CHUNK):
        names = [str(source) for source in sources[start : start + CHUNK]]
        read = [_read(name, model.about.stored_size) for name in names]
        images = [image for image, _ in read if image is not None]
        found = iter(probabilities(model, torch.stack(images)).tolist() if images else [])
        for name, (image, reason) in zip(names, read, strict=True):
            each = [math.nan] * len(classes) if image is None else next(found)
            best = max(each)
            label = "" if image is None else stamp + classes[each.index(best)]
            rows.append([name, label, best, reason, *each])
    columns = ["image", "label", "probability", "error", *(f"probability of {name}" for name in classes)]
    return pd.DataFrame(rows, columns=columns)


def grad_cam(model: SavedModel, image: Tensor, label: int | None = None) -> Tensor:
    """Where in an image, uint8 (3, S, S), the network sees a class: float32 (image_size, image_size) from 0 to 1.

    It lies over the middle of the image that the network is shown. All is 0 where nothing speaks for the class.

    Args:
        label: the class; by default the most probable one.
    """
    recipe = model.about.recipe
    sizes = {"image_size": recipe.image_size, "mean": recipe.mean, "std": recipe.std}
    device = next(model.network.parameters()).device
    shown, _ = next(batches(_unlabelled(image[None]).to(device), 1, **sizes))
    label = int(probabilities(model, image[None]).argmax()) if label is None else label
    heat = class_activation(model.network, shown, label)
    heat = F.interpolate(heat[None, None], shown.shape[-2:], mode="bilinear")[0, 0].cpu()
    return heat / heat.max() if heat.max() > 0 else heat


def class_activation(network: nn.Module, image: Tensor, label: int) -> Tensor:
    """The Grad-CAM of one class on the network's last stage, (h, w), for an input (1, 3, H, W).

    ReLU of the sum of the stage's channels, each weighted by the mean over its pixels of the class score's gradient. The
    last stage is the last child of the network that still gives images of more than one pixel.

    Source: Selvaraju et al. 2017, equations 1 and 2.
    """
    stages = []

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.dim() == 4 and output.shape[-2:].numel() > 1:
            stages.append(output)

    hooks = [child.register_forward_hook(note) for child in network.children()]
    try:
        with torch.enable_grad():
            scores = network(image.clone().requires_grad_())
            (gradient,) = torch.autograd.grad(scores[0, label], stages[-1])
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * stages[-1]).sum(dim=1)[0].relu().detach()


def features(model: SavedModel, images: Tensor) -> Tensor:
    """What the network's last layer sees of images, uint8 (N, 3, S, S): its pooled features, float32 (N, D)."""
    last = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)][-1]
    with _inputs(last) as seen:
        training.predict(model.network, _unlabelled(images), model.about.recipe)
    return torch.cat(seen)


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given while the block runs, on the CPU."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        yield seen
    finally:
        hook.remove()


def nearest(query: Tensor, others: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """The places in `others` (N, D) of the features most like `query` (D,), and their cosine similarities, the best first."""
    similarity = F.normalize(others, dim=1) @ F.normalize(query, dim=0)
    best = similarity.topk(min(count, len(others)))
    return best.indices, best.values
