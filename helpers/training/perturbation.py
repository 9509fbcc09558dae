"""Perturbed steps: the gradient is taken at weights near the present ones, where a small change hurts most."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class AdversarialModelPerturbation(torch.optim.Optimizer):
    """Step along the gradient taken at the worst weights near the present ones.

    Each step climbs: from the weights θ, `inner_steps` times, every parameter tensor's perturbation Δ grows by
    `inner_lr` times its gradient at θ + Δ and is clipped to an L2 ball of radius `epsilon`. Then the base optimiser steps
    from θ with the gradient at θ + Δ. A step costs `inner_steps` + 1 gradients.

    The weights are put back from a copy before the base optimiser moves them, so nothing of Δ stays, to the last bit.
    The base optimiser shares the parameter groups and the state, so schedulers and `state_dict` see one optimiser.

    Source: Zheng, Zhang and Mao, "Regularizing Neural Networks via Adversarial Model Perturbation", CVPR 2021,
    algorithm 1; the ball is each tensor's own and every pass clips the gradient's norm, as in the authors' code.

    Args:
        params: as any optimiser takes them; a group may have its own `epsilon` and `inner_lr`.
        lr: the base optimiser's learning rate.
        epsilon: radius of the ball, in units of the weights.
        inner_lr: how far a gradient moves the perturbation.
        inner_steps: how often it moves before the step.
        base: class of the optimiser that moves the weights; `base_args` are its other arguments, and `clip_norm`, to which
            the L2 norm of all gradients together is cut in every pass (None: not at all).

    Raises:
        ValueError: `epsilon` or `inner_lr` is negative, or `inner_steps` is not a whole number of at least 1.
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
            raise ValueError(f"inner_steps is {inner_steps}; it must be a whole number of at least 1.")
        super().__init__(params, {"lr": lr, "epsilon": epsilon, "inner_lr": inner_lr})
        self.inner_steps, self.clip_norm = inner_steps, base_args.pop("clip_norm", None)
        self.base = base(self.param_groups, lr=lr, **base_args)
        self.defaults = self.base.defaults | self.defaults
        self._share()

    def add_param_group(self, param_group: dict) -> None:
        """Add a group of parameters, as any optimiser does; its `epsilon` and `inner_lr` cannot be negative."""
        for name in ("epsilon", "inner_lr"):
            value = param_group.get(name, self.defaults[name])
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it cannot be negative.")
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
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError("AdversarialModelPerturbation.step needs a closure that computes the loss and its gradients.")
        closure = torch.enable_grad()(closure)
        loss = closure()
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        parameters = [parameter for group in groups for parameter in group]
        weights = copies(parameters)
        perturbations = [_Perturbation(members) for members in groups]
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
        try:
            for _ in range(self.inner_steps):
                gradients = [parameter.grad for parameter in parameters]
                if scale is not None:
                    gradients = torch._foreach_div(gradients, scale)
                    if not total_norm(gradients).isfinite():
                        break  # the scaler finds the overflow in these very gradients and skips the step
                if self.clip_norm is not None:
                    gradients = torch._foreach_mul(gradients, clipping(gradients, self.clip_norm))
                torch._foreach_copy_(parameters, weights)
                rest = iter(gradients)
                for perturbation, group in zip(perturbations, self.param_groups, strict=True):
                    perturbation.grow([next(rest) for _ in perturbation.members], group["inner_lr"], group["epsilon"])
                closure()
        finally:
            torch._foreach_copy_(parameters, weights)
        step_clipped(self.base, scaler, self.clip_norm)
        return loss


class _Perturbation:
    """The perturbation of one group's parameters, in one piece of memory, so that all of it is scaled at once."""

    def __init__(self, members: list[Tensor]):
        self.members, self.sizes = members, [parameter.numel() for parameter in members]
        self.flat = torch.zeros(sum(self.sizes), dtype=members[0].dtype, device=members[0].device) if members else None
        parts = self.flat.split(self.sizes) if members else []
        # In the strides of the parameters, which may be channels-last: foreach falls back to one launch a tensor otherwise.
        self.deltas = [
            part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
            for part, parameter in zip(parts, members, strict=True)
        ]

    def grow(self, gradients: list[Tensor], inner_lr: float, epsilon: float) -> None:
        """Grow along the gradients, clip each tensor's part to its ball, and add it to the unperturbed members."""
        if not self.members:
            return
        torch._foreach_add_(self.deltas, gradients, alpha=inner_lr)
        norms = torch.stack(torch._foreach_norm(self.deltas))
        shrink = (epsilon / (norms + 1e-12)).clamp(max=1)
        self.flat.mul_(torch.cat([each.expand(size) for each, size in zip(shrink.unbind(), self.sizes, strict=True)]))
        torch._foreach_add_(self.members, self.deltas)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies, made in one launch where `clone` would take one a tensor: a product with 1 is exact."""
    return torch._foreach_mul(tensors, 1.0)


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def clipping(gradients: list[Tensor], clip_norm: float) -> Tensor:
    """The factor of at most 1 that cuts the norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` has it."""
    return (clip_norm / (total_norm(gradients) + 1e-6)).clamp(max=1)


def step_clipped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, clip_norm: float | None) -> None:
    """Step with the gradients at hand, their norm clipped after they are unscaled; an overflow skips the step."""
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, clipping(gradients, clip_norm))
    optimizer.step() if scaler is None else scaler.step(optimizer)


@contextmanager
def along_momentum(optimizer: torch.optim.Optimizer, length: float | None) -> Iterator[None]:
    """Hold the weights moved against the momentum by this L2 length, and put them back bit for bit; None: hold them still.

    The gradient taken meanwhile is that of momentum-based sharpness-aware minimisation; the first step has no momentum yet.

    Source: Becker, Altrock and Risse, "Momentum-SAM", arXiv 2401.12033, algorithm 1.
    """
    buffers = {p: state.get("momentum_buffer") for p, state in optimizer.state.items()}
    parameters = [p for p, buffer in buffers.items() if buffer is not None] if length else []
    if not parameters:
        yield
        return
    momenta = [buffers[parameter] for parameter in parameters]
    with torch.no_grad():
        weights = copies(parameters)
        torch._foreach_add_(parameters, torch._foreach_mul(momenta, -length / (total_norm(momenta) + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
