"""The moving average of a model's weights and BatchNorm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a model's floating-point state.

    After n steps, an update keeps `decay` of the average, or (1 + n) / (10 + n) if that is smaller, so that the random
    initial weights are soon forgotten (Polyak and Juditsky 1992; the ramp is TensorFlow's).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates, self.pairs = model, decay, 0, None
        self.values = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's current state."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*self.pairs, 1 - kept)

    def pair(self) -> None:
        """Pair the average's tensors with the model's, laid out alike: one launch updates all.

        To be called once, before the first update, when nothing moves the model any more and no step can fail for its memory.
        """
        present = self.model.state_dict(keep_vars=True)
        self.values = {name: torch.empty_like(present[name]).copy_(value) for name, value in self.values.items()}
        self.pairs = [[state[name] for name in self.values] for state in (self.values, present)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the average into the model, and restore the model's own state bit for bit afterwards."""
        present = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(present | self.values)
        try:
            yield
        finally:
            self.model.load_state_dict(present)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
