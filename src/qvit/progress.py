"""What a person sees while training: one line, rewritten in place on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Counts images and time of this process; `show` prints the line."""

    def __init__(self, total_steps: int, first_step: int, quiet: bool) -> None:
        self.total, self.first, self.quiet = total_steps, first_step, quiet
        self.started = time.perf_counter()
        self.images = 0
        self.live = sys.stderr.isatty()
        self.last_print = 0.0

    def images_per_second(self) -> float:
        """Since this process started training."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def show(self, step: int, epoch: float, record: dict[str, Any]) -> None:
        """Print step, epoch, the numbers in `record`, speed and the time that is left."""
        if self.quiet:
            return
        now = time.perf_counter()
        if not self.live and now - self.last_print < 10 and step < self.total:
            return
        self.last_print = now
        done = max(step - self.first, 1)
        left = (now - self.started) / done * (self.total - step)
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float))
        line = f"step {step}/{self.total}  epoch {epoch:.2f}  {numbers}  {self.images_per_second():.0f} img/s  {_clock(left)} left"
        end = "\r" if self.live and step < self.total else "\n"
        print(line.ljust(118), end=end, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            print(text.ljust(118) if self.live else text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
