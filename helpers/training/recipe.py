"""Recipes: every number that shapes a training run, and the learning rate that follows from them."""

import math
from dataclasses import dataclass, fields

from helpers.data.batching import AUGMENTS
from helpers.runtime import UserError

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine", "periodic_epochs", "periodic_batches")
PACES = ("epochs", "time")


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes a training run.

    Attributes:
        decay_weights_only: no weight decay on biases and BatchNorm, the parameters of one dimension.
        perturbation: radius of adversarial model perturbation; None trains without it.
        schedule: over the epochs; `step` multiplies by `step_factor` every `step_epochs`; the periodic ones fall in a cosine
            over `period` epochs or batches, rise again over as many, and so on.
        lowest_learning_rate: where every cosine ends.
        warmup_epochs: the rate first rises linearly from 0 over this many epochs.
        time_budget: seconds of training and validation; no epoch starts that would end after them. None: no limit.
        patience: stop after this many epochs without a better validation accuracy. None: never.
        pace: what carries the schedule from its start to its end: the epochs, or `time`, the part of the time budget that
            is spent, so that a run ends its schedule when its time is up, however many epochs that was.
        channels_last: images have their channels innermost, unless another arrangement is measured to be faster; False:
            torch's default.
        compiled: train through `torch.compile`, on a GPU with CUDA graphs.
    """

    epochs: int
    batch_size: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_weights_only: bool = False
    perturbation: float | None = None
    inner_learning_rate: float = 1.0
    inner_steps: int = 1
    schedule: str = "constant"
    warmup_epochs: int = 0
    step_epochs: int = 7
    step_factor: float = 0.1
    period: int = 25
    lowest_learning_rate: float = 0.0
    label_smoothing: float = 0.0
    augment: str = "none"
    padding: int = 0
    mixed_precision: bool = True
    channels_last: bool = True
    compiled: bool = False
    time_budget: float | None = None
    patience: int | None = None
    pace: str = "epochs"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "image_size", "learning_rate", "step_epochs", "period"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0.")
        signless = ("momentum", "weight_decay", "label_smoothing", "padding", "warmup_epochs", "perturbation")
        for name in (*signless, "lowest_learning_rate"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it cannot be negative.")
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs is {self.warmup_epochs}; it must be less than the {self.epochs} epochs.")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTS), ("pace", PACES)):
            if getattr(self, name) not in choices:
                raise UserError(f"There is no {name} '{getattr(self, name)}'; choose one of {', '.join(choices)}.")
        for name in ("time_budget", "patience"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0, or None for no limit.")
        if self.pace == "time" and self.time_budget is None:
            raise UserError("pace is 'time', but there is no time_budget; give the recipe one, in seconds.")


def learning_rate(recipe: Recipe, progress: float, batches: int = 1, *, spent: float = 0.0) -> float:
    """The learning rate after `progress` epochs of `batches` each, in closed form: a resumed run needs no scheduler state.

    The cosine ends with the last epoch (Loshchilov and Hutter 2017, equation 5, without restarts), or with the time budget:
    at the pace of time, the schedule is as far along as the part of the budget that is `spent`, or as the epochs where those
    are further. The periodic ones are torch's `CosineAnnealingLR`, which rises again after `T_max` steps, stepped once an
    epoch or once a batch.
    """
    if recipe.pace == "time":
        progress = max(progress, recipe.epochs * min(spent, 1.0))
    if progress < recipe.warmup_epochs:
        return recipe.learning_rate * progress / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (int(progress) // recipe.step_epochs)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "cosine":
        turn = (progress - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    else:
        turn = progress * (batches if recipe.schedule == "periodic_batches" else 1) / recipe.period
    lowest = recipe.lowest_learning_rate
    return lowest + (recipe.learning_rate - lowest) * (1 + math.cos(math.pi * turn)) / 2


def completed(settings: dict) -> dict:
    """A recipe's settings, as an older program kept them, with the defaults of those that it did not have."""
    return {setting.name: setting.default for setting in fields(Recipe)} | settings
