"""Perturbed training, seen closely: the losses of its first steps, and the gradients that a run takes."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from helpers import data, experiments, runtime, training
from helpers.experiments.records import RESULTS
from helpers.experiments.runner import make_model
from helpers.training.loop import batches_of_epoch
from helpers.training.recipe import Recipe, is_perturbed

PERTURBED = "cifar10/resnext29_under5m_amp"
# What the sources that report `amp` names do, and the report does not say; each left out, and then all three.
WITHOUT = {
    "torch's weights": {"initialisation": None},  # the network's own are He-normal
    "clipping": {"clip_norm": None},
    "Nesterov momentum": {"nesterov": False},
}
FIRST_STEPS = {
    "as its sources": {},
    **{f"without {name}": changes for name, changes in WITHOUT.items()},
    "without all three": {name: value for changes in WITHOUT.values() for name, value in changes.items()},
}
FILE = RESULTS / "first_steps.json"


def first_steps(train: data.Split, device: torch.device, steps: int, **sizes: int) -> dict[str, list[float]]:
    """The loss before each of the first steps of report `amp`'s perturbed run, for every entry of `FIRST_STEPS`.

    All begin with the random numbers of seed 0 and see the same batches; the rate is the recipe's first. `sizes` are in place
    of the recipe's own.
    """
    row, losses = experiments.find(PERTURBED), {}
    for label, changes in FIRST_STEPS.items():
        recipe = replace(row.recipe, **sizes, **changes)
        model = make_model(row, recipe, len(train.labels.unique()), seed=0).to(device)
        called = training.prepare(model, recipe, training.choose_channels_last(model, train, recipe))
        learner = training.Learner(model, recipe, called=called)
        batches = islice(batches_of_epoch(train.to(device), recipe, 0, 1), steps)
        losses[label] = [training.train_epoch(learner, [batch])[0] for batch in batches]
    return losses


def measure_first_steps(steps: int = 300, data_dir: str | None = None) -> None:
    """Measure `first_steps` on CIFAR-10, on the best device there is, and write `results/first_steps.json`."""
    device = runtime.choose_device()
    train = experiments.load_data(experiments.find(PERTURBED), "full", data_dir).train
    measured = {"device": runtime.device_name(device), "losses": first_steps(train, device, steps)}
    runtime.save_text(FILE, json.dumps(measured, indent=1) + "\n")


def obtain_first_steps(train: data.Split, device: torch.device, profile: str) -> dict[str, list[float]]:
    """`first_steps`: two for `smoke`, 300 on a GPU, elsewhere those that `measure_first_steps` wrote, if it ever ran."""
    if profile == "smoke":
        return first_steps(train, device, 2, batch_size=8, image_size=8)
    if device.type == "cuda":
        return first_steps(train, device, 300)
    return json.loads(FILE.read_text(encoding="utf-8"))["losses"] if FILE.exists() else {}


def gradients(recipe: Recipe, steps: int) -> np.ndarray:
    """How many gradients of a batch each epoch of so many steps takes: int64 (epochs,)."""
    inner = 0 if recipe.perturbation is None else recipe.inner_steps
    shares = [step / (steps * recipe.epochs) for step in range(steps * recipe.epochs)]
    taken = [1 + inner * is_perturbed(recipe, share, step) for step, share in enumerate(shares)]
    return np.reshape(taken, (recipe.epochs, steps)).sum(axis=1)
