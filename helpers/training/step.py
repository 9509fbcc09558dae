"""One step of training: forward pass, gradients, optimiser; in parts where a batch does not fit into memory."""

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.runtime import UserError, autocast_dtype
from helpers.training import processes
from helpers.training.average import Average
from helpers.training.batchnorm import RunningStatistics, SynchronisedBatchNorm
from helpers.training.convolutions import convolutions
from helpers.training.perturbation import AdversarialModelPerturbation, along_momentum, step_clipped
from helpers.training.recipe import Recipe

# Torch's words, cuDNN's and cuBLAS's; and torch's where none of cuDNN's engines got the memory that it wants.
OUT_OF_MEMORY = re.compile(r"out of memory|ALLOC(ATION)?_FAILED|unable to find an engine", re.IGNORECASE)
ONE_VALUE = "Expected more than 1 value per channel"  # torch's words


@dataclass
class Learner:
    """A model in training, and what its steps change; what is not given is as the recipe wants it on the model's device."""

    model: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    called: nn.Module | None = None  # computes the forward pass: the model, or its compiled form, which shares its parameters
    average: Average | None = None
    perturbed: bool = True  # whether the next step is a perturbed one, if the recipe has those
    parts: int = 1  # how many pieces a batch is taken in
    rehearsed: float = 0  # with other processes: the numbers in the largest batch that fits into memory everywhere

    def __post_init__(self):
        self.optimizer = self.optimizer or make_optimizer(self.model, self.recipe)
        half = self.recipe.mixed_precision and autocast_dtype(self.device) == torch.float16  # elsewhere a scaler does nothing
        self.scaler = self.scaler or torch.amp.GradScaler(self.device.type, enabled=half)
        self.called = self.model if self.called is None else self.called  # a compiled one has no truth value
        if self.recipe.ema is not None:
            self.average = self.average or Average(self.model, self.recipe.ema)
        self.statistics = RunningStatistics(self.model)
        if processes.count() == 1 or any(isinstance(layer, SynchronisedBatchNorm) for layer in self.model.modules()):
            self.rehearsed = math.inf  # nobody waits; or no pass can be one process's alone

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def passes(self, images: int) -> int:
        """How many passes a batch of so many images takes, in every process."""
        return max(1, min(self.parts, images // processes.count()))

    def settle(self) -> None:
        """Give all processes the mean of their BatchNorm statistics, before these are used or kept."""
        states = [self.model.state_dict(), *([self.average.values] if self.average else [])]
        names = [name for name, buffer in self.model.named_buffers() if buffer.is_floating_point()]
        for value in [state[name] for state in states for name in names]:
            processes.add_up(value)
            value.div_(processes.count())

    def averaged(self):
        """The context in which the model has its averaged weights, if there are any."""
        return self.average.applied() if self.average else nullcontext()

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        return state | {"parts": self.parts, "average": self.average.state_dict() if self.average else None}

    def load_state_dict(self, state: dict) -> None:
        """Go on where another learner of the same recipe stopped, on whatever device that was."""
        self.model.load_state_dict(state["model"])
        groups = [
            group | {name: own[name] for name in ("foreach", "fused")}  # as this device wants it
            for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        if state["scaler"]:  # empty where it ran without one, as in bf16; None in old checkpoints
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.parts = state.get("parts", 1)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters of the model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": parameters}]
    if recipe.decay_weights_only:
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    fused = parameters[0].device.type == "cuda" or recipe.mixed_precision  # which rounds unlike a textbook's loop
    arguments = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": fused, "foreach": not fused}
    base = torch.optim.Adam
    if recipe.optimizer == "sgd":
        base, arguments = torch.optim.SGD, arguments | {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.perturbation is None:
        return base(groups, **arguments)
    inner = {"inner_lr": recipe.inner_learning_rate, "inner_steps": recipe.inner_steps, "clip_norm": recipe.clip_norm}
    return AdversarialModelPerturbation(groups, epsilon=recipe.perturbation, base=base, **inner, **arguments)


def autocast(device: torch.device, recipe: Recipe):
    """The context of the forward pass: mixed precision where the recipe wants it and the device has it."""
    dtype = autocast_dtype(device) if recipe.mixed_precision else None
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def train_epoch(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """One pass over the batches; returns the mean loss and the accuracy over images, as seen while training.

    The sums stay on the device until the pass ends: reading one each step would make the host wait for the device. Several
    processes are given the same batches, take their shares of each, and return the same sums over all of them.
    """
    learner.called.train()
    count, scaled = 0, learner.scaler.is_enabled()
    loss_sum, skipped, correct = torch.zeros(3, device=learner.device, dtype=torch.float64)
    with convolutions(learner.device, learner.recipe):
        for images, labels in batches:
            logits, loss = _step_in_parts(learner, images, labels)
            count += len(labels)
            if scaled:  # an overflow skips the step, and its loss says nothing
                skipped += ~loss.isfinite() * len(labels)
                loss = loss.nan_to_num(0.0, 0.0, 0.0)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == processes.share(labels)).sum()
    processes.add_up(loss_sum, skipped, correct)
    learner.settle()
    return (loss_sum / (count - skipped / processes.count())).item(), correct.item() / count


def _step_in_parts(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A step on the batch, in twice as many parts for as long as these do not fit into the device's memory.

    With other processes the first batch of each size is rehearsed: one that failed in a common pass would leave them waiting.
    """
    while True:
        fits, rehearsal = True, images.numel() > learner.rehearsed
        try:
            if not rehearsal:
                return step(learner, images, labels)
            _rehearse(learner, images, labels)
        except (RuntimeError, ValueError) as error:
            fits = False
            _check_memory(learner, error, len(labels), stuck=not rehearsal and processes.count() > 1)
            learner.optimizer.zero_grad(set_to_none=True)
            if not rehearsal:
                learner.statistics.undo()
        if rehearsal and all(processes.gathered(fits)):
            learner.rehearsed = images.numel()
            continue
        torch.cuda.empty_cache()  # out here, where the failed step's own tensors are gone
        learner.parts *= 2
        taken = f"it is taken in {learner.parts} parts, their gradients added up"
        print(f"A batch of {len(labels)} does not fit into memory: {taken}.")


def _check_memory(learner: Learner, error: Exception, images: int, stuck: bool) -> None:
    """Raise the error or a sentence for it, unless smaller parts may fit into memory; `stuck`: others wait for this process."""
    if ONE_VALUE in str(error):
        one = f"BatchNorm cannot learn from one image whose features are one pixel, as in this batch of {images}"
        mend = "choose a batch size that leaves no single image over, or larger images"
        fewer = ", or fewer processes" if processes.count() > 1 else ""
        raise UserError(f"{one}; {mend}{fewer}.") from error
    if not isinstance(error, torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
        raise error
    if learner.parts >= images:
        raise UserError("Not even one image fits into the device's memory; choose a smaller model or image.") from error
    if stuck:
        mend = "start more processes, or leave out --sync-batchnorm"
        raise UserError(f"A share of {images} images no longer fits into the memory of a process; {mend}.") from error


def _rehearse(learner: Learner, images: Tensor, labels: Tensor) -> None:
    """Take the gradient of this process's share, and throw it away.

    Beside it lies as much memory as a step takes: momenta, DistributedDataParallel's buckets, the perturbation and a copy.
    """
    _held = [torch.empty_like(parameter) for parameter in learner.model.parameters() for _ in range(4)]
    gpus = [learner.device] if learner.device.type == "cuda" else []
    with learner.statistics.held(), torch.random.fork_rng(gpus):
        gradients(learner, images, labels, apart=True)
    learner.optimizer.zero_grad(set_to_none=True)


def step(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the logits of this process's share and its part of the loss, from the first pass.

    Parts, and the shares of several processes, give the gradient of the whole batch, but for BatchNorm, which sees each by
    itself. A perturbation, too, grows along the gradient of the whole batch: as every gradient, it is reduced before use.
    """
    optimizer, recipe, scaler = learner.optimizer, learner.recipe, learner.scaler
    passes = []

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        counted = learner.statistics.moving(learner.passes(len(labels)), mend=scaler.is_enabled())
        with learner.statistics.held() if passes else counted:
            passes.append(gradients(learner, images, labels))
        return passes[-1][1]

    if learner.perturbed and isinstance(optimizer, AdversarialModelPerturbation):
        optimizer.step(closure, scaler)
    else:
        with along_momentum(optimizer, recipe.momentum_perturbation if learner.perturbed else None):
            closure()
        step_clipped(getattr(optimizer, "base", optimizer), scaler, recipe.clip_norm)
    scaler.update()
    if learner.average:
        learner.average.update()
    return passes[0]


def gradients(learner: Learner, images: Tensor, labels: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch to the parameters, those of the share alone with `apart`; returns what `step` does.

    DistributedDataParallel takes a mean over the processes: each counts its loss as often as there are processes.
    """
    scores, losses = [], []
    parts, several = learner.passes(len(labels)), processes.count()
    called = learner.called if parts == 1 or several > 1 else learner.model  # a compiled program is of one batch size
    pieces = [processes.share(tensor).tensor_split(parts) for tensor in (images, labels)]
    for number, (image_part, label_part) in enumerate(zip(*pieces, strict=True), 1):
        with called.no_sync() if several > 1 and (apart or number < parts) else nullcontext():
            with autocast(images.device, learner.recipe):
                logits = called(image_part)
                loss = F.cross_entropy(logits, label_part, label_smoothing=learner.recipe.label_smoothing)
                # The mean over no images is not a number.
                loss = loss * (len(label_part) / len(labels)) if len(label_part) else logits.sum()
            learner.scaler.scale(loss * several).backward()
        scores.append(logits.detach())
        losses.append(loss.detach())
    return torch.cat(scores), torch.stack(losses).sum()
