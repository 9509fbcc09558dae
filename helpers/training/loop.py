"""The loop: recipes, one epoch, evaluation, `fit` with resume, early stop and a time budget."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from helpers import data
from helpers.runtime import UserError, autocast_dtype, keep_freed_memory, progress, require_writable, seed_epoch
from helpers.training.checkpoints import load_checkpoint, save_checkpoint
from helpers.training.layout import PLAIN, Arrangement, arrange, fastest, step_seconds
from helpers.training.perturbation import AdversarialModelPerturbation, hold_statistics
from helpers.training.recipe import Recipe, completed, learning_rate

EVALUATION_BATCH = 64
FIRST_EPOCHS = 3


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters of the model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": parameters}]
    if recipe.decay_weights_only:
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    base, arguments = torch.optim.Adam, {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "foreach": True}
    if recipe.optimizer == "sgd":
        base, arguments = torch.optim.SGD, arguments | {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.perturbation is None:
        return base(groups, **arguments)
    return AdversarialModelPerturbation(
        groups,
        epsilon=recipe.perturbation,
        inner_lr=recipe.inner_learning_rate,
        inner_steps=recipe.inner_steps,
        base=base,
        **arguments,
    )


def choose_arrangement(model: nn.Module, train: data.Split, recipe: Recipe) -> Arrangement:
    """How the model trains fastest on the device it is on: on a GPU by measurement, on a first batch of the split.

    On every CPU that was tried it was channels-last with the groups as they are (`python -m helpers bench`).
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or not recipe.channels_last:
        return Arrangement() if recipe.channels_last else PLAIN
    sizes = {"image_size": recipe.image_size, "mean": recipe.mean, "std": recipe.std}
    images, labels = next(data.batches(train.to(device), recipe.batch_size, **sizes))

    @deterministic_convolutions()
    def step(candidate: nn.Module) -> None:
        candidate.train().zero_grad(set_to_none=True)
        with autocast(device, recipe):
            loss = F.cross_entropy(candidate(images), labels)
        loss.backward()

    return fastest(lambda arrangement: step_seconds(model, arrangement, step))


def prepare(model: nn.Module, recipe: Recipe, arrangement: Arrangement) -> nn.Module:
    """The model, and on a CPU the process, made ready for fast steps; returns what is to be called in training.

    That is the model itself, rearranged in place, or its compiled form, which shares its parameters.

    Raises:
        UserError: it is to be compiled, and there is no C++ compiler.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    arrange(model, arrangement)
    if not recipe.compiled:
        return model
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("torch.compile needs a C++ compiler, and none is here; install g++, or train without --compile.")
    # A program for each batch size: the last batch of an epoch is smaller, and CUDA graphs have fixed shapes.
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else "default")


def deterministic_convolutions():
    """The context of every training step: cuDNN's choices do not change from run to run."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def make_scaler(device: torch.device, recipe: Recipe) -> torch.amp.GradScaler | None:
    """The gradient scaler that fp16 needs, or None."""
    half = recipe.mixed_precision and autocast_dtype(device) == torch.float16
    return torch.amp.GradScaler(device.type) if half else None


def autocast(device: torch.device, recipe: Recipe):
    """The context of the forward pass: mixed precision where the recipe wants it and the device has it."""
    dtype = autocast_dtype(device) if recipe.mixed_precision else None
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@deterministic_convolutions()
def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, float]:
    """One pass over the batches; returns the mean loss and the accuracy over images, as seen while training.

    The sums stay on the device until the pass ends: reading one each step would make the host wait for the device.
    """
    device = next(model.parameters()).device
    model.train()
    count = 0
    loss_sum = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    parts = 1
    for images, labels in batches:
        while (done := _step_that_fits(model, images, labels, optimizer, recipe, scaler, parts)) is None:
            parts *= 2
            print(f"A batch of {len(labels)} does not fit into memory: it is taken in {parts} parts, their gradients added up.")
        logits, loss = done
        count += len(labels)
        loss_sum += loss * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    return loss_sum.item() / count, correct.item() / count


def _step_that_fits(model, images, labels, optimizer, recipe: Recipe, scaler, parts: int):
    """A step on the batch in so many parts, or None where even those do not fit into the device's memory."""
    try:
        return _step(model, images, labels, optimizer, recipe, scaler, parts)
    except torch.OutOfMemoryError as error:
        if parts >= len(labels):
            raise UserError("Not even one image fits into the device's memory; choose a smaller model or image.") from error
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()  # out here, where the failed step's own tensors are gone
    return None


