"""Recipes: every setting that shapes a training run, and the values that follow from it at each step."""

import math
from dataclasses import dataclass, fields

from helpers.data.batching import View
from helpers.runtime import require

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine", "linear", "periodic_epochs", "periodic_batches", "resumed_steps")
FULL_SIZE_FROM = 0.8  # the last fifth of a run is at full size
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "flip": ("random", "alternating"),
    "resize": ("crop", "squash"),
    "initialisation": (None, "torch", "he"),
    "keep": ("best", "last"),
}
# Settings, the condition that each must meet unless it is None, and how the error message ends if it does not.
COUNTS = "epochs batch_size image_size step_epochs period perturbation_every inner_steps"
RATES = "momentum weight_decay label_smoothing warmup_epochs lowest_learning_rate inner_learning_rate perturbation ema"
RULES = (
    (f"{COUNTS} learning_rate", lambda value: value > 0, "must be greater than 0"),
    ("time_budget patience clip_norm", lambda value: value > 0, "must be greater than 0, or None for no limit"),
    (f"{RATES} momentum_perturbation perturbation_start", lambda value: value >= 0, "cannot be negative"),
    ("ema perturbation_start label_smoothing", lambda value: value < 1, "must be less than 1"),
    (COUNTS, lambda value: value == int(value) <= 10**9, "must be a whole number of at most 1,000,000,000"),
)


@dataclass(frozen=True)
class Recipe:
    """Every setting that shapes a training run; raises a `UserError` for an impossible value or combination."""

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
    decay_weights_only: bool = False  # no decay of biases and BatchNorm, the one-dimensional parameters
    clip_norm: float | None = None  # maximum L2 norm of the gradient of all parameters together, in every pass
    perturbation: float | None = None  # radius of adversarial model perturbation; None trains without it
    inner_learning_rate: float = 1.0
    inner_steps: int = 1
    perturbation_start: float = 0.0  # fraction of the run after which steps are perturbed (arXiv 2410.10373)
    perturbation_every: int = 1  # one step in this many is perturbed
    momentum_perturbation: float | None = None  # how far ahead along the momentum the gradient is taken (arXiv 2401.12033)
    # The rate over the epochs. `step` multiplies it by `step_factor` every `step_epochs`; `resumed_steps` restarts the count
    # every `period` epochs, where a new call continues at the last one's rate. The periodic ones fall along a cosine over
    # `period` epochs or batches, rise again over as many, and so on.
    schedule: str = "constant"
    warmup_epochs: int = 0  # the rate first rises linearly from 0
    step_epochs: int = 7
    step_factor: float = 0.1
    period: int = 25
    lowest_learning_rate: float = 0.0  # at which every cosine and linear schedule ends
    label_smoothing: float = 0.0
    ema: float | None = None  # decay per step of the model's moving average, which is then validated, kept and tested
    initialisation: str | None = None  # of the weights: `torch` or `he`; None: the network's own
    zero_last_batchnorm: bool = False  # the last BatchNorm of each block starts at zero
    augment: str = "none"  # this, padding, border and cutout are those of `data.View`
    padding: int = 0
    border: str = "zero"
    cutout: int = 0
    flip: str = "random"  # or `alternating`: each image is mirrored in every other epoch (airbench, arXiv 2404.00498)
    flip_test: bool = False  # validation and test images are mirrored by a fixed fair coin (report `pikachu`, its code)
    resize: str = "crop"  # how photographs become square: cropped, or squashed
    sizes: tuple[tuple[float, int], ...] = ()  # (fraction of the run, pixels per side from then on); (): always image_size
    mixed_precision: bool = True
    channels_last: bool = True  # unless torch's default layout is measured to be faster
    compiled: bool = False  # through `torch.compile`, on a GPU with CUDA graphs
    deterministic: bool = True  # cuDNN gives the same results in every run; False lets it choose the fastest way each time
    time_budget: float | None = None  # seconds of training and validation; an epoch that would end later does not start
    patience: int | None = None  # stop after this many epochs without a better validation accuracy
    keep: str = "best"  # whose weights are tested: the best epoch's by validation accuracy, or the last one's

    def __post_init__(self):
        object.__setattr__(self, "sizes", tuple(map(tuple, self.sizes)))  # lists if read from a record
        for name, value in vars(self).items():
            require(not isinstance(value, float) or math.isfinite(value), f"{name} is {value}; it must be a finite number.")
        for names, holds, rule in RULES:
            for name in names.split():
                value = getattr(self, name)
                require(value is None or holds(value), f"{name} is {value}; it {rule}.")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            require(value in known, f"There is no {name} '{value}'; choose one of {', '.join(filter(None, known))}.")
        _check_combinations(self)
        _check_sizes(self)

    @property
    def view(self) -> dict:
        """The arguments of `data.batches` that say how images become this recipe's input."""
        return {setting.name: getattr(self, setting.name) for setting in fields(View)}


