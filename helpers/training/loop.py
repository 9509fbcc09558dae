"""The training loop: epochs of steps, each with an evaluation; resuming, early stopping and a time budget."""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from helpers import data, runtime
from helpers.runtime import UserError, progress, require, require_writable, seed_epoch
from helpers.training import processes
from helpers.training.checkpoints import copy_checkpoint, load_checkpoint, save_checkpoint, stamp
from helpers.training.evaluation import evaluate
from helpers.training.layout import choose_channels_last, prepare
from helpers.training.recipe import Recipe, completed, is_perturbed, learning_rate, pixels_at
from helpers.training.step import Learner, train_epoch

FIRST_EPOCHS = 3
LONGEST = 1e9  # seconds of a time budget
BETWEEN_COPIES = 300  # seconds between two copies of the checkpoint; the last one is always copied
SLOW_SAVE, SAVING = 0.5, 0.1  # saves slower than this many seconds take at most this share of the time; the last is exempt
OUT_OF_TIME = "the deadline has passed"
KEPT = ("history", "best", "best_weights")  # the fields of `Fit` in a checkpoint, besides the memory layout


class Diverged(UserError):
    """The loss is no longer finite."""


@dataclass
class Fit:
    """The result of `fit`."""

    history: list[dict] = field(default_factory=list)  # one row per epoch
    best: dict = field(default_factory=dict)  # of the epoch whose weights are kept: the best by validation, or the last
    stopped: str | None = None  # why it stopped early
    limits: dict = field(default_factory=dict)  # the `time_budget` and `patience` in force
    channels_last: bool = True  # the memory layout, as chosen for the device on which the run began
    best_weights: dict | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Options:
    """The options of `fit` besides the recipe. A run that one of them stopped can continue from its checkpoint."""

    seed: int = 0  # all randomness of an epoch comes from it and the epoch's number
    about: Mapping[str, str] | None = None  # what else identifies this run, such as the fingerprint of its images
    checkpoint: Path | None = None  # file written after each epoch, or less often if slow; the previous one is kept beside it
    resume: bool = True  # from the checkpoint if there is one; False starts over
    mirror: Path | None = None  # folder, such as one on Google Drive, for a copy of the checkpoint in case it is lost
    # Replaces the recipe's: seconds, over all sessions of this run. The first epoch always runs; a later one starts only if
    # it would end in time at the median pace so far. A run therefore exceeds its budget by at most one epoch.
    time_budget: float | None = None
    patience: int | None = None  # replaces the recipe's
    until: int | None = None  # stop after this epoch
    target: float | None = None  # stop as soon as the validation accuracy is this high
    tensorboard: bool = False  # write each epoch's scalars into a folder beside the checkpoint
    deadline: float | None = None  # no epoch starts once the clock has reached this
    clock: Callable[[], float] = time.perf_counter  # in seconds

    def __post_init__(self):
        wrong = f"The time budget in seconds is {self.time_budget}; it must be greater than 0, and at most {LONGEST:.0e}."
        require(self.time_budget is None or 0 < self.time_budget <= LONGEST, wrong)
        for name, value in (("The patience", self.patience), ("The last epoch", self.until)):
            require(value is None or value > 0, f"{name} is {value}; it must be greater than 0.")


def fit(model: nn.Module, train: data.Split, validation: data.Split, recipe: Recipe, **options) -> Fit:
    """Train the model on the device it is on, and leave it with the weights of the epoch that the recipe keeps.

    All randomness of an epoch comes from (seed, epoch), so a run resumed from its checkpoint equals an uninterrupted one
    bit for bit on the same machine (on a GPU, if `deterministic`). Ctrl-C keeps the last checkpoint; `options`: see `Options`.
    A UserError if the checkpoint is unusable or belongs to another run; `Diverged` if the loss is no longer finite.
    """
    given = Options(**options)
    limits = {"time_budget": given.time_budget or recipe.time_budget, "patience": given.patience or recipe.patience}
    options = replace(given, **limits, clock=lambda: processes.agreed(given.clock()))
    fewer = f"The batch size is {recipe.batch_size}, for {processes.count()} processes; start at most {recipe.batch_size}."
    require(recipe.batch_size >= processes.count(), fewer)
    device = next(model.parameters()).device
    if recipe.compiled:
        torch.compiler.reset()  # graphs compiled in earlier runs would count towards its limit
    train, validation = train.to(device), validation.to(device)
    identity = {"seed": options.seed, "train_images": len(train), **(options.about or {}), **asdict(recipe)}
    learner = Learner(model, recipe)
    done = _resumed(learner, identity, options)
    done, stopped = done or Fit(channels_last=processes.agreed(choose_channels_last(model, train, recipe))), None
    learner.called = processes.wrap(prepare(model, recipe, done.channels_last))
    keeper, earlier = _Keeper(options, identity, len(done.history)), options.checkpoint and stamp(options.checkpoint)
    try:
        while len(done.history) < recipe.epochs and not (stopped := _reason_to_stop(done, options)):
            _advance(learner, done, _epoch(learner, train, validation, options, len(done.history)), options)
            keeper.save(learner, done)
        keeper.save(learner, done, last=True)
    except KeyboardInterrupt:
        end = "nothing of this run was kept, since none of its epochs had been checkpointed."
        if keeper.epochs or (options.checkpoint and stamp(options.checkpoint) != earlier):  # or it is an earlier run's
            end = f"the last checkpoint is kept in {options.checkpoint.name}; rerun to continue."
        print(f"\nStopped: {end}")
        keeper.copy(last=True)
        raise
    if done.best_weights is not None:
        model.load_state_dict(done.best_weights)
    return replace(done, stopped=stopped, limits=limits, best_weights=None)