def _step(model, images, labels, optimizer, recipe: Recipe, scaler, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimiser; returns the logits and the loss at the weights before it.

    A batch in parts gives the gradient of the whole, but for BatchNorm, which sees each part as a batch of its own.
    """
    first = None

    def closure() -> torch.Tensor:
        nonlocal first
        optimizer.zero_grad(set_to_none=True)
        scores, losses = [], []
        with hold_statistics(model) if first else nullcontext():
            for image_part, label_part in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                with autocast(images.device, recipe):
                    logits = model(image_part)
                    loss = F.cross_entropy(logits, label_part, label_smoothing=recipe.label_smoothing)
                    loss = loss * (len(label_part) / len(labels))
                (scaler.scale(loss) if scaler else loss).backward()
                scores.append(logits.detach())
                losses.append(loss.detach())
        loss = torch.stack(losses).sum()
        first = first or (torch.cat(scores), loss)
        return loss

    if isinstance(optimizer, AdversarialModelPerturbation):
        optimizer.step(closure, scaler)
    else:
        closure()
        scaler.step(optimizer) if scaler else optimizer.step()
    if scaler:
        scaler.update()
    return first


@torch.inference_mode()
def predict(model: nn.Module, split: data.Split, recipe: Recipe, batch_size: int | None = None) -> torch.Tensor:
    """The model's logits for a split, in its order, un-augmented and in eval mode: float32 (N, num_classes) on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    batches = data.batches(
        split.to(device), batch_size or EVALUATION_BATCH, image_size=recipe.image_size, mean=recipe.mean, std=recipe.std
    )
    with autocast(device, recipe):
        return torch.cat([model(images).float() for images, _ in batches]).cpu()


def evaluate(model: nn.Module, split: data.Split, recipe: Recipe) -> tuple[float, float]:
    """The mean cross-entropy (nats) and the accuracy of the model over the images of a split."""
    return score(predict(model, split, recipe), split.labels.cpu())


