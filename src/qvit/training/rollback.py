"""The way back when a loss or gradient is not finite: once, to the newest checkpoint, and on at a lower learning rate.

A run that nobody watches should survive one divergence and not hide two. Going back changes nothing but the rates: data
order, augmentation and dropout are functions of the step, so the same steps are made again with smaller updates. The
lower rate and the fact that the way back is used up are saved state (`lr_scale` of the optimizer's groups, `rollbacks`),
so a resume, before or after the next checkpoint, makes the same steps: it finds either the mark, or the same divergence.

Until the first checkpoint exists, or where a run has no directory, the state at its start is kept in memory.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..system.runs import Run
from .optimizer import scale_rates
from .state import TrainingState


class Rollback:
    """The way back of one run.

    state   what is restored
    run     its directory, or None
    factor  of the learning rates afterwards; 0: there is no way back
    """

    def __init__(self, state: TrainingState, run: Run | None, accelerator: Accelerator, factor: float) -> None:
        self.state, self.run, self.accelerator, self.factor = state, run, accelerator, factor
        self._start: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    @property
    def is_open(self) -> bool:
        """It has not been used yet."""
        return self.factor > 0 and self.state.rollbacks == 0

    def keep_start(self) -> None:
        """Keep the state of now, before the first step, in memory."""
        if self.is_open:
            self._start = self.state.copied()

    def forget_start(self) -> None:
        """A checkpoint has been written, which is nearer."""
        self._start = None

    def take(self) -> int:
        """Restore; returns the step to go on from. Raises CheckpointError when no checkpoint can be read."""
        step = 0
        if self._start is not None:
            self.state.load(*self._start)
            self._start = None
        else:
            assert self.run is not None
            step = self.state.load_newest(self.run, self.accelerator)
        self.state.rollbacks += 1
        scale_rates(self.state.optimizer, self.factor)
        return step
