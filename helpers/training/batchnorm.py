"""BatchNorm's running statistics: moved once a step, by passes that count, and by no others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


class RunningStatistics:
    """The running statistics of a model, which can be put back as they were before a step."""

    def __init__(self, model: nn.Module):
        self.layers = [layer for layer in model.modules() if getattr(layer, "track_running_stats", False) and layer.momentum]
        self.values = [value for layer in self.layers for value in (layer.running_mean, layer.running_var)]
        self.counters = [layer.num_batches_tracked for layer in self.layers]
        self.before, self.counted = None, 0

    @contextmanager
    def moving(self, passes: int, mend: bool) -> Iterator[None]:
        """Let so many passes move them; with `mend`, what is no longer finite is put back, as after an overflow in fp16.

        The layers' counters of batches, a launch each on a GPU, are raised together.
        """
        self.before, self.counted = self._flat(), 0
        for layer in self.layers:
            layer.num_batches_tracked = None
        try:
            yield
        finally:
            for layer, counter in zip(self.layers, self.counters, strict=True):
                layer.num_batches_tracked = counter
        self._count(passes)
        if mend and self.layers:
            after = self._flat()
            self._put(torch.where(after.isfinite(), after, self.before))

    def undo(self) -> None:
        """Put them back as they were before the step that has just failed."""
        self._count(-self.counted)
        if self.before is not None:
            self._put(self.before)

    def _count(self, passes: int) -> None:
        self.counted += passes
        if self.counters:
            torch._foreach_add_(self.counters, passes)

    def _flat(self) -> Tensor | None:
        return torch.cat(self.values) if self.layers else None

    def _put(self, flat: Tensor) -> None:
        torch._foreach_copy_(self.values, flat.split([len(value) for value in self.values]))