def accuracy_at(k: int, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The part of the images whose label is among the `k` highest of their scores: logits (N, C), labels (N,)."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1).double().mean().item()


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of logits (N, C) against labels (N,): both are means over images."""
    loss = F.cross_entropy(logits.double(), labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


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


def fit(
    model: nn.Module,
    train: data.Split,
    validation: data.Split,
    recipe: Recipe,
    *,
    seed: int = 0,
    about: Mapping[str, str] | None = None,
    checkpoint: Path | None = None,
    resume: bool = True,
    mirror: Path | None = None,
    time_budget: float | None = None,
    patience: int | None = None,
    until: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Train the model, on the device it is on, and leave it with the weights of its best epoch by validation accuracy.

    All randomness of an epoch comes from (seed, epoch), so a run resumed from its checkpoint equals an uninterrupted one
    bit for bit on the same machine. Ctrl-C keeps the checkpoint of the last whole epoch and says so.

    Args:
        about: what else tells this run from others, such as the fingerprint of its images; kept in the checkpoint.
        checkpoint: file written after every epoch; the one before it is kept beside it. None: no checkpoint.
        resume: go on from the checkpoint if there is one; False starts over.
        mirror: folder, such as one on Google Drive, that each checkpoint is copied to; read when the local one is gone.
        time_budget: in place of the recipe's: seconds, over all sessions of this run. The first epoch always runs; a later
            one starts only if, at the median of those before, it ends in time, so that one epoch too many is the most.
        patience: in place of the recipe's: epochs without a better validation accuracy.
        until: stop after this epoch, to go on from the checkpoint another time.

    Raises:
        UserError: the checkpoint cannot be written or read or belongs to another run.
        Diverged: the loss is no longer finite.
    """
    time_budget = recipe.time_budget if time_budget is None else time_budget
    patience = recipe.patience if patience is None else patience
    for name, value in (("The time budget in seconds", time_budget), ("The patience", patience), ("The last epoch", until)):
        if value is not None and value <= 0:
            raise UserError(f"{name} is {value}; it must be greater than 0.")
    if checkpoint:
        require_writable(checkpoint.parent, "--checkpoint-dir")
    device = next(model.parameters()).device
    train, validation = train.to(device), validation.to(device)
    optimizer = make_optimizer(model, recipe)
    scaler = make_scaler(device, recipe)
    identity = {"seed": seed, "train_images": len(train), **(about or {}), **asdict(recipe)}
    best_weights = None
    state = load_checkpoint(checkpoint, mirror) if checkpoint and resume else None
    if state is not None:
        _check_identity(state["identity"], identity, checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler:
            scaler.load_state_dict(state["scaler"])
        done, best_weights = Fit(state["history"], state["best"]), state["best_weights"]
        done.arrangement = Arrangement(**state.get("arrangement", {}))  # not measured again: another rounds otherwise
        print(f"Resumed after epoch {len(done.history)} of {recipe.epochs}.")
    else:
        done = Fit(arrangement=choose_arrangement(model, train, recipe))
    callable_model = prepare(model, recipe, done.arrangement)

    try:
        while (epoch := len(done.history)) < recipe.epochs:
            done.stopped = _reason_to_stop(done, time_budget, patience, until)
            if done.stopped:
                break
            spent = sum(row["seconds"] for row in done.history)
            row = _epoch(
                model, callable_model, train, validation, optimizer, scaler, recipe, seed, epoch, clock, spent, time_budget
            )
            if not torch.isfinite(torch.tensor([row["train_loss"], row["val_loss"]])).all():
                kept = f" The checkpoint of epoch {epoch} is kept." if checkpoint and epoch else ""
                raise Diverged(f"The loss was not finite in epoch {epoch + 1}; lower the learning rate.{kept}")
            done.history.append(row)
            if time_budget is not None and len(done.history) == FIRST_EPOCHS:
                fitting = estimate_epochs(done.history, time_budget)
                print(f"At the pace of the first {FIRST_EPOCHS} epochs, {fitting} fit the time budget of {time_budget:g} s.")
            if not done.best or row["val_accuracy"] > done.best["val_accuracy"]:
                done.best = {"epoch": row["epoch"], "val_accuracy": row["val_accuracy"], "val_loss": row["val_loss"]}
                best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if checkpoint:
                state = {
                    "identity": identity,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None,
                    "history": done.history,
                    "best": done.best,
                    "best_weights": best_weights,
                    "arrangement": asdict(done.arrangement),
                }
                save_checkpoint(state, checkpoint, mirror)
    except KeyboardInterrupt:
        if checkpoint and done.history:
            print(f"\nStopped: the last whole epoch is kept in {checkpoint.name}; run the same again to go on.")
        else:  # a checkpoint that lies there is an earlier run's
            print("\nStopped: nothing of this run was kept, since none of its epochs had been checkpointed.")
        raise
    if best_weights is not None:
        model.load_state_dict(best_weights)
    estimated = None if time_budget is None else estimate_epochs(done.history, time_budget)
    done.limits = {"time_budget": time_budget, "patience": patience, "estimated_epochs": estimated}
    return done


def estimate_epochs(history: list[dict], time_budget: float) -> int:
    """How many epochs fit a time budget in seconds, at the median pace of the first ones; at least the one that always runs.

    Source: report `zoo`, section 5.2, which estimates for every model how many epochs the time allowed would let it run.
    """
    seconds = statistics.median(row["seconds"] for row in history[:FIRST_EPOCHS])
    return max(1, int(time_budget // seconds))


def training_batches(
    split: data.Split, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of a split in the recipe's batches, shuffled and augmented by the generator, as `data.batches` gives them."""
    names = ("batch_size", "image_size", "mean", "std", "augment", "padding")
    return data.batches(split, **{name: getattr(recipe, name) for name in names}, generator=generator)


def _epoch(model, callable_model, train, validation, optimizer, scaler, recipe, seed, epoch, clock, spent, time_budget) -> dict:
    """Train and validate one epoch; its row of the history."""
    start = clock()
    # Epoch 0 of a seed belongs to the model's initial weights.
    batches = training_batches(train, recipe, seed_epoch(seed, epoch + 1))
    steps = -(-data.images_shown(train, recipe.augment) // recipe.batch_size)

    def rate(step: int) -> float:
        share = (spent + clock() - start) / time_budget if recipe.pace == "time" else 0.0
        return learning_rate(recipe, epoch + step / steps, steps, spent=share)

    def scheduled():
        for number, batch in enumerate(progress(batches, f"epoch {epoch + 1}/{recipe.epochs}", steps)):
            for group in optimizer.param_groups:
                group["lr"] = rate(number)
            yield batch

    first_rate = rate(0)
    train_loss, train_accuracy = train_epoch(callable_model, scheduled(), optimizer, recipe, scaler)
    turned = clock()
    val_loss, val_accuracy = evaluate(model, validation, recipe)
    return {
        "epoch": epoch + 1,
        "lr": first_rate,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "train_seconds": turned - start,
        "seconds": clock() - start,
    }


def _reason_to_stop(done: Fit, time_budget: float | None, patience: int | None, until: int | None) -> str | None:
    seconds = [row["seconds"] for row in done.history]
    if time_budget is not None and seconds and sum(seconds) + statistics.median(seconds) > time_budget:
        return f"time budget of {time_budget:g} s: {sum(seconds):.0f} s spent after epoch {len(seconds)}, and no other fits"
    if patience is not None and done.best and len(done.history) - done.best["epoch"] >= patience:
        return f"no better validation accuracy in {patience} epochs after epoch {done.best['epoch']}"
    if until is not None and len(done.history) >= until:
        return f"asked to stop after epoch {until}"
    return None


def _check_identity(found: dict, wanted: dict, checkpoint: Path) -> None:
    found = completed(found)
    different = [f"{name} {found.get(name)}, not {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
    if different:
        raise UserError(
            f"The checkpoint {checkpoint.name} belongs to a run with {'; '.join(different)}. "
            "Start over with --fresh (resume=False), or choose another checkpoint folder."
        )
