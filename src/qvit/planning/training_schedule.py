"""How often each kind of step, evaluation and probe happens in a training, from its config alone.

A projection of a run multiplies these numbers with measured seconds (`plan`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bits.allocate import Lagrangian
from ..training.bit_schedule import PUBLISHED_PROBES
from ..training.fit_config import FitConfig
from .rehearsal import StepSeconds


@dataclass(frozen=True)
class Schedule:
    """What happens in a training, in numbers.

    lock_step    0 where no bits are learned
    probes       probed steps
    warm_up      batches that are probed before the first step
    evaluations  of the whole evaluation split
    """

    steps_per_epoch: int
    steps: int
    lock_step: int
    probes: int
    warm_up: int
    evaluations: int


def schedule_of(config: FitConfig, learned: bool, batches: int) -> Schedule:
    """What `fit` does with epochs of `batches` batches."""
    per_epoch, steps = config.steps(batches)
    lock_step = config.lock_step(steps) if learned else 0
    if isinstance(config.allocation, Lagrangian):
        probes, warm_up = -(-lock_step // config.allocation.every), config.allocation.warm_up
    else:
        probes, warm_up = min(PUBLISHED_PROBES, lock_step), 0
    evaluated = [epoch for epoch in range(1, steps // per_epoch + 1) if config.evaluates_after(epoch)]
    at_the_end = not evaluated or evaluated[-1] * per_epoch != steps
    return Schedule(
        per_epoch, steps, lock_step, probes, min(warm_up, batches) if learned else 0, len(evaluated) + at_the_end
    )


def seconds_of_training(schedule: Schedule, measured: StepSeconds, batch: float, accumulate: int) -> float:
    """All optimizer steps and what comes before them. Of the batches of a step the last alone is probed.

    measured    steps of one batch each
    batch       how much larger the real batch is than the measured one
    accumulate  batches of a real step
    """
    before = schedule.lock_step - schedule.probes
    after = schedule.steps - schedule.lock_step
    others = schedule.probes * (accumulate - 1) + before * accumulate
    batches = others * measured.plain + after * accumulate * measured.locked
    return batch * (batches + (schedule.probes + schedule.warm_up) * measured.probed) + measured.lock
