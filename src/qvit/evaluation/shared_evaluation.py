"""Evaluation shared among processes: every image counted once, outcomes in the order of the split.

Process p of P takes the batches p, p + P, p + 2 P, ... of an evaluation loader, whole, so that a batch holds the same images
as with one process and its logits are the same numbers. Nothing is padded: a process may have a batch less than another, or
none. Each row of outcomes (`evaluate`) carries where it belongs,

    number of its batch | place in the batch | row

then one gather brings the rows of all processes to all, and sorting by the first two columns restores the order.

Accelerate shards a loader of a map-style data set, so a process decodes its own batches only. Anything else (a list, a stream)
is iterated over whole, and what belongs to the other processes is passed over: it must give the same batches everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather, pad_across_processes
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import qvit_runtime

from ..system.processes import mean_over_processes, process_state
from .evaluate import NO_ROWS, Batches, Evaluation, outcome_rows, summary


@dataclass(frozen=True)
class EveryNth:
    """Items `start`, `start + step`, ... of something that can be iterated over again."""

    items: Batches
    start: int
    step: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self.items, self.start, None, self.step)


def share_of(batches: Batches) -> Batches:
    """The batches that this process evaluates; can be iterated over as often as `batches` can."""
    state = process_state()
    if state.num_processes == 1:
        return batches
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        return prepare_data_loader(
            batches, num_processes=state.num_processes, process_index=state.process_index, even_batches=False
        )
    return EveryNth(batches, state.process_index, state.num_processes)


def evaluate_together(
    model: nn.Module | qvit_runtime.Program,
    share: Batches,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """`evaluate` on the shares of all processes; every process must call it, and gets the outcome of the whole split.

    share     from `share_of`
    progress  called with the number of images that this process has done

    Raises ValueError when there are no images, FloatingPointError, in all processes, when logits of one are not finite.
    """
    state = process_state()
    found: list[Tensor] = []
    failure: FloatingPointError | None = None
    try:
        found = outcome_rows(model, share, progress)
    except FloatingPointError as error:
        failure = error  # the others are waiting for the rows of this process, or soon will be
    if float(mean_over_processes(torch.tensor([float(failure is not None)]))):
        raise failure or FloatingPointError("the model gave NaN or infinite logits in the images of another process")
    if state.num_processes == 1:
        return summary(torch.cat([NO_ROWS, *found]))
    first, step = state.process_index, state.num_processes
    mine = [_numbered(rows, first + turn * step) for turn, rows in enumerate(found)]
    return summary(_in_order(_all_rows(torch.cat([_numbered(NO_ROWS, 0), *mine]))))


def _numbered(rows: Tensor, batch: int) -> Tensor:
    """Rows (B, 7) of a batch with its number and their place in front, (B, 9)."""
    places = torch.arange(len(rows))
    return torch.cat([torch.stack([torch.full_like(places, batch), places], 1), rows], 1)


_PAD = -1  # as the number of a batch


def _all_rows(mine: Tensor) -> Tensor:
    """Rows of all processes, which may have different numbers of them."""
    padded: Any = pad_across_processes(mine.to(process_state().device), pad_index=_PAD)
    rows = gather(padded).cpu()
    return rows[rows[:, 0] != _PAD]


def _in_order(rows: Tensor) -> Tensor:
    """Sorted by batch and place, without these two columns."""
    longest = int(rows[:, 1].max()) + 1 if len(rows) else 1
    return rows[torch.argsort(rows[:, 0] * longest + rows[:, 1]), 2:]
