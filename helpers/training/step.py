"""One step of training: forward pass, gradients, optimiser; in parts where a batch does not fit into memory."""

import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.runtime import UserError, autocast_dtype
from helpers.training.average import Average
from helpers.training.batchnorm import RunningStatistics
from helpers.training.perturbation import AdversarialModelPerturbation, along_momentum, step_clipped
from helpers.training.recipe import Recipe

OUT_OF_MEMORY = re.compile(r"out of memory|ALLOC(ATION)?_FAILED", re.IGNORECASE)  # torch's words, cuDNN's and cuBLAS's
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

    def __post_init__(self):
        self.optimizer = self.optimizer or make_optimizer(self.model, self.recipe)
        self.scaler = self.scaler or make_scaler(self.device, self.recipe)
        self.called = self.called or self.model
        if self.recipe.ema is not None:
            self.average = self.average or Average(self.model, self.recipe.ema)
        self.statistics = RunningStatistics(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def averaged(self):
        """The context in which the model has its averaged weights, if there are any."""
        return self.average.applied() if self.average else nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and kept: the averaged weights, else the model's own."""
        return self.average.values if self.average else self.model.state_dict()

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it."""
        stateful = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler, "average": self.average}
        return {"parts": self.parts} | {name: None if part is None else part.state_dict() for name, part in stateful.items()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where another learner of the same recipe stopped, on whatever device that was."""
        self.model.load_state_dict(state["model"])
        groups = [
            group | {name: own[name] for name in ("foreach", "fused")}  # as this device wants it
            for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        if state["scaler"]:  # None: it ran without one, as in bf16
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.parts = state.get("parts", 1)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters of the model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": parameters}]
    if recipe.decay_weights_only:
        weights, others = ([p for p in parameters if (p.ndim > 1) == is_weight] for is_weight in (True, False))
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    kind = "fused" if parameters[0].device.type == "cuda" else "foreach"
    base, arguments = torch.optim.Adam, {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, kind: True}
    if recipe.optimizer == "sgd":
        base, arguments = torch.optim.SGD, arguments | {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.perturbation is None:
        return base(groups, **arguments)
    inner = {"inner_lr": recipe.inner_learning_rate, "inner_steps": recipe.inner_steps, "clip_norm": recipe.clip_norm}
    return AdversarialModelPerturbation(groups, epsilon=recipe.perturbation, base=base, **inner, **arguments)


def make_scaler(device: torch.device, recipe: Recipe) -> torch.amp.GradScaler:
    """A gradient scaler: at work in fp16, and one that does nothing elsewhere."""
    half = recipe.mixed_precision and autocast_dtype(device) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=half)


def autocast(device: torch.device, recipe: Recipe):
    """The context of the forward pass: mixed precision where the recipe wants it and the device has it."""
    dtype = autocast_dtype(device) if recipe.mixed_precision else None
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def convolutions(recipe: Recipe):
    """The context of every step: cuDNN's choices do not change from run to run, unless the recipe leaves them to it."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=not recipe.deterministic, deterministic=recipe.deterministic)


def train_epoch(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """One pass over the batches; returns the mean loss and the accuracy over images, as seen while training.

    The sums stay on the device until the pass ends: reading one each step would make the host wait for the device.
    """
    learner.called.train()
    count = 0
    loss_sum, correct = (torch.zeros((), device=learner.device, dtype=kind) for kind in (torch.float64, torch.int64))
    with convolutions(learner.recipe):
        for images, labels in batches:
            logits, loss = _step_in_parts(learner, images, labels)
            count += len(labels)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
    return loss_sum.item() / count, correct.item() / count


def _step_in_parts(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A step on the batch, in twice as many parts for as long as these do not fit into the device's memory."""
    while True:
        try:
            return step(learner, images, labels)
        except (RuntimeError, ValueError) as error:
            if ONE_VALUE in str(error):
                one = f"BatchNorm cannot learn from one image whose features are one pixel, as in this batch of {len(labels)}"
                raise UserError(f"{one}; choose a batch size that leaves no single image over, or larger images.") from error
            if not isinstance(error, torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
                raise
            if learner.parts >= len(labels):
                raise UserError("Not even one image fits into the device's memory; choose a smaller model or image.") from error
            learner.optimizer.zero_grad(set_to_none=True)
            learner.statistics.undo()
        torch.cuda.empty_cache()  # out here, where the failed step's own tensors are gone
        learner.parts *= 2
        too_large = f"A batch of {len(labels)} does not fit into memory"
        print(f"{too_large}: it is taken in {learner.parts} parts, their gradients added up.")


def step(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the logits and the loss at the weights before it.

    A batch in parts gives the gradient of the whole, but for BatchNorm, which sees each part as a batch of its own.
    """
    optimizer, recipe, scaler = learner.optimizer, learner.recipe, learner.scaler
    passes = []

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        counted = learner.statistics.moving(min(learner.parts, len(labels)), mend=scaler.is_enabled())
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


def gradients(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch to the parameters; returns its logits and loss."""
    scores, losses = [], []
    called = learner.called if learner.parts == 1 else learner.model  # a compiled program is of one batch size
    for image_part, label_part in zip(images.chunk(learner.parts), labels.chunk(learner.parts), strict=True):
        with autocast(images.device, learner.recipe):
            logits = called(image_part)
            loss = F.cross_entropy(logits, label_part, label_smoothing=learner.recipe.label_smoothing)
            loss = loss * (len(label_part) / len(labels))
        learner.scaler.scale(loss).backward()
        scores.append(logits.detach())
        losses.append(loss.detach())
    return torch.cat(scores), torch.stack(losses).sum()
