"""The loop: epochs of steps and an evaluation, with resume, early stop and a time budget."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from helpers import data
from helpers.runtime import UserError, device_name, keep_freed_memory_in_process, progress, require_writable, seed_epoch
from helpers.training.checkpoints import copy_checkpoint, load_checkpoint, save_checkpoint
from helpers.training.evaluation import evaluate
from helpers.training.layout import Arrangement, choose_arrangement, prepare
from helpers.training.recipe import (
    Recipe,
    check_time_budget,
    completed,
    is_perturbed,
    learning_rate,
    pixels_at,
    share_of_run,
)
from helpers.training.step import Learner, train_epoch

FIRST_EPOCHS = 3
OUT_OF_TIME = "the deadline has passed"


class Diverged(UserError):
    """The loss is no longer finite."""


@dataclass
class Fit:
    """What `fit` leaves: a row an epoch, the best epoch by validation, and why it stopped early (None: it did not).

    `limits` holds those in force: `time_budget` in seconds, `patience` in epochs, and `estimated_epochs`, how many would fit
    the budget at the pace of the first ones (None: no budget). `arrangement` says how the network was computed.
    """

    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    stopped: str | None = None
    limits: dict = field(default_factory=dict)
    arrangement: Arrangement = field(default_factory=Arrangement)
    best_weights: dict | None = field(default=None, repr=False)

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it."""
        kept = {name: getattr(self, name) for name in ("history", "best", "best_weights")}
        return kept | {"arrangement": asdict(self.arrangement)}


@dataclass(frozen=True)
class Options:
    """What `fit` may be told beside the recipe.

    Attributes:
        seed: all randomness of an epoch comes from it and the epoch's number.
        about: what else tells this run from others, such as the fingerprint of its images; kept in the checkpoint.
        checkpoint: file written after every epoch; the one before it is kept beside it. None: no checkpoint.
        resume: go on from the checkpoint if there is one; False starts over.
        mirror: folder, such as one on Google Drive, that each checkpoint is copied to; read when the local one is gone.
        time_budget: in place of the recipe's: seconds, over all sessions of this run. The first epoch always runs; a later
            one starts only if, at the median of those before, it ends in time, so that one epoch too many is the most.
        patience: in place of the recipe's: epochs without a better validation accuracy.
        until: stop after this epoch, to go on from the checkpoint another time.
        target: stop as soon as the validation accuracy is this high.
        deadline: no epoch starts when the clock shows so much, to go on from the checkpoint another time.
        clock: what tells the seconds.
    """

    seed: int = 0
    about: Mapping[str, str] | None = None
    checkpoint: Path | None = None
    resume: bool = True
    mirror: Path | None = None
    time_budget: float | None = None
    patience: int | None = None
    until: int | None = None
    target: float | None = None
    deadline: float | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self):
        check_time_budget(self.time_budget)
        for name, value in (("The patience", self.patience), ("The last epoch", self.until)):
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be greater than 0.")


def fit(model: nn.Module, train: data.Split, validation: data.Split, recipe: Recipe, **options) -> Fit:
    """Train the model, on the device it is on, and leave it with the weights of its best epoch by validation accuracy.

    All randomness of an epoch comes from (seed, epoch), so a run resumed from its checkpoint equals an uninterrupted one
    bit for bit on the same machine. Ctrl-C keeps the checkpoint of the last whole epoch and says so.

    Args:
        options: the fields of `Options`, such as `seed` and `checkpoint`.

    Raises:
        UserError: the checkpoint cannot be written or read or belongs to another run.
        Diverged: the loss is no longer finite.
    """
    options = Options(**options)
    budget = recipe.time_budget if options.time_budget is None else options.time_budget
    options = replace(options, time_budget=budget, patience=options.patience or recipe.patience)
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory_in_process()
    train, validation = train.to(device), validation.to(device)
    identity = {"seed": options.seed, "train_images": len(train), **(options.about or {}), **asdict(recipe)}
    learner = Learner(model, recipe)
    done = _resumed(learner, identity, options) or Fit(arrangement=choose_arrangement(model, train, recipe))
    learner.called = prepare(model, recipe, done.arrangement)
    mirrored = True
    try:
        while len(done.history) < recipe.epochs:
            done.stopped = _reason_to_stop(done, options)
            if done.stopped:
                break
            _advance(learner, done, _epoch(learner, train, validation, options, done.history), options)
            if options.checkpoint:
                save_checkpoint({"identity": identity, **learner.state_dict(), **done.state_dict()}, options.checkpoint)
                mirrored = _mirror(options, mirrored)
    except KeyboardInterrupt:
        if options.checkpoint and done.history:
            print(f"\nStopped: the last whole epoch is kept in {options.checkpoint.name}; run the same again to go on.")
        else:  # a checkpoint that lies there is an earlier run's
            print("\nStopped: nothing of this run was kept, since none of its epochs had been checkpointed.")
        raise
    if done.best_weights is not None:
        model.load_state_dict(done.best_weights)
    estimated = None if budget is None else estimate_epochs(done.history, budget)
    done.limits = {"time_budget": budget, "patience": options.patience, "estimated_epochs": estimated}
    return replace(done, best_weights=None)


