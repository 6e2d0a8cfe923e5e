"""What a person sees while training: one line, rewritten in place on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

SHOWN = {
    "loss": "loss",
    "top1": "top-1",
    "gbitops": "GBitOPs",
    "weight_bits": "W bits",
    "activation_bits": "A bits",
}


class Progress:
    """Counts images and time of this process; `show` prints the line. `top1` is the newest one, None before the first."""

    def __init__(self, total_steps: int, first_step: int, quiet: bool) -> None:
        self.total, self.quiet = total_steps, quiet
        self.last_step, self.made = first_step, 0  # steps made: more than the last one says where a run went back
        self.started = time.perf_counter()
        self.images = 0
        self.top1: float | None = None
        self.live = sys.stderr.isatty()
        self.last_print = 0.0

    def seconds(self) -> float:
        """Since this process started training."""
        return time.perf_counter() - self.started

    def images_per_second(self) -> float:
        """Since this process started training."""
        return self.images / max(self.seconds(), 1e-9)

    def show(self, step: int, record: dict[str, Any]) -> None:
        """Print the step, the time that is left, the speed and the numbers of SHOWN that are in `record`."""
        self.made += max(step - self.last_step, 0)
        self.last_step = step
        if self.quiet:
            return
        now = time.perf_counter()
        if not self.live and now - self.last_print < 10 and step < self.total:
            return
        self.last_print = now
        left = (now - self.started) / max(self.made, 1) * (self.total - step)
        known = record if self.top1 is None else {**record, "top1": self.top1}
        numbers = [f"{label} {known[key]:.4g}" for key, label in SHOWN.items() if key in known]
        parts = [f"step {step}/{self.total}", f"{_clock(left)} left", f"{self.images_per_second():.0f} img/s", *numbers]
        rewritten = self.live and step < self.total
        line = "  ".join(parts).ljust(self.width)[: self.width] if rewritten else self._wiped("  ".join(parts))
        print(line, end="\r" if rewritten else "\n", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            print(self._wiped(text), file=sys.stderr, flush=True)

    def _wiped(self, text: str) -> str:
        """On a terminal long enough to cover the line that is rewritten in place."""
        return text.ljust(self.width) if self.live else text

    @property
    def width(self) -> int:
        """Of a line that does not wrap: one that does cannot be rewritten."""
        return shutil.get_terminal_size().columns - 1


class Counter(Generic[Item]):
    """Iterates over `items` and says which one of `total` (0: unknown) it is at, once a second and on a terminal only."""

    def __init__(self, items: Iterable[Item], total: int, what: str, quiet: bool) -> None:
        self.items, self.of, self.what = items, f" of {total}" if total else "", what
        self.silent = quiet or not sys.stderr.isatty()

    def __iter__(self) -> Iterator[Item]:
        shown = 0.0
        for number, item in enumerate(self.items, start=1):
            if not self.silent and time.monotonic() - shown > 1:
                shown = time.monotonic()
                print(f"{self.what} {number}{self.of}", end="\r", file=sys.stderr, flush=True)
            yield item
        if shown:
            print(" " * (len(self.what) + 20), end="\r", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
