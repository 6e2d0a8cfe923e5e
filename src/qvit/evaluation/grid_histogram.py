"""How codes and values lie on a grid, in few numbers: weights in the report, activations in a run directory.

Everything is in steps, u = (value - offset) / scale, so that one axis serves all groups: codes are the whole numbers from
qmin to qmax, and what lies beyond them was clipped. Shares are percent per step, so a bar of codes and the density of the
values that were rounded to them have the same height where rounding did nothing but round.

A grid of more than BARS codes is drawn with bars of several neighbouring codes each.
"""

from __future__ import annotations

import numpy as np

BARS = 64


def codes_per_bar(bits: int) -> int:
    """Neighbouring codes that a bar stands for: 1, and more where the grid has more than BARS codes."""
    return max(1, 2**bits // BARS)


def bar_shares(counts: np.ndarray) -> np.ndarray:
    """Counts of all codes of a grid, integers (2^bits,) -> percent per step of each bar, float64 (at most BARS,)."""
    merged = codes_per_bar(len(counts).bit_length() - 1)
    return counts.reshape(-1, merged).sum(1) * (100 / merged / counts.sum())
