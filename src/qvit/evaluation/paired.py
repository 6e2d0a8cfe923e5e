"""paired(): by how much one model is better than another, from the outcomes of both on the same images.

Two models that are right on 77 % of 2,000 images each know their accuracy to about +- 1.8 points, so a difference of one
point seems to mean nothing. But they are right on mostly the same images. Only the images on which they differ carry
information, and the difference of paired outcomes d_i = first_i - second_i in {-1, 0, 1} has a far smaller spread:

    difference = mean(d)        interval = mean(d) +- 1.96 sqrt(var(d) / images)

The interval is that of a large number of images; where the two never differ it has no width, which says that a difference
was not seen, not that there is none (the true share of differing images is below 3 / images with 95 % confidence).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z95 = 1.96  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Paired:
    """difference and half_width of its 95 % interval, both in percentage points; images that were compared."""

    difference: float
    half_width: float
    images: int

    @property
    def is_tie(self) -> bool:
        """The interval includes zero."""
        return abs(self.difference) <= self.half_width


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """How much larger `first` is than `second`: outcomes (images,) of the same images in the same order, bool.

    Raises ValueError for another shape, or for fewer than two images.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"paired outcomes have the shapes {first.shape} and {second.shape}; give two vectors over the same images, at "
            "least two of them"
        )
    points = 100.0 * (first.astype(np.float64) - second.astype(np.float64))
    return Paired(float(points.mean()), float(Z95 * points.std(ddof=1) / np.sqrt(len(points))), len(points))
