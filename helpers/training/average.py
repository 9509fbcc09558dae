"""The moving average of a model's weights and BatchNorm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a model's floating-point state; counters are copied from the model.

    After n steps, an update keeps `decay` of the average, or (1 + n) / (10 + n) if that is smaller, so that the random
    initial weights are soon forgotten (Polyak and Juditsky 1992; the ramp is TensorFlow's).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates, self.pairs = model, decay, 0, None
        self.values = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's current state."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floating, others = self.pairs
        torch._foreach_lerp_(*floating, 1 - kept)
        if others[0]:
            torch._foreach_copy_(*others)

    def pair(self) -> None:
        """Pair the average's tensors with the model's, floating-point ones and others, laid out alike: one launch takes all.

        To be called once, before the first update, when nothing moves the model any more and no step can fail for its memory.
        """
        present = self.model.state_dict(keep_vars=True)
        self.values = {name: torch.empty_like(value).copy_(self.values[name]) for name, value in present.items()}
        floating = [name for name, value in present.items() if value.is_floating_point()]
        others = [name for name in present if name not in floating]
        self.pairs = [[[state[name] for name in names] for state in (self.values, present)] for names in (floating, others)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the average into the model, and restore the model's own state bit for bit afterwards."""
        present = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.values)
        try:
            yield
        finally:
            self.model.load_state_dict(present)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)
