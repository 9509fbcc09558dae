"""Perturbed steps: the gradient is taken at weights near the current ones, where a small change hurts most."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.optimizer import ParamsT


class AdversarialModelPerturbation(torch.optim.Optimizer):
    """Step along the gradient taken at the worst weights near the current ones, at a cost of `inner_steps` + 1 gradients.

    From the weights θ, `inner_steps` times, every parameter tensor's perturbation Δ grows by `inner_lr` times its gradient
    at θ + Δ and is clipped to an L2 ball of radius `epsilon`. Then the base optimiser steps from θ with the gradient at
    θ + Δ. It shares the parameter groups and the state, so schedulers and `state_dict` see one optimiser.

    Source: Zheng, Zhang and Mao, "Regularizing Neural Networks via Adversarial Model Perturbation", CVPR 2021,
    algorithm 1; each tensor has its own ball and every pass clips the gradient's norm, as in the authors' code.

    `base` is the class of the optimiser that moves the weights; `base_args` are its other arguments and `clip_norm`, the
    maximum L2 norm of all gradients together in every pass. A group may have its own `epsilon` and `inner_lr`.
    A negative `epsilon` or `inner_lr`, or an `inner_steps` that is not a whole number of at least 1, is a ValueError.
    """

    def __init__(
        self, params: ParamsT, lr: float, epsilon: float, inner_lr=1.0, inner_steps=1, base=torch.optim.SGD, **base_args
    ):
        if not isinstance(inner_steps, int) or inner_steps < 1:
            raise ValueError(f"inner_steps is {inner_steps}; it must be a whole number of at least 1.")
        super().__init__(params, {"lr": lr, "epsilon": epsilon, "inner_lr": inner_lr})
        self.inner_steps, self.clip_norm = inner_steps, base_args.pop("clip_norm", None)
        self.base = base(self.param_groups, lr=lr, **base_args)
        self.defaults = self.base.defaults | self.defaults
        self._share()

    def add_param_group(self, param_group: dict) -> None:
        for name in ("epsilon", "inner_lr"):
            value = param_group.get(name, self.defaults[name])
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it cannot be negative.")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """One step; returns the closure's first loss, the one at the unperturbed weights.

        The closure clears the gradients, computes the loss, calls `backward` on it (scaled, if there is a scaler) and returns
        it unscaled. The caller calls the scaler's `update` afterwards. When a gradient overflows, in the inner pass or the
        last one, the weights stay as they were and the scaler lowers its scale. A missing closure is a `ValueError`.
        """
        if closure is None:
            raise ValueError("AdversarialModelPerturbation.step needs a closure that computes the loss and its gradients.")
        closure = torch.enable_grad()(closure)
        loss = closure()
        trained = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        perturbations = [_Perturbation(group) for group in trained]
        parameters = [parameter for perturbation in perturbations for parameter in perturbation.members]
        weights = torch._foreach_mul(parameters, 1.0)  # a copy in one launch: a product with 1 is exact
        one = parameters[0].new_ones(()) if scaler is not None and scaler.is_enabled() else None
        try:
            for _ in range(self.inner_steps):
                if one is not None:
                    # Divided by a tensor, so that the host need not wait. Gradients that overflowed make the perturbed weights
                    # NaN, and with them the next gradients, so that the scaler skips the step.
                    torch._foreach_div_([parameter.grad for parameter in parameters], scaler.scale(one))
                if self.clip_norm is not None:
                    clip_grad_norm_(parameters, self.clip_norm, foreach=True)
                torch._foreach_copy_(parameters, weights)
                for perturbation in perturbations:
                    perturbation.grow()
                closure()
        finally:
            torch._foreach_copy_(parameters, weights)  # from a copy, so that not a bit of Δ remains
        step_clipped(self.base, scaler, self.clip_norm)
        return loss


class _Perturbation:
    """The perturbation of one group's parameters, in one flat buffer, so that all of it is scaled at once."""

    def __init__(self, group: dict):
        self.members, self.group = [p for p in group["params"] if p.grad is not None], group
        self.sizes = [parameter.numel() for parameter in self.members]
        self.flat = self.members[0].new_zeros(sum(self.sizes))
        # With the parameters' strides, which may be channels-last; otherwise foreach falls back to one launch per tensor.
        self.deltas = [
            part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
            for part, parameter in zip(self.flat.split(self.sizes), self.members, strict=True)
        ]

    def grow(self) -> None:
        """Grow along the gradients, clip each tensor's part to its ball, and add it to the unperturbed members."""
        torch._foreach_add_(self.deltas, [p.grad for p in self.members], alpha=self.group["inner_lr"])
        norms = torch.stack(torch._foreach_norm(self.deltas))
        shrink = (self.group["epsilon"] / (norms + 1e-12)).clamp(max=1)
        self.flat.mul_(torch.cat([each.expand(size) for each, size in zip(shrink.unbind(), self.sizes, strict=True)]))
        torch._foreach_add_(self.members, self.deltas)


def step_clipped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, clip_norm: float | None) -> None:
    """Step with the current gradients, unscaled and then clipped; an overflow skips the step."""
    scaler = scaler or torch.amp.GradScaler(enabled=False)  # a disabled one only steps
    if scaler.is_enabled():
        # Fused SGD allocates its momenta uninitialised and fills them in its first step; if that is skipped, they stay so.
        for group in optimizer.param_groups:
            for p in group["params"]:
                if group.get("momentum") and p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip_norm, foreach=True)
    scaler.step(optimizer)


@contextmanager
def along_momentum(optimizer: torch.optim.Optimizer, length: float | None) -> Iterator[None]:
    """Move the weights this L2 length ahead, where momentum is about to take them, then restore them bit for bit; None: stay.

    Source: Becker, Altrock and Risse, "Momentum-SAM", arXiv 2401.12033, algorithm 1; the first step has no momentum yet.
    """
    buffers = {p: state["momentum_buffer"] for p, state in optimizer.state.items() if state.get("momentum_buffer") is not None}
    if not length or not buffers:
        yield
        return
    parameters, momenta = list(buffers), list(buffers.values())
    with torch.no_grad():
        weights = torch._foreach_mul(parameters, 1.0)
        torch._foreach_add_(parameters, torch._foreach_mul(momenta, -length / (get_total_norm(momenta, foreach=True) + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