def _resumed(learner: Learner, identity: dict, options: Options) -> Fit | None:
    """The run as its checkpoint left it, loaded into the learner; None if there is no checkpoint or `resume` is False."""
    if not options.checkpoint:
        return None
    require_writable(options.checkpoint.parent, "--checkpoint-dir")

    def accept(state: dict) -> None:
        _check_identity(state["identity"], identity, options.checkpoint)
        if set(state["best_weights"]) != set(learner.model.state_dict()):
            raise ValueError("the best weights are another network's")
        learner.load_state_dict(state)
        if not isinstance(state["history"], list) or not isinstance(state.get("arrangement", {}), dict):
            raise TypeError("its history is not a list, or its memory layout is not a dict")
        _ = state["history"][-1]["seconds"], state["best"]["epoch"]

    first = processes.rank() == 0
    state = load_checkpoint(options.checkpoint, options.mirror, accept, locked=True) if options.resume and first else None
    if not (state := processes.agreed(state)):
        return None
    if not first:
        accept(state)
    measured = state.get("arrangement", {}).get("channels_last", True)  # only once, when the run began
    done = Fit(**{name: state[name] for name in KEPT}, channels_last=measured)
    print(f"Resumed after epoch {len(done.history)} of {learner.recipe.epochs}.")
    here = platform(learner.device)
    # Older versions did not record it, or wrote "1 threads".
    before = {name: done.history[-1].get(name, value).replace(" 1 threads", " 1 thread") for name, value in here.items()}
    if before != here:
        old, new = ", ".join(before.values()), ", ".join(here.values())
        print(f"It began on {old} and continues on {new}; it will not match an uninterrupted run bit for bit.")
    return done


def _log(row: dict, checkpoint: Path) -> None:
    """Write an epoch's scalars for TensorBoard over those of a killed session; epoch 1 removes all of an earlier run's."""
    from torch.utils.tensorboard import SummaryWriter

    folder = checkpoint.with_suffix(".tensorboard")
    if row["epoch"] == 1:
        shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder), purge_step=row["epoch"]) as writer:
        for name in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            writer.add_scalar(name, row[name], row["epoch"])


def platform(device: torch.device) -> dict[str, str]:
    """The device and its libraries, in words: speeds and bits are compared only between runs where these are the same."""
    software = f"torch {torch.__version__}"
    if device.type == "cuda":
        software += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return {"device": runtime.device_name(device), "software": software}


class _Keeper:
    """Saves a run's checkpoints and, if a mirror is given, copies them there: from time to time, and at the end.

    On a GPU, writing hundreds of megabytes can take as long as an epoch, so slow saves are not made after every one. Drive
    uploads a file some time after it is written; a copy that is replaced sooner never gets there.
    """

    def __init__(self, options: Options, identity: dict, epochs: int):
        self.options, self.identity = options, identity
        # The last checkpoint: how many epochs it has, when it was written, and how long that took.
        self.epochs, self.saved, self.took = epochs, -math.inf, 0.0
        self.copied, self.works = -math.inf, True

    def save(self, learner: Learner, done: Fit, last: bool = False) -> None:
        """Save the run, unless its last epoch is saved already or, if it is not `last`, a slow save was made shortly before."""
        if not self.options.checkpoint or processes.rank() > 0:
            return
        start = time.monotonic()
        rests = not last and self.took > SLOW_SAVE and start - self.saved < self.took / SAVING
        if len(done.history) > self.epochs and not rests:
            kept = {name: getattr(done, name) for name in KEPT} | {"arrangement": {"channels_last": done.channels_last}}
            save_checkpoint({"identity": self.identity, **learner.state_dict(), **kept}, self.options.checkpoint)
            self.epochs, self.saved = len(done.history), time.monotonic()
            self.took = self.saved - start
        self.copy(last)
        if self.options.tensorboard and not last:
            _log(done.history[-1], self.options.checkpoint)

    def copy(self, last: bool = False) -> None:
        """Copy the checkpoint when due, and at the end if it was copied before; print a line when copying starts to fail."""
        due = self.copied > -math.inf if last else time.monotonic() - self.copied > BETWEEN_COPIES
        if not self.options.mirror or not due:
            return
        self.copied = time.monotonic()  # first, so that a copy which Ctrl-C interrupts is made again at the end
        reason = copy_checkpoint(self.options.checkpoint, self.options.mirror)
        if reason and self.works:
            lost = f"The checkpoint could not be copied to {self.options.mirror} ({reason})"
            print(f"{lost}; training continues with the local one, and copying will be tried again.")
        self.works = not reason