def _resumed(learner: Learner, identity: dict, options: Options) -> Fit | None:
    """The run as its checkpoint left it, taken over by the learner; None where there is none or it is not wanted."""
    if not options.checkpoint:
        return None
    require_writable(options.checkpoint.parent, "--checkpoint-dir")

    def accept(state: dict) -> None:
        _check_identity(state["identity"], identity, options.checkpoint)
        if set(state["best_weights"]) != set(learner.model.state_dict()):
            raise ValueError("the best weights are another network's")
        learner.load_state_dict(state)
        _ = state["history"], state["best"]["epoch"]

    state = load_checkpoint(options.checkpoint, options.mirror, accept) if options.resume else None
    if not state:
        return None
    done = Fit(**{name: state[name] for name in ("history", "best", "best_weights")})
    done.arrangement = Arrangement(state.get("arrangement", {}).get("channels_last", True))  # not measured again
    print(f"Resumed after epoch {len(done.history)} of {learner.recipe.epochs}.")
    before, here = done.history[-1], platform(learner.device)
    if any(name in before and before[name] != here[name] for name in here):
        old, new = (", ".join(place[name] for name in here) for place in (before, here))
        print(f"It began on {old} and goes on on {new}: from here on its bits differ from those of a run that stayed.")
    return done


def platform(device: torch.device) -> dict[str, str]:
    """The device and the libraries that compute on it, in words: speeds and bits are only compared where they are equal."""
    software = f"torch {torch.__version__}"
    if device.type == "cuda":
        software += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return {"device": device_name(device), "software": software}


def _mirror(options: Options, worked: bool) -> bool:
    """Copy the checkpoint into the mirror; whether it worked, and a line where it no longer does."""
    if not options.mirror:
        return True
    reason = copy_checkpoint(options.checkpoint, options.mirror)
    if reason and worked:
        print(
            f"The checkpoint could not be copied to {options.mirror} ({reason}); "
            "training goes on with the one here, and the copy is tried again after each epoch."
        )
    return not reason


def _advance(learner: Learner, done: Fit, row: dict, options: Options) -> None:
    """Take an epoch's row into the history, and its weights where they are the best so far."""
    epoch, budget = row["epoch"], options.time_budget
    if not torch.isfinite(torch.tensor([row["train_loss"], row["val_loss"]])).all():
        kept = f" The checkpoint of epoch {epoch - 1} is kept." if options.checkpoint and epoch > 1 else ""
        raise Diverged(f"The loss was not finite in epoch {epoch}; lower the learning rate.{kept}")
    done.history.append(row)
    if budget is not None and epoch == FIRST_EPOCHS:
        fitting = estimate_epochs(done.history, budget)
        print(f"At the pace of the first {FIRST_EPOCHS} epochs, {fitting} fit the time budget of {budget:g} s.")
    if not done.best or row["val_accuracy"] > done.best["val_accuracy"]:
        done.best = {name: row[name] for name in ("epoch", "val_accuracy", "val_loss")}
        done.best_weights = {name: value.detach().cpu().clone() for name, value in learner.weights().items()}


