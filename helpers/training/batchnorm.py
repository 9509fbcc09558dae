"""BatchNorm's running statistics: moved once a step, by passes that count, and by no others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The running statistics of a model, which can be held, and put back as they were before a step."""

    def __init__(self, model: nn.Module):
        self.tracking = [layer for layer in model.modules() if getattr(layer, "track_running_stats", False)]
        self.layers = [layer for layer in self.tracking if layer.momentum]
        self.values = [value for layer in self.layers for value in (layer.running_mean, layer.running_var)]
        self.counters = [layer.num_batches_tracked for layer in self.layers]
        self.before = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep them as they are while the model, in training mode, still uses its batches' own.

        The second pass of a perturbed step shows the network a batch that it has seen already, at weights it will not keep.
        Counting it would move the statistics twice a step, and a perturbation of zero would no longer be plain SGD.
        """
        for layer in self.tracking:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in self.tracking:
                layer.track_running_stats = True

    @contextmanager
    def moving(self, passes: int, mend: bool) -> Iterator[None]:
        """Let so many passes move them; with `mend`, what is no longer finite is put back, as after an overflow in fp16.

        The layers' counters of batches, a launch each on a GPU, are raised together.
        """
        if not self.layers:
            yield
            return
        self.before = torch.cat(self.values), torch.stack(self.counters)
        for layer in self.layers:
            layer.num_batches_tracked = None
        try:
            yield
        finally:
            for layer, counter in zip(self.layers, self.counters, strict=True):
                layer.num_batches_tracked = counter
        torch._foreach_add_(self.counters, passes)
        if mend:
            after = torch.cat(self.values)
            self._put(torch.where(after.isfinite(), after, self.before[0]))

    def undo(self) -> None:
        """Put them back as they were before the step that has just failed."""
        if self.before:
            self._put(self.before[0])
            torch._foreach_copy_(self.counters, self.before[1].unbind())

    def _put(self, flat: Tensor) -> None:
        torch._foreach_copy_(self.values, flat.split([len(value) for value in self.values]))
