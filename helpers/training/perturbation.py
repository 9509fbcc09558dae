"""The step: `AdversarialModelPerturbation`, which takes the gradient where a small change of the weights hurts most."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from helpers.runtime import UserError


class AdversarialModelPerturbation(torch.optim.Optimizer):
    """Step along the gradient taken at the worst weights near the present ones.

    Each step climbs: from the weights θ, `inner_steps` times, every parameter tensor's perturbation Δ grows by
    `inner_lr` times its gradient at θ + Δ and is clipped to an L2 ball of radius `epsilon`. Then the base optimiser steps
    from θ with the gradient at θ + Δ. A step costs `inner_steps` + 1 gradients.

    The weights are put back from a copy before the base optimiser moves them, so nothing of Δ stays, to the last bit.
    The base optimiser shares the parameter groups and the state, so schedulers and `state_dict` see one optimiser.

    Source: Zheng, Zhang and Mao, "Regularizing Neural Networks via Adversarial Model Perturbation", CVPR 2021,
    algorithm 1; the ball is each tensor's own, as in the authors' code.

    Args:
        params: as any optimiser takes them; a group may have its own `epsilon` and `inner_lr`.
        lr: the base optimiser's learning rate.
        epsilon: radius of the ball, in units of the weights.
        inner_lr: how far a gradient moves the perturbation.
        inner_steps: how often it moves before the step.
        base: class of the optimiser that moves the weights; `base_args` are its other arguments.

    Raises:
        UserError: `epsilon` or `inner_lr` is negative, or `inner_steps` is not a whole number of at least 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        epsilon: float,
        inner_lr: float = 1.0,
        inner_steps: int = 1,
        base: type[torch.optim.Optimizer] = torch.optim.SGD,
        **base_args,
    ):
        if not isinstance(inner_steps, int) or inner_steps < 1:
            raise UserError(f"inner_steps is {inner_steps}; it must be a whole number of at least 1.")
        super().__init__(params, {"lr": lr, "epsilon": epsilon, "inner_lr": inner_lr})
        self.inner_steps = inner_steps
        self.base = base(self.param_groups, lr=lr, **base_args)
        self.defaults = self.base.defaults | self.defaults
        self._share()

    def add_param_group(self, param_group: dict) -> None:
        """Add a group of parameters, as any optimiser does; its `epsilon` and `inner_lr` cannot be negative."""
        for name in ("epsilon", "inner_lr"):
            value = param_group.get(name, self.defaults[name])
            if not value >= 0:
                raise UserError(f"{name} is {value}; it cannot be negative.")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state, the base optimiser's included."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """One step; returns the closure's first loss, the one at the unperturbed weights.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` on it (scaled, if there is a scaler) and
                returns it unscaled. It is called `inner_steps` + 1 times.
            scaler: the gradient scaler of fp16 training; the caller calls its `update` afterwards. When a gradient
                overflows, in the inner pass or the last one, the weights stay as they were and the scaler lowers its scale.

        Raises:
            UserError: there is no closure.
        """
        if closure is None:
            raise UserError("AdversarialModelPerturbation.step needs a closure that computes the loss and its gradients.")
        closure = torch.enable_grad()(closure)
        loss = closure()
        moved = [
            (parameter, parameter.clone(), torch.zeros_like(parameter), group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        try:
            for _ in range(self.inner_steps):
                if scaler is not None and not all(parameter.grad.isfinite().all() for parameter, *_ in moved):
                    break  # the scaler finds the overflow in these very gradients and skips the step
                for parameter, weights, delta, group in moved:
                    gradient = parameter.grad if scaler is None else parameter.grad / scaler.get_scale()
                    delta.add_(gradient, alpha=group["inner_lr"])
                    delta.mul_((group["epsilon"] / (delta.norm() + 1e-12)).clamp(max=1))
                    torch.add(weights, delta, out=parameter)
                closure()
        finally:
            for parameter, weights, *_ in moved:
                parameter.copy_(weights)
        if scaler is None:
            self.base.step()
        else:
            scaler.step(self.base)
        return loss


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are while the model, in training mode, still uses its batches' own.

    The second pass of a perturbed step shows the network a batch that it has seen already, at weights it will not keep.
    Counting it would move the statistics twice a step, the second time toward another network, and a perturbation of
    zero would no longer be plain SGD.
    """
    layers = [layer for layer in model.modules() if getattr(layer, "track_running_stats", False)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
