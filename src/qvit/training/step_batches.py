"""StepBatches: which batches make up an optimizer step, from any step of any epoch on.

An order of `open_data` jumps to a batch; any other loader is iterated anew each epoch, its shuffling seeded by the epoch, and
batches before the start are read and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import DataError, EpochOrder, SeededStream, StreamLoader, epoch_batches
from ..data.seeds import seed_of

Batch = tuple[Tensor, Tensor]


class StepBatches:
    """Batches of a training loader, by epoch and step.

    loader      as Accelerate gave it back
    order       `open_data(...).order`, or None
    per_epoch   batches of an epoch, over all processes together
    accumulate  batches of a step
    seed        of the shuffling of a loader without an order

    Raises ValueError when an epoch has not enough batches for a step.
    """

    def __init__(
        self, loader: Any, order: EpochOrder | SeededStream | None, per_epoch: int, accumulate: int, seed: int
    ) -> None:
        self.loader, self.order, self.seed = loader, order, seed
        self.per_epoch, self.accumulate = per_epoch, accumulate
        self.steps_per_epoch = per_epoch // accumulate
        if not self.steps_per_epoch:
            raise ValueError(f"an epoch has {per_epoch} batches, fewer than fit.accumulate {accumulate}")

    def steps(self, epoch: int, within: int) -> Iterator[list[Batch]]:
        """Lists of `accumulate` batches, from optimizer step `within` of the epoch on."""
        batches = iter(self.batches(epoch, within * self.accumulate))
        for _ in range(within, self.steps_per_epoch):
            group = list(islice(batches, self.accumulate))
            if len(group) < self.accumulate:
                raise DataError(
                    f"epoch {epoch} ended before its {self.per_epoch} batches; if the data is a stream, correct the number "
                    "of images in its split"
                )
            yield group

    def batches(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        """Batches of an epoch from number `start` on."""
        if self.order is not None:
            return epoch_batches(self.loader, self.order, epoch, start)
        torch.manual_seed(seed_of("epoch", self.seed, epoch))  # a user's loader shuffles from the global state
        return islice(self.loader, start, None)


def batches_in_epoch(train: Any, order: EpochOrder | SeededStream | None) -> int:
    """Batches of an epoch, over all processes together. Raises ValueError for a loader that has no length."""
    if isinstance(order, EpochOrder):
        return len(order)
    if order is not None and order.batches is not None:
        return order.batches
    try:
        return len(train)
    except TypeError as error:
        raise ValueError(
            "the training loader has no length, so an epoch has no end: give its data set a __len__, or pass "
            "open_data(...).order"
        ) from error


def check_divides(train: DataLoader | StreamLoader, order: EpochOrder | SeededStream | None, processes: int) -> None:
    """Raise ValueError when a batch cannot be shared out in equal parts, of which the mean is the mean of the batch."""
    size = order.batch_size if isinstance(order, EpochOrder) else getattr(train, "batch_size", None)
    if size is not None and size % processes:
        below = size - size % processes
        allowed = " or ".join(str(n) for n in (below, below + processes) if n)
        raise ValueError(
            f"a batch of {size} images does not divide among {processes} processes, which train on equal parts of it; set "
            f"data.batch_size to {allowed}, or start another number of processes"
        )
