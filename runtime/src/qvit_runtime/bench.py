"""bench: how long a program takes, told so that two numbers can be compared.

Short runs on a shared machine are noisy upwards only: something else ran, never less work was done. So each number
comes with the whole distribution (minimum, quartiles, median), warm-up is not counted, and the time of each step is the
median over its own repeats.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from . import program as p
from .engine import Engine, StepTime


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of an engine, over `repeats` calls."""

    path: str
    threads: int
    batch: int
    repeats: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float

    @property
    def spread(self) -> float:
        """Interquartile range relative to the median: below 0.05 the machine was quiet."""
        return (self.upper_quartile - self.lower_quartile) / self.median


def random_images(program: p.Program, batch: int, seed: int = 0) -> np.ndarray:
    """Gaussian noise in the shape of the program's input: times do not depend on what is in an image."""
    shape = (batch, *program.buffers[program.input].shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measure(engine: Engine, images: np.ndarray, repeats: int = 30, warm_up: int = 3) -> Timing:
    """Call the engine `repeats` times on the same images."""
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it takes at least 1")
    for _ in range(warm_up):
        engine(images)
    seconds = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter()
        engine(images)
        seconds[index] = time.perf_counter() - start
    low, quarter, half, three_quarters = (float(q) for q in np.quantile(seconds, (0, 0.25, 0.5, 0.75)))
    return Timing(engine.path, engine.threads, len(images), repeats, low, quarter, half, three_quarters)


def step_times(engine: Engine, images: np.ndarray, repeats: int = 10) -> list[StepTime]:
    """Time of every step, the median over the repeats, in order of execution; seconds summed over threads."""
    runs = [engine.profile(images) for _ in range(repeats)]
    return [
        StepTime(same[0].name, same[0].ops, float(np.median([t.seconds for t in same])))
        for same in zip(*runs, strict=True)
    ]


def by_name(times: list[StepTime]) -> list[tuple[str, int, float]]:
    """(name, how many steps have it, their seconds), the most expensive first."""
    totals: dict[str, tuple[int, float]] = {}
    for t in times:
        count, seconds = totals.get(t.name, (0, 0.0))
        totals[t.name] = (count + 1, seconds + t.seconds)
    return sorted(((name, *total) for name, total in totals.items()), key=lambda row: -row[2])
