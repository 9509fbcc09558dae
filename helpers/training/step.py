"""One training step: forward pass, gradients, optimiser; in parts if a batch does not fit into memory."""

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.runtime import UserError, autocast_dtype, keep_freed_memory_in_process
from helpers.training import processes
from helpers.training.average import Average
from helpers.training.batchnorm import RunningStatistics, SynchronisedBatchNorm
from helpers.training.convolutions import convolutions
from helpers.training.perturbation import AdversarialModelPerturbation, along_momentum, step_clipped
from helpers.training.recipe import Recipe

# The messages of torch, cuDNN and cuBLAS; the last is torch's if no cuDNN engine gets the memory that it needs.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED|unable to find an engine", re.IGNORECASE)


@dataclass
class Learner:
    """A model in training, and the state that its steps change; what is not given is made from the recipe."""

    model: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    called: nn.Module | None = None  # computes the forward pass: the model, or its compiled form, which shares its parameters
    perturbed: bool = True  # whether the next step is perturbed, if the recipe has perturbed steps
    parts: int = 1  # the number of parts into which a batch is split
    rehearsed: float = 0  # with other processes: the elements in the largest batch known to fit into memory everywhere

    def __post_init__(self):
        if self.device.type == "cpu":
            keep_freed_memory_in_process()
        self.optimizer = self.optimizer or make_optimizer(self.model, self.recipe)
        half = self.recipe.mixed_precision and autocast_dtype(self.device) == torch.float16  # only fp16 needs a scaler
        self.scaler = self.scaler or torch.amp.GradScaler(self.device.type, enabled=half)
        self.called = self.model if self.called is None else self.called  # a compiled one has no truth value
        self.average = None if self.recipe.ema is None else Average(self.model, self.recipe.ema)
        self.statistics = RunningStatistics(self.model)
        if processes.count() == 1 or any(isinstance(layer, SynchronisedBatchNorm) for layer in self.model.modules()):
            self.rehearsed = math.inf  # no process waits for another, or no pass can run in one process alone

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def passes(self, images: int) -> int:
        """How many passes a batch of `images` images takes, in every process."""
        alike = -(-images * self.parts // self.recipe.batch_size)  # so that a smaller batch's parts are as large
        return max(1, min(self.parts, alike, images // processes.count()))

    def settle(self) -> None:
        """Average the BatchNorm statistics over all processes, before they are used or saved."""
        states = [self.model.state_dict(), *([self.average.values] if self.average else [])]
        names = [name for name, buffer in self.model.named_buffers() if buffer.is_floating_point()]
        for value in [state[name] for state in states for name in names]:
            processes.add_up(value)
            value.div_(processes.count())

    def state_dict(self) -> dict:
        """The state that a checkpoint stores."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        return state | {"parts": self.parts, "average": self.average.state_dict() if self.average else None}

    def load_state_dict(self, state: dict) -> None:
        """Continue where another learner with the same recipe stopped, whatever its device was."""
        self.model.load_state_dict(state["model"])
        groups = [
            group | {name: own[name] for name in ("foreach", "fused")}  # as chosen for this device
            for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        if state["scaler"]:  # empty if it ran without one, as in bf16; None in old checkpoints
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
    fused = parameters[0].device.type == "cuda" or recipe.mixed_precision  # it rounds differently from a textbook loop
    arguments = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": fused, "foreach": not fused}
    base = torch.optim.Adam
    if recipe.optimizer == "sgd":
        base, arguments = torch.optim.SGD, arguments | {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.perturbation is None:
        return base(groups, **arguments)
    inner = {"inner_lr": recipe.inner_learning_rate, "inner_steps": recipe.inner_steps, "clip_norm": recipe.clip_norm}
    return AdversarialModelPerturbation(groups, epsilon=recipe.perturbation, base=base, **inner, **arguments)


def autocast(device: torch.device, recipe: Recipe):
    """The context of the forward pass: mixed precision if the recipe asks for it and the device supports it."""
    dtype = autocast_dtype(device) if recipe.mixed_precision else None
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def train_epoch(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """One pass over the batches; returns the mean loss and the accuracy over images, as seen while training.

    The sums stay on the device until the pass ends: reading them at each step would make the host wait for the device. If
    there are several processes, all get the same batches, take their shares of each, and return the same two values.
    """
    learner.called.train()
    count, scaled = 0, learner.scaler.is_enabled()
    loss_sum, skipped, correct = torch.zeros(3, device=learner.device, dtype=torch.float64)
    with convolutions(learner.device, learner.recipe):
        for images, labels in batches:
            logits, loss = _step_in_parts(learner, images, labels)
            count += len(labels)
            if scaled:  # an overflow skips the step, and its loss is left out
                skipped += ~loss.isfinite() * len(labels)
                loss = loss.nan_to_num(0.0, 0.0, 0.0)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == processes.share(labels)).sum()
    processes.add_up(loss_sum, skipped, correct)
    learner.settle()
    return (loss_sum / (count - skipped / processes.count())).item(), correct.item() / count


def _step_in_parts(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A step on the batch, doubling the number of parts until they fit into the device's memory.

    With other processes, the first batch of a larger size is rehearsed: a failure in a joint pass would leave them waiting.
    """
    while True:
        fits, rehearsal = True, images.numel() > learner.rehearsed
        try:
            if not rehearsal:
                learner.statistics.before = None  # nothing to undo until this step's own pass begins
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
        torch.cuda.empty_cache()  # only here, where the failed step's own tensors have been freed
        learner.parts *= 2
        parts = f"it is split into {learner.parts} parts, and their gradients are summed"
        print(f"A batch of {len(labels)} does not fit into memory: {parts}.")


def _check_memory(learner: Learner, error: Exception, images: int, stuck: bool) -> None:
    """Raise the error, or a UserError for it, unless smaller parts may fit; `stuck`: other processes wait for this one."""
    if "Expected more than 1 value per channel" in str(error):  # torch's message
        one = f"BatchNorm cannot normalise a single image whose feature maps are 1×1, as in this batch of {images}"
        mend = "choose a batch size that does not leave a single image over, or larger images"
        fewer = ", or fewer processes" if processes.count() > 1 else ""
        raise UserError(f"{one}; {mend}{fewer}.") from error
    if not isinstance(error, torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
        raise error
    if learner.parts >= max(images, learner.recipe.batch_size):
        raise UserError("Not even one image fits into the device's memory; choose a smaller model or image.") from error
    if stuck:
        mend = "start more processes, or leave out --sync-batchnorm"
        raise UserError(f"A process's share of {images} images no longer fits into its memory; {mend}.") from error


def _rehearse(learner: Learner, images: Tensor, labels: Tensor) -> None:
    """Compute the gradient of this process's share, and discard it.

    It also holds as much extra memory as a step: momenta, DistributedDataParallel's buckets, the perturbation and a copy.
    """
    _held = [torch.empty_like(parameter) for parameter in learner.model.parameters() for _ in range(4)]
    gpus = [learner.device] if learner.device.type == "cuda" else []
    with learner.statistics.held(), torch.random.fork_rng(gpus):
        gradients(learner, images, labels, apart=True)
    learner.optimizer.zero_grad(set_to_none=True)


def step(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the logits of this process's share and its part of the loss, from the first pass.

    Parts, and the shares of several processes, give the gradient of the whole batch, except that BatchNorm sees each by
    itself. A perturbation also grows along the whole batch's gradient, which is reduced before use like any other.
    """
    optimizer, recipe, scaler = learner.optimizer, learner.recipe, learner.scaler
    passes = []
    if learner.average and not learner.average.pairs:
        learner.average.pair()

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
    """Add a batch's gradients to the parameters; with `apart`, only those of this process's share. Returns what `step` does.

    DistributedDataParallel averages over the processes, so each multiplies its loss by their number.
    """
    scores, losses = [], []
    parts, several = learner.passes(len(labels)), processes.count()
    called = learner.called if parts == 1 or several > 1 else learner.model  # a compiled model is for one batch size
    pieces = [processes.share(tensor).tensor_split(parts) for tensor in (images, labels)]
    for number, (image_part, label_part) in enumerate(zip(*pieces, strict=True), 1):
        with called.no_sync() if several > 1 and (apart or number < parts) else nullcontext():
            with autocast(images.device, learner.recipe):
                logits = called(image_part)
                loss = F.cross_entropy(logits, label_part, label_smoothing=learner.recipe.label_smoothing)
                # The mean over no images would be NaN.
                loss = loss * (len(label_part) / len(labels)) if len(label_part) else logits.sum()
            learner.scaler.scale(loss * several).backward()
        scores.append(logits.detach())
        losses.append(loss.detach())
    return torch.cat(scores), torch.stack(losses).sum()
