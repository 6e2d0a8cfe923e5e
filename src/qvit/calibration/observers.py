"""What is kept of an activation that streams by, until its scales are fitted: a Histogram, or its Extremes.

Activations of a calibration set do not fit in memory. `Histogram` keeps BINS counts and sums per group over a range that
doubles when a larger value arrives: neighbouring bins are added in pairs, nothing is lost but resolution. The mean of each
bin stands for its elements. (The authors' code, arXiv 2201.07703, keeps the tensors of one batch of the validation set.)
`Extremes` keeps the smallest and the largest value per group, over all batches or as a moving average of the batches.

Either gives what it saw as `Points`, which is what scales are fitted to (`least_squares`, `range_observers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizers.fake_quantize import grouped
from .least_squares import Points, points

BINS = 16384
TINIEST = 1e-30  # a group below it counts as zero: its bins would be narrower than a float can tell apart


def elements_per_group(x: Tensor, groups: int, axis: int) -> Tensor:
    """x, whose `axis` divides into the groups, as float32 (groups, elements) on the CPU; NaN and infinity are refused."""
    view = grouped(x.detach().float(), groups, axis).transpose(0, 1).reshape(groups, -1).cpu()
    if not torch.isfinite(view).all():
        raise FloatingPointError("calibration met NaN or infinity in an activation: the float model is not finite here")
    return view


class Histogram:
    """Counts and sums per group over [-limit, limit), (groups, BINS) float64 each."""

    def __init__(self, groups: int, axis: int) -> None:
        self.groups, self.axis = groups, axis
        self.limit = torch.zeros(groups, dtype=torch.float64)
        self.count = torch.zeros(groups, BINS, dtype=torch.float64)
        self.sum = torch.zeros(groups, BINS, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the elements of x (any shape whose `axis` divides into the groups)."""
        view = elements_per_group(x, self.groups, self.axis)
        largest = view.abs().amax(1).double() * (1 + 1e-9)
        largest[largest < TINIEST] = 0
        self._grow(largest)
        for group in range(self.groups):
            limit = float(self.limit[group])
            if limit == 0:  # nothing but zeros so far
                self.count[group, BINS // 2] += view.shape[1]
                continue
            index = ((view[group] + limit) * (BINS / (2 * limit))).long().clamp_(0, BINS - 1)
            self.count[group] += torch.bincount(index, minlength=BINS)
            self.sum[group] += torch.bincount(index, weights=view[group].double(), minlength=BINS)

    def _grow(self, largest: Tensor) -> None:
        fresh = self.limit == 0
        self.limit[fresh] = largest[fresh]
        for group in torch.nonzero(largest > self.limit).flatten().tolist():
            while self.limit[group] < largest[group]:
                self.limit[group] *= 2
                for table in (self.count, self.sum):
                    pairs = table[group].view(BINS // 2, 2).sum(1)
                    table[group] = 0
                    table[group, BINS // 4 : BINS // 4 + BINS // 2] = pairs

    def points(self) -> Points:
        """What was seen: bin means, weighted by bin counts."""
        return points(self.sum / self.count.clamp(min=1), self.count)


class Extremes:
    """Smallest and largest value per group, `low` and `high`, float64 (groups,) each.

    momentum  None: over everything seen. Otherwise the first batch sets both, and then v <- v + momentum (new - v).
    """

    def __init__(self, groups: int, axis: int, momentum: float | None = None) -> None:
        self.groups, self.axis, self.momentum = groups, axis, momentum
        self.low = torch.full((groups,), torch.inf, dtype=torch.float64)
        self.high = torch.full((groups,), -torch.inf, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch (any shape whose `axis` divides into the groups)."""
        view = elements_per_group(x, self.groups, self.axis).double()
        low, high = view.amin(1), view.amax(1)
        if self.momentum is None or torch.isinf(self.low).any():
            self.low, self.high = self.low.minimum(low), self.high.maximum(high)
        else:
            self.low = self.low + self.momentum * (low - self.low)
            self.high = self.high + self.momentum * (high - self.high)

    def points(self) -> Points:
        """Two points per group."""
        return points(torch.stack([self.low, self.high], 1))