def _check_combinations(recipe: Recipe) -> None:
    View(**recipe.view)
    warmup, epochs, augment = recipe.warmup_epochs, recipe.epochs, recipe.augment
    require(warmup < epochs, f"warmup_epochs is {warmup}; it must be less than the {epochs} epochs.")
    flips = recipe.flip != "alternating" or "flip" in augment
    require(flips, f"flip is 'alternating', but augment is '{augment}'; choose one that flips.")
    require(not recipe.nesterov or recipe.momentum > 0, "nesterov needs a momentum above 0; choose one, or nesterov False.")
    if recipe.momentum_perturbation is not None:
        momentum = recipe.optimizer == "sgd" and recipe.momentum > 0
        require(momentum, "momentum_perturbation needs the momentum of SGD; choose optimizer 'sgd' with a momentum.")
        require(recipe.perturbation is None, "Choose either a perturbation or a momentum_perturbation; leave the other None.")


def _check_sizes(recipe: Recipe) -> None:
    if not recipe.sizes:
        return
    starts, full, last = [start for start, _ in recipe.sizes], recipe.image_size, recipe.sizes[-1]
    rising = all(0 <= start < 1 for start in starts) and sorted(set(starts)) == starts
    require(rising, f"sizes starts at {starts}; these fractions of the run must rise, from 0 to less than 1.")
    for _, pixels in recipe.sizes:
        whole = 1 <= pixels <= full and pixels == int(pixels)
        require(whole, f"sizes has {pixels} pixels; choose whole numbers from 1 to {full}, the image size.")
    end = f"the last fifth of a run must train at full size: end with ({FULL_SIZE_FROM} or less, {full})."
    require(last[0] <= FULL_SIZE_FROM and last[1] == full, f"sizes ends with {last}; {end}")


def learning_rate(recipe: Recipe, progress: float, batches: int = 1) -> float:
    """The learning rate after `progress` epochs of `batches` each, in closed form: a resumed run needs no scheduler state.

    The cosine (Loshchilov and Hutter 2017, equation 5, without restarts) and linear schedules end with the last epoch. The
    periodic ones are torch's `CosineAnnealingLR`, which rises again after `T_max` steps, stepped per epoch or per batch.
    """
    if progress < recipe.warmup_epochs:
        return recipe.learning_rate * progress / recipe.warmup_epochs
    if recipe.schedule in ("step", "resumed_steps"):
        calls, since = divmod(progress, recipe.period) if recipe.schedule == "resumed_steps" else (0, progress)
        steps = int(calls) * (recipe.period // recipe.step_epochs) + int(since) // recipe.step_epochs
        return recipe.learning_rate * recipe.step_factor**steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule in ("cosine", "linear"):
        turn = (progress - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    else:
        turn = (progress * batches if recipe.schedule == "periodic_batches" else int(progress)) / recipe.period
    lowest = recipe.lowest_learning_rate
    left = 1 - turn if recipe.schedule == "linear" else (1 + math.cos(math.pi * turn)) / 2
    return lowest + (recipe.learning_rate - lowest) * left


def pixels_at(recipe: Recipe, share: float) -> int:
    """The image size, in pixels per side, of a step that begins when this share of the run is done."""
    return next((pixels for start, pixels in reversed(recipe.sizes) if start <= share), recipe.image_size)


def is_perturbed(recipe: Recipe, share: float, step: int) -> bool:
    """Whether this step, counted from 0 over the whole run, is perturbed; it begins when this share of the run is done."""
    return share >= recipe.perturbation_start and step % recipe.perturbation_every == 0


def completed(settings: dict) -> dict:
    """A recipe's settings as an older version recorded them, with defaults for those that it did not have."""
    kept = {name: value for name, value in settings.items() if name != "pace"}  # it equalled `epochs` in every record
    return {setting.name: setting.default for setting in fields(Recipe)} | kept