def estimate_epochs(history: list[dict], time_budget: float) -> int:
    """How many epochs fit a time budget in seconds, at the median pace of the first ones; at least the one that always runs.

    Source: report `zoo`, section 5.2, which estimates for every model how many epochs the time allowed would let it run.
    """
    seconds = statistics.median(row["seconds"] for row in history[:FIRST_EPOCHS])
    return max(1, int(time_budget // seconds))


def training_batches(
    split: data.Split, recipe: Recipe, generator: torch.Generator, mirror: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of a split in the recipe's batches, shuffled and augmented by the generator, as `data.batches` gives them."""
    return data.batches(split, recipe.batch_size, generator=generator, mirror=mirror, **recipe.view)


def batches_of_epoch(split: data.Split, recipe: Recipe, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of an epoch, counted from 1; epoch 0 of a seed belongs to the model's initial weights."""
    mirror = None
    if recipe.flip == "alternating":
        # The coins of the first epoch, on a stream of their own: the same numbers would shuffle that epoch as well.
        coins = torch.Generator().manual_seed(seed_epoch(seed, 1).initial_seed() + 1)
        mirror = data.sample_mirrors(len(split), coins) ^ (epoch % 2 == 0)
    return training_batches(split, recipe, seed_epoch(seed, epoch), mirror)


def _epoch(learner: Learner, train: data.Split, validation: data.Split, options: Options, history: list[dict]) -> dict:
    """Train and validate one epoch; its row of the history."""
    recipe, clock, epoch = learner.recipe, options.clock, len(history)
    start, spent = clock(), sum(row["seconds"] for row in history)
    steps = -(-data.images_shown(train, recipe.augment) // recipe.batch_size)
    batches = batches_of_epoch(train, recipe, options.seed, epoch + 1)

    def place(number: int) -> tuple[float, float]:
        """The epochs and the share of the time budget done before a step."""
        return epoch + number / steps, (spent + clock() - start) / options.time_budget if recipe.pace == "time" else 0.0

    def prepared():
        for number, (images, labels) in enumerate(progress(batches, f"epoch {epoch + 1}/{recipe.epochs}", steps)):
            epochs, budget_spent = place(number)
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epochs, steps, spent=budget_spent)
            share = share_of_run(recipe, epochs, budget_spent)
            learner.perturbed = is_perturbed(recipe, share, epoch * steps + number)
            yield data.resize(images, pixels_at(recipe, share)), labels

    epochs, budget_spent = place(0)
    first_rate = learning_rate(recipe, epochs, steps, spent=budget_spent)
    train_loss, train_accuracy = train_epoch(learner, prepared())
    turned = clock()
    with learner.averaged():
        val_loss, val_accuracy = evaluate(learner.model, validation, recipe)
    return {
        "epoch": epoch + 1,
        "lr": first_rate,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "train_seconds": turned - start,
        "seconds": clock() - start,
        **platform(learner.device),
    }


def _reason_to_stop(done: Fit, options: Options) -> str | None:
    seconds, budget = [row["seconds"] for row in done.history], options.time_budget
    if budget is not None and seconds and sum(seconds) + statistics.median(seconds) > budget:
        return f"time budget of {budget:g} s: {sum(seconds):.0f} s spent after epoch {len(seconds)}, and no other fits"
    if options.patience is not None and done.best and len(done.history) - done.best["epoch"] >= options.patience:
        return f"no better validation accuracy in {options.patience} epochs after epoch {done.best['epoch']}"
    if options.until is not None and len(done.history) >= options.until:
        return f"asked to stop after epoch {options.until}"
    if options.target is not None and done.best and done.best["val_accuracy"] >= options.target:
        return f"validation accuracy of {options.target:g} reached in epoch {done.best['epoch']}"
    if options.deadline is not None and options.clock() >= options.deadline:
        return OUT_OF_TIME
    return None


def _check_identity(found: dict, wanted: dict, checkpoint: Path) -> None:
    found = completed(found)
    different = [f"{name} {found.get(name)}, not {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
    if different:
        raise UserError(
            f"The checkpoint {checkpoint.name} belongs to a run with {'; '.join(different)}. "
            "Start over with --fresh (resume=False), or choose another checkpoint folder."
        )
