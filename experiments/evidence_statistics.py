"""How sure a difference between two rows is: over seeds, and over images.

Two things could make a difference luck. Another seed: rows are paired by it (the same images in the same order), and with S
differences d_s the 95 % interval is Student's,

    mean(d) +- t(S - 1) std(d) / sqrt(S)

Other images: the outcome of an image is its mean over the seeds, and the differences of paired outcomes over N images give

    mean(d) +- 1.96 std(d) / sqrt(N)

A difference counts as shown when neither interval includes zero. With one seed there is only the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""
Z95 = 1.96


@dataclass(frozen=True)
class Difference:
    """The mean, and half the 95 % interval over seeds (None: one seed) and over images; `digits` of them are printed."""

    mean: float
    over_seeds: float | None
    over_images: float
    digits: int = 2

    @property
    def excludes_zero(self) -> bool:
        """No interval that there is includes zero."""
        return abs(self.mean) > max(self.over_images, self.over_seeds or 0.0)

    @property
    def is_shown(self) -> bool:
        """Neither interval includes zero; one seed shows nothing, for another might say something else."""
        return self.over_seeds is not None and self.excludes_zero

    @property
    def is_below(self) -> bool:
        """Shown to be negative."""
        return self.is_shown and self.mean < 0

    def __str__(self) -> str:
        digits = self.digits
        seeds = "" if self.over_seeds is None else f" ± {self.over_seeds:.{digits}f} (seeds)"
        return f"{self.mean:+.{digits}f}{seeds} ± {self.over_images:.{digits}f} (images)"


def interval_over_seeds(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean of one value per seed, or None for one seed."""
    seeds = len(values)
    return None if seeds == 1 else float(T95[seeds - 2] * np.std(values, ddof=1) / np.sqrt(seeds))


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """By how many percentage points `first` is better: outcomes (seeds, images), bool, of the same seeds and images.

    Raises ValueError for other shapes.
    """
    return paired(100.0 * first, 100.0 * second, digits=2)


def paired(first: np.ndarray, second: np.ndarray, digits: int) -> Difference:
    """`first` minus `second`: numbers (seeds, images) of the same seeds and images.

    Raises ValueError for other shapes.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"outcomes have the shapes {first.shape} and {second.shape}; give two of (seeds, images)")
    differences = first.astype(np.float64) - second.astype(np.float64)
    by_image = differences.mean(0)
    over_images = float(Z95 * by_image.std(ddof=1) / np.sqrt(len(by_image)))
    return Difference(float(differences.mean()), interval_over_seeds(differences.mean(1)), over_images, digits)
