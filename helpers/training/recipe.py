"""Recipes: every number that shapes a training run, and what follows from them at each step."""

import math
from dataclasses import dataclass, fields

from helpers.data.batching import AUGMENTS, BORDERS, View
from helpers.runtime import UserError

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine", "linear", "periodic_epochs", "periodic_batches", "restarted_steps")
PACES = ("epochs", "time")
FLIPS = ("random", "alternating")
RESIZES = ("crop", "squash")
FULL_SIZE_FROM = 0.8  # the last fifth of a run is at full size
LONGEST = 1e9  # seconds
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "augment": AUGMENTS,
    "pace": PACES,
    "border": BORDERS,
    "flip": FLIPS,
    "resize": RESIZES,
    "initialisation": (None, "torch", "he"),
}
POSITIVE = ("epochs", "batch_size", "image_size", "learning_rate", "step_epochs", "period", "perturbation_every", "inner_steps")
POSITIVE_OR_NONE = ("time_budget", "patience", "clip_norm")
NOT_NEGATIVE = (
    *("momentum", "weight_decay", "label_smoothing", "padding", "warmup_epochs", "perturbation", "lowest_learning_rate"),
    *("cutout", "momentum_perturbation", "perturbation_start", "ema", "inner_learning_rate"),
)
BELOW_ONE = ("ema", "perturbation_start", "label_smoothing")


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes a training run.

    Attributes:
        decay_weights_only: no weight decay on biases and BatchNorm, the parameters of one dimension.
        perturbation: radius of adversarial model perturbation; None trains without it.
        perturbation_start: part of the run after which steps are perturbed (late perturbation, arXiv 2410.10373).
        perturbation_every: only every so many steps is perturbed.
        momentum_perturbation: the gradient is taken at weights moved against the momentum by this length, at no cost (MSAM,
            arXiv 2401.12033); None: at the weights themselves.
        clip_norm: the gradient of all parameters together is cut to this L2 norm, in every pass; None: not at all.
        schedule: over the epochs; `step` multiplies by `step_factor` every `step_epochs`; the periodic ones fall in a cosine
            over `period` epochs or batches, rise again over as many, and so on.
            `restarted_steps` is `step`, begun again every `period` epochs.
        lowest_learning_rate: where every cosine and line ends.
        warmup_epochs: the rate first rises linearly from 0 over this many epochs.
        augment, padding, border, cutout: those of `data.batching.View`.
        flip: `random`, or `alternating`: each image is mirrored in every other epoch (airbench, arXiv 2404.00498).
        flip_test: validation and test images are mirrored by a fair coin, always the same (report `pikachu`, its code).
        resize: how photographs become square: cropped, or squashed.
        sizes: pairs of a part of the run and the pixels a side at which it trains from there on; (): always `image_size`.
        ema: decay per step of the moving average of weights and BatchNorm statistics, which is what is validated, kept and
            tested; None: the weights themselves are.
        initialisation: of the weights: `torch` or `he`; None: the network's own.
        zero_last_batchnorm: the last BatchNorm of each block starts at zero.
        time_budget: seconds of training and validation; no epoch starts that would end after them. None: no limit.
        patience: stop after this many epochs without a better validation accuracy. None: never.
        pace: what carries the schedule from its start to its end: the epochs, or `time`, the part of the time budget that
            is spent, so that a run ends its schedule when its time is up, however many epochs that was.
        channels_last: images have their channels innermost, unless another arrangement is measured to be faster; False:
            torch's default.
        compiled: train through `torch.compile`, on a GPU with CUDA graphs.
        deterministic: cuDNN repeats itself from run to run; False lets it choose the fastest each time.

    Raises:
        UserError: a value cannot be, or two of them not together.
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
    clip_norm: float | None = None
    perturbation: float | None = None
    inner_learning_rate: float = 1.0
    inner_steps: int = 1
    perturbation_start: float = 0.0
    perturbation_every: int = 1
    momentum_perturbation: float | None = None
    schedule: str = "constant"
    warmup_epochs: int = 0
    step_epochs: int = 7
    step_factor: float = 0.1
    period: int = 25
    lowest_learning_rate: float = 0.0
    label_smoothing: float = 0.0
    ema: float | None = None
    initialisation: str | None = None
    zero_last_batchnorm: bool = False
    augment: str = "none"
    padding: int = 0
    border: str = "zero"
    cutout: int = 0
    flip: str = "random"
    flip_test: bool = False
    resize: str = "crop"
    sizes: tuple[tuple[float, int], ...] = ()
    mixed_precision: bool = True
    channels_last: bool = True
    compiled: bool = False
    deterministic: bool = True
    time_budget: float | None = None
    patience: int | None = None
    pace: str = "epochs"

    def __post_init__(self):
        object.__setattr__(self, "sizes", tuple(map(tuple, self.sizes)))  # lists, when a record was read
        for name in (setting.name for setting in fields(self)):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}; it must be a finite number.")
            if name in POSITIVE and value <= 0:
                raise UserError(f"{name} is {value}; it must be greater than 0.")
            if name in POSITIVE_OR_NONE and value is not None and value <= 0:
                raise UserError(f"{name} is {value}; it must be greater than 0, or None for no limit.")
            if name in NOT_NEGATIVE and (value or 0) < 0:
                raise UserError(f"{name} is {value}; it cannot be negative.")
            if name in BELOW_ONE and (value or 0) >= 1:
                raise UserError(f"{name} is {value}; it must be less than 1.")
            if name in CHOICES and value not in CHOICES[name]:
                known = ", ".join(filter(None, CHOICES[name]))
                raise UserError(f"There is no {name} '{value}'; choose one of {known}.")
        _check_combinations(self)

    @property
    def view(self) -> dict:
        """The arguments of `data.batches` that say how images become this recipe's input."""
        return {setting.name: getattr(self, setting.name) for setting in fields(View)}


