"""Histogram: the codes of one group on its grid and the values that were rounded to them, as `chart_grids` draws them.

Weights come out of the artifact and the trained module (`artifact`), activations out of activations.json (`activations`).
Both are in steps of the scale, see `grid_histogram`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """The density of values: percent per step in bins of `width` steps from `low` on."""

    low: float
    width: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Histogram:
    """One group of a tensor.

    group, groups  which group of how many; groups is 0 for all channels of one bit-width
    bits           of the codes
    lowest         level of the smallest code, in steps: the code, but for weights without a zero level (-1.5 at 2 bits)
    codes          percent per step of each bar, over the whole grid, `grid_histogram.codes_per_bar` codes each
    values         of what was rounded, None where it is not known
    scale          of a weight: one step, the mean where there are several; None for an activation
    clipped        of an activation: percent of the values below the grid and above it; None where not known
    """

    tensor: str
    group: int
    groups: int
    bits: int
    lowest: float
    codes: tuple[float, ...]
    values: Bins | None
    scale: float | None = None
    clipped: tuple[float, float] | None = None
