"""Perturbed training in detail: the losses of its first steps, and how many gradients a run computes."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from helpers import data, experiments, runtime, training
from helpers.experiments.runner import make_model
from helpers.training.loop import batches_of_epoch
from helpers.training.recipe import Recipe, is_perturbed

PERTURBED = "cifar10/resnext29_under5m_amp"
# Report `amp`'s sources make choices that its text does not mention: follow them all, follow its code, or leave one out.
FIRST_STEPS = {
    "as in the sources": {},
    "as in the report's code": {"clip_norm": None, "nesterov": False, "weight_decay": 0.0},
    "without torch's initialisation": {"initialisation": None},  # the network's own is He-normal
    "without clipping": {"clip_norm": None},
    "without Nesterov momentum": {"nesterov": False},
}
FILE, STEPS = experiments.records.RESULTS / "first_steps.json", 300


def first_steps(train: data.Split, device: torch.device, steps: int, labels=FIRST_STEPS, **sizes) -> dict[str, list[float]]:
    """The loss before each of the first `steps` steps of report `amp`'s perturbed run, for these labels of `FIRST_STEPS`.

    All start from seed 0 and see the same batches, at the recipe's initial learning rate. `sizes` override the recipe's own.
    """
    row, losses = experiments.find(PERTURBED), {}
    for label in labels:
        recipe = replace(row.recipe, **sizes, **FIRST_STEPS[label])
        model = make_model(row, recipe, len(train.labels.unique()), seed=0).to(device)
        called = training.prepare(model, recipe, training.choose_channels_last(model, train, recipe))
        learner = training.Learner(model, recipe, called=called)
        batches = islice(batches_of_epoch(train.to(device), recipe, 0, 1), steps)
        losses[label] = [training.train_epoch(learner, [batch])[0] for batch in batches]
    return losses


def measure_first_steps() -> None:
    """Measure on CIFAR-10, on the best available device, whatever `results/first_steps.json` does not have yet."""
    device = runtime.choose_device()
    train = experiments.load_data(experiments.find(PERTURBED), "full").train
    measured = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"losses": {}}
    for label in FIRST_STEPS:
        if label not in measured["losses"]:
            measured["losses"] |= first_steps(train, device, STEPS, [label])
            measured["device"] = runtime.device_name(device)
            runtime.save_text(FILE, json.dumps(measured, indent=1) + "\n")


def obtain_first_steps(train: data.Split, device: torch.device, profile: str) -> dict[str, list[float]]:
    """`first_steps`: 2 steps for `smoke`, 300 on a GPU; otherwise what `measure_first_steps` saved, if it has been run."""
    if profile == "smoke":
        return first_steps(train, device, 2, batch_size=8, image_size=8)
    if device.type == "cuda":
        return first_steps(train, device, STEPS)
    return json.loads(FILE.read_text(encoding="utf-8"))["losses"] if FILE.exists() else {}


def gradients(recipe: Recipe, steps: int) -> np.ndarray:
    """How many batch gradients each epoch of `steps` steps computes: int64 (epochs,)."""
    inner = 0 if recipe.perturbation is None else recipe.inner_steps
    total = steps * recipe.epochs
    taken = [1 + inner * is_perturbed(recipe, step / total, step) for step in range(total)]
    return np.reshape(taken, (recipe.epochs, steps)).sum(axis=1)
