"""How much memory a training run needs, counted without running it: does it fit a GPU of 15 GB?"""

from functools import cache

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from helpers import models
from helpers.data import cifar
from helpers.experiments.plan import EXPERIMENTS, Experiment

FLOAT, T4 = 4, 15 * 10**9  # bytes
PHOTOGRAPHS = 1290  # of data set `pikachu`, two classes


def kept_for_backward(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Bytes of all tensors but the parameters that one fp32 forward pass of a batch (N, 3, H, W) keeps for the backward pass.

    The pass runs on the meta device, where tensors have a shape and a type but no content.
    """
    ghost, kept = model.to("meta").train(), {}
    own = {tensor.untyped_storage() for tensor in ghost.state_dict(keep_vars=True).values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # of one tensor and all its views, the same object
        if storage not in own:
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = ghost(torch.empty(image_shape, device="meta"))
        F.cross_entropy(scores, torch.zeros(image_shape[0], dtype=torch.int64, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())


@cache
def _network(name: str, classes: int, batch: int, size: int) -> tuple[int, int]:
    """(bytes of the parameters, bytes kept for the backward pass)."""
    with torch.device("meta"):
        model = models.build(name, classes)
    return FLOAT * models.count_parameters(model), kept_for_backward(model, (batch, 3, size, size))


def needed(experiment: Experiment) -> int:
    """Bytes that training holds at its fullest in fp32: weights, gradients, the optimiser's copies, what the forward pass keeps
    (mixed precision halves that), and the images of all splits, which stay on the device. Torch's workspace comes on top.
    """
    recipe, classes, images = experiment.recipe, 2, PHOTOGRAPHS
    if experiment.dataset in cifar.NAMES:
        classes, images = len(cifar.CLASSES.get(experiment.dataset, cifar.CLASSES["cifar10"])), sum(cifar.COUNTS.values())
    weights, kept = _network(experiment.model, classes, recipe.batch_size, recipe.image_size)
    copies = 2 if recipe.optimizer == "adam" else int(recipe.momentum > 0)
    copies += 2 * (recipe.perturbation is not None)  # the weights to come back to, and the perturbation
    copies += (recipe.momentum_perturbation is not None) + (recipe.ema is not None)
    return weights * (2 + copies) + kept + images * 3 * recipe.image_size**2


def table() -> pd.DataFrame:
    """One row per experiment, the largest first: the memory its training needs in fp32, in GiB of 2^30 bytes."""
    rows = [(name, row.model, row.recipe.batch_size, row.recipe.image_size, needed(row)) for name, row in EXPERIMENTS.items()]
    frame = pd.DataFrame(rows, columns=["experiment", "model", "batch", "image size", "GiB in fp32"])
    frame["GiB in fp32"] = (frame["GiB in fp32"] / 2**30).round(2)
    return frame.sort_values("GiB in fp32", ascending=False, kind="stable", ignore_index=True)