def _advance(learner: Learner, done: Fit, row: dict, options: Options) -> None:
    """Add an epoch's row to the history, and keep its weights if they are the best so far or the recipe keeps the last."""
    epoch, budget = row["epoch"], options.time_budget
    if not all(map(math.isfinite, (row["train_loss"], row["val_loss"]))):
        kept = " The last checkpoint is kept." if options.checkpoint and epoch > 1 else ""
        raise Diverged(f"The loss was not finite in epoch {epoch}; lower the learning rate.{kept}")
    done.history.append(row)
    if budget is not None and epoch == FIRST_EPOCHS:
        fitting = estimate_epochs(done.history, budget)
        print(f"At the pace of the first {FIRST_EPOCHS} epochs, {fitting} fit the time budget of {budget:g} s.")
    if learner.recipe.keep == "last" or not done.best or row["val_accuracy"] > done.best["val_accuracy"]:
        done.best = {name: row[name] for name in ("epoch", "val_accuracy", "val_loss")}
        weights = learner.model.state_dict() | (learner.average.values if learner.average else {})
        done.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}


def estimate_epochs(history: list[dict], time_budget: float) -> int:
    """How many epochs, at least one, fit a budget in seconds at the median pace of the first. Report `zoo`, section 5.2."""
    return max(1, int(time_budget // statistics.median(row["seconds"] for row in history[:FIRST_EPOCHS])))


def training_batches(
    split: data.Split, recipe: Recipe, generator: torch.Generator, mirror: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of a split in the recipe's batches, shuffled and augmented by the generator, as `data.batches` gives them."""
    return data.batches(split, recipe.batch_size, generator=generator, mirror=mirror, **recipe.view)


def batches_of_epoch(split: data.Split, recipe: Recipe, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of an epoch, counted from 1; epoch 0 of a seed is for the model's initial weights."""
    mirror = None
    if recipe.flip == "alternating":
        # The first epoch's coin flips have a generator of their own; else the same numbers would also shuffle that epoch.
        coins = torch.Generator().manual_seed(seed_epoch(seed, 1).initial_seed() + 1)
        mirror = data.sample_mirrors(len(split), coins) ^ (epoch % 2 == 0)
    return training_batches(split, recipe, seed_epoch(seed, epoch), mirror)


def _epoch(learner: Learner, train: data.Split, validation: data.Split, options: Options, epoch: int) -> dict:
    """Train and validate one epoch, counted from 0; returns its row of the history."""
    recipe, clock = learner.recipe, options.clock
    start = clock()
    steps = math.ceil(data.images_shown(train, recipe.augment) / recipe.batch_size)
    batches = batches_of_epoch(train, recipe, options.seed, epoch + 1)
    torch.manual_seed(torch.initial_seed() + processes.rank())  # dropout differs from process to process

    def prepared():
        shown = progress(batches, f"epoch {epoch + 1}/{recipe.epochs}", steps, recipe.batch_size)
        for number, (images, labels) in enumerate(shown):
            passed = epoch + number / steps  # epochs
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, passed, steps)
            share = passed / recipe.epochs
            learner.perturbed = is_perturbed(recipe, share, epoch * steps + number)
            yield data.resize(images, pixels_at(recipe, share)), labels

    row = {"epoch": epoch + 1, "lr": learning_rate(recipe, epoch, steps)}
    row["train_loss"], row["train_accuracy"] = train_epoch(learner, prepared())
    trained = clock()
    with learner.average.applied() if learner.average else nullcontext():
        row["val_loss"], row["val_accuracy"] = evaluate(learner.model, validation, recipe)
    return row | {"train_seconds": trained - start, "seconds": clock() - start} | platform(learner.device)


def _reason_to_stop(done: Fit, options: Options) -> str | None:
    history, budget, seconds = done.history, options.time_budget, [row["seconds"] for row in done.history]
    best = max(history, key=lambda row: row["val_accuracy"], default=None)
    if budget is not None and seconds and sum(seconds) + statistics.median(seconds) > budget:
        return f"time budget of {budget:g} s: {sum(seconds):.0f} s spent after epoch {len(seconds)}, and no other fits"
    if options.patience is not None and best and len(history) - best["epoch"] >= options.patience:
        return f"no better validation accuracy in {options.patience} epochs after epoch {best['epoch']}"
    if options.until is not None and len(history) >= options.until:
        return f"asked to stop after epoch {options.until}"
    if options.target is not None and best and best["val_accuracy"] >= options.target:
        return f"validation accuracy of {options.target:g} reached in epoch {best['epoch']}"
    return OUT_OF_TIME if options.deadline is not None and options.clock() >= options.deadline else None


def _check_identity(found: dict, wanted: dict, checkpoint: Path) -> None:
    found = completed(found)
    different = [f"{name} {found.get(name)}, not {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
    other = f"The checkpoint {checkpoint.name} belongs to a run with {'; '.join(different)}."
    require(not different, f"{other} Start over with --fresh (resume=False), or choose another checkpoint folder.")
