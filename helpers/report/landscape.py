"""The loss around a trained network: how fast it rises along random directions of the weights."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers import data, experiments, models, runtime, training
from helpers.experiments import records as results
from helpers.training import Recipe, checkpoints

RADII = tuple(np.linspace(-1, 1, 11).round(1).tolist())
DIRECTIONS, IMAGES = 3, 500


def filter_normalised_direction(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in weight space, with each filter scaled to the norm of the network's own filter.

    Without the scaling, a network with larger weights looks flatter, though BatchNorm makes their scale irrelevant. Biases
    and BatchNorm's parameters (one-dimensional) are not moved. Source: Li et al. 2018 (arXiv 1712.09913), section 4.
    """
    direction = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            step = torch.randn(weight.shape, generator=generator).to(weight)
            own, random = (filters.flatten(1).norm(dim=1) for filters in (weight.detach(), step))
            direction[name] = step * (own / random).view(-1, *[1] * (weight.ndim - 1))
    return direction


@torch.no_grad()
def loss_along(model: nn.Module, direction: dict, radii: Sequence[float], split: data.Split, recipe: Recipe) -> np.ndarray:
    """The mean cross-entropy at weights + radius × direction for each radius, as float64; the weights are restored.

    BatchNorm keeps the running statistics of the trained network.
    """
    weights, losses = {name: value.clone() for name, value in model.state_dict().items()}, []
    try:
        for radius in radii:
            model.load_state_dict(weights | {name: weights[name] + radius * step for name, step in direction.items()})
            losses.append(training.evaluate(model, split, recipe)[0])
    finally:
        model.load_state_dict(weights)
    return np.array(losses)


def subset(split: data.Split, images: int = IMAGES) -> data.Split:
    """A stratified sample of `images` images, the same ones whatever the order of the split."""
    keys = list(zip(split.digests or split.names, split.labels.tolist(), strict=True))
    return data.stratified(split.subset(sorted(range(len(split)), key=keys.__getitem__)), images)


def obtain(record: dict, split: data.Split, results_dir: str | Path | None = None) -> np.ndarray | None:
    """The losses around a run's best weights on a `subset` of a split: float64 (DIRECTIONS, len(RADII)).

    Loaded from the file beside the run's record if it is intact, otherwise measured from the checkpoint and saved there;
    None if there is no checkpoint either. Directions have the same seed for every run.
    """
    name, profile, seed = record["experiment"], record["profile"], record["seed"]
    path = results.record_path(name, profile, seed, results_dir).with_name(f"seed{seed}.landscape.npz")
    with suppress(Exception), np.load(path, allow_pickle=False) as arrays:
        return arrays["losses"]
    checkpoint_dir = results.checkpoint_folder(profile, Path(results_dir or results.RESULTS))
    state = checkpoints.load_checkpoint(experiments.checkpoint_path(name, profile, seed, checkpoint_dir))
    if state is None or state.get("best") != record.get("best"):
        print(f"{name}, seed {seed}: no loss landscape is recorded, and there is no checkpoint of this run.")
        return None
    device = runtime.choose_device()
    model = models.build(record["model"]["name"], record["dataset"]["num_classes"]).to(device)
    model.load_state_dict(state["best_weights"])
    images = subset(split, 10 if profile == "smoke" else IMAGES).to(device)
    # In fp32: far from the trained weights, the logits may overflow the fp16 of an older GPU.
    recipe = replace(experiments.recipe_for(experiments.find(name), profile), mixed_precision=False)
    generator = torch.Generator().manual_seed(0)
    directions = [filter_normalised_direction(model, generator) for _ in range(DIRECTIONS)]
    losses = np.stack([loss_along(model, direction, RADII, images, recipe) for direction in directions])
    runtime.save_arrays(path, losses=losses, radii=np.array(RADII))
    return losses
