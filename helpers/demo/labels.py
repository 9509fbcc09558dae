"""Classify images, and show what a label rests on: Grad-CAM and the most similar training images."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor, nn

from helpers import data, training
from helpers.data.pools import printable
from helpers.demo.images import try_image
from helpers.demo.saved import SavedModel

CHUNK = 256  # images held in memory at a time


def probabilities(model: SavedModel, images: Tensor) -> Tensor:
    """The probability of each class, float32 (N, C), for images as `read_image` returns them, uint8 (N, 3, S, S)."""
    view = model.about.image_size, model.about.mean, model.about.std
    recipe = training.Recipe(1, 1, *view, mixed_precision=False)  # `predict` uses neither the epochs nor the batch size
    return training.predict(model.network, _unlabelled(images), recipe).softmax(1)


def _unlabelled(images: Tensor) -> data.Split:
    return data.Split(images, torch.zeros(len(images), dtype=torch.int64), [""] * len(images))


def classify(model: SavedModel, sources: Sequence[str | Path]) -> pd.DataFrame:
    """One row per image: `image`, the likeliest `label`, its `probability`, any `error`, `probability of …` for each class.

    If an image cannot be read, `error` gives the reason, and the others are still classified. Labels of a model trained on
    generated images start with SAMPLE.
    """
    about, stamp = model.about, "SAMPLE: " if model.about.sample else ""
    rows = []
    for start in range(0, len(sources), CHUNK):
        names = [str(source) for source in sources[start : start + CHUNK]]
        read = [try_image(name, about.stored_size, about.resize) for name in names]
        images = [image for image, _ in read if image is not None]
        found = torch.full((len(read), len(about.classes)), math.nan)
        if images:
            found[[image is not None for image, _ in read]] = probabilities(model, torch.stack(images))
        for name, (image, reason), shares in zip(names, read, found.tolist(), strict=True):
            if image is not None and not all(map(math.isfinite, shares)):
                reason = "the model's answer is not a number"
            best = math.nan if reason else max(shares)
            label = "" if reason else stamp + about.classes[shares.index(best)]
            rows.append([printable(name), label, best, reason, *shares])
    columns = ["image", "label", "probability", "error", *(f"probability of {name}" for name in about.classes)]
    return pd.DataFrame(rows, columns=columns)


def grad_cam(model: SavedModel, image: Tensor, label: int | None = None) -> Tensor:
    """Grad-CAM of an image, uint8 (3, S, S), for a class, by default the most likely: float32 (image_size, image_size).

    From 0 to 1, over the middle of the image, which is what the network sees; all 0 if nothing supports the class.
    """
    about, device = model.about, next(model.network.parameters()).device
    inputs = data.batches(_unlabelled(image[None]).to(device), 1, image_size=about.image_size, mean=about.mean, std=about.std)
    shown, _ = next(inputs)
    label = int(probabilities(model, image[None]).argmax()) if label is None else label
    heat = class_activation(model.network, shown, label)
    heat = F.interpolate(heat[None, None], shown.shape[-2:], mode="bilinear")[0, 0].cpu()
    return heat / heat.max() if heat.max() > 0 else heat


def class_activation(network: nn.Module, image: Tensor, label: int) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) of a class at the last stage, (h, w), for an input (1, 3, H, W).

    ReLU of a weighted sum of the stage's channels; a channel's weight is the mean over its pixels of the class score's
    gradient. The last stage is the last child of the network whose output is an image of more than one pixel.
    """
    outputs = []
    with ExitStack() as hooks, torch.enable_grad():
        for child in network.children():
            hooks.enter_context(child.register_forward_hook(lambda _, inputs, output: outputs.append(output)))
        scores = network(image.clone().requires_grad_())
        stage = [output for output in outputs if output.dim() == 4 and output.shape[-2:].numel() > 1][-1]
        (gradient,) = torch.autograd.grad(scores[0, label], stage)
    return (gradient.mean(dim=(2, 3), keepdim=True) * stage).sum(dim=1)[0].relu().detach()


def features(model: SavedModel, images: Tensor) -> Tensor:
    """The inputs of the network's last layer, its pooled features, float32 (N, D), for images, uint8 (N, 3, S, S)."""
    last = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)][-1]
    seen = []
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu())):
        probabilities(model, images)
    return torch.cat(seen)


def middle(image: Tensor, size: int) -> Tensor:
    """The centre crop (3, size, size) of an image (3, H, W): what a network with inputs of `size` pixels sees."""
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A heat map (S, S), from 0 to 1, over the centre crop of an image, uint8 (3, H, W): uint8 (3, S, S)."""
    grey = middle(image, len(heat)).float().mean(0)  # so that the image's own colours are not mistaken for heat
    colours = 255 * torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1)
    return (0.4 * grey + 0.6 * colours).round().to(torch.uint8)


def nearest(query: Tensor, others: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """The indices of the rows of `others` (N, D) most similar to `query` (D,), and their cosine similarities, best first."""
    best = F.cosine_similarity(others, query[None]).topk(min(count, len(others)))
    return best.indices, best.values