def _check_combinations(recipe: Recipe) -> None:
    """Settings that are right by themselves and wrong together."""
    View(**recipe.view)
    check_time_budget(recipe.time_budget)
    if recipe.warmup_epochs >= recipe.epochs:
        raise UserError(f"warmup_epochs is {recipe.warmup_epochs}; it must be less than the {recipe.epochs} epochs.")
    if recipe.pace == "time" and recipe.time_budget is None:
        raise UserError("pace is 'time', but there is no time_budget; give the recipe one, in seconds.")
    if recipe.flip == "alternating" and "flip" not in recipe.augment:
        raise UserError(f"flip is 'alternating', but augment is '{recipe.augment}'; choose one that flips.")
    if recipe.momentum_perturbation is not None:
        if recipe.optimizer != "sgd" or not recipe.momentum:
            raise UserError("momentum_perturbation needs the momentum of SGD; choose optimizer 'sgd' with a momentum.")
        if recipe.perturbation is not None:
            raise UserError("A recipe has a perturbation or a momentum_perturbation, not both; leave one of them None.")
    _check_sizes(recipe)


def _check_sizes(recipe: Recipe) -> None:
    starts = [start for start, _ in recipe.sizes]
    if not all(0 <= start < 1 for start in starts) or sorted(set(starts)) != starts:
        raise UserError(f"sizes begins at {starts}; these parts of the run must rise, from 0 to less than 1.")
    for _, pixels in recipe.sizes:
        if not 1 <= pixels <= recipe.image_size or pixels != int(pixels):
            raise UserError(f"sizes has {pixels} pixels; choose whole numbers from 1 to {recipe.image_size}, the image size.")
    if recipe.sizes and (starts[-1] > FULL_SIZE_FROM or recipe.sizes[-1][1] != recipe.image_size):
        raise UserError(
            f"sizes ends with {recipe.sizes[-1]}; the last fifth of a run must train at full size: "
            f"end with ({FULL_SIZE_FROM} or less, {recipe.image_size})."
        )


def check_time_budget(seconds: float | None) -> None:
    """Refuse a time budget that is no number of seconds.

    Raises:
        UserError: it is not greater than 0, or not finite, or longer than thirty years.
    """
    if seconds is not None and not 0 < seconds <= LONGEST:
        raise UserError(f"The time budget in seconds is {seconds}; it must be greater than 0, and at most {LONGEST:.0e}.")


def share_of_run(recipe: Recipe, progress: float, spent: float = 0.0) -> float:
    """How much of the run is done after `progress` epochs, from 0 to 1; at the pace of time, as much as is `spent` of it."""
    return max(progress / recipe.epochs, min(spent, 1.0) if recipe.pace == "time" else 0.0)


def learning_rate(recipe: Recipe, progress: float, batches: int = 1, *, spent: float = 0.0) -> float:
    """The learning rate after `progress` epochs of `batches` each, in closed form: a resumed run needs no scheduler state.

    The cosine ends with the last epoch (Loshchilov and Hutter 2017, equation 5, without restarts), as does the line, or with
    the time budget: at the pace of time, the schedule is as far along as the part of the budget that is `spent`, or as the
    epochs where those are further. The periodic ones are torch's `CosineAnnealingLR`, which rises again after `T_max` steps,
    stepped once an epoch or once a batch.
    """
    if recipe.pace == "time":
        progress = max(progress, recipe.epochs * min(spent, 1.0))
    if progress < recipe.warmup_epochs:
        return recipe.learning_rate * progress / recipe.warmup_epochs
    if recipe.schedule in ("step", "restarted_steps"):
        since = progress if recipe.schedule == "step" else progress % recipe.period
        return recipe.learning_rate * recipe.step_factor ** (int(since) // recipe.step_epochs)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule in ("cosine", "linear"):
        turn = (progress - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    else:
        turn = progress * (batches if recipe.schedule == "periodic_batches" else 1) / recipe.period
    lowest = recipe.lowest_learning_rate
    left = 1 - turn if recipe.schedule == "linear" else (1 + math.cos(math.pi * turn)) / 2
    return lowest + (recipe.learning_rate - lowest) * left


def pixels_at(recipe: Recipe, share: float) -> int:
    """The pixels a side at which a step trains that begins when this share of the run is done."""
    return next((pixels for start, pixels in reversed(recipe.sizes) if start <= share), recipe.image_size)


def is_perturbed(recipe: Recipe, share: float, step: int) -> bool:
    """Whether a step, counted from 0 over the whole run, that begins when this share of it is done, is a perturbed one."""
    return share >= recipe.perturbation_start and step % recipe.perturbation_every == 0


def completed(settings: dict) -> dict:
    """A recipe's settings, as an older program kept them, with the defaults of those that it did not have."""
    return {setting.name: setting.default for setting in fields(Recipe)} | settings
