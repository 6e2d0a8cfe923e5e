"""The scale (and offset) of a grid that is closest to given data in the least-squares sense.

The data are points v with weights w: the elements of a weight tensor (w = 1) or the bins of a histogram. Wanted is

    min over s of  E(s) = sum w (v - s q)^2,   q = round(clamp(v / s, qmin, qmax))

(arXiv 2201.07703, initialisation; the authors alternate s = <v, q> / <q, q> and q from s = max|v| / qmax on). The
alternation stops at the nearest local minimum, and a fine grid has one every few percent. So here the minimum is searched:
a geometric ladder of scales, two finer ladders around its best step, and alternation to the bottom of that valley.

Searching needs a cheap E. With sorted points and running sums of w, w v and w v^2, the points of one code are a slice:

    E(s) = sum w v^2 - 2 s sum_q q S1(q) + s^2 sum_q q^2 S0(q)        S0, S1 = sums of w and w v between two thresholds

which costs 2^n binary searches instead of a pass over the data. With an offset o, v - o takes the place of v, and the pair
of one set of codes solves the 2 x 2 normal equations at once, s = cov(v, q) / var(q), o = mean(v) - s mean(q). An offset that
is a fixed number of steps, o = rise s (a grid without zero has rise 1/2, `midrise`), leaves s alone: q + rise takes the place of q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COARSE = torch.exp2(-torch.arange(48, dtype=torch.float64) / 4)  # times max / qmax: down to 1 / 3400 of it
FINER = (torch.exp2(torch.linspace(-0.25, 0.25, 33).double()), torch.exp2(torch.linspace(-1 / 64, 1 / 64, 17).double()))
ROUNDS = 20  # alternations at the end
SHIFTS = 8  # offsets tried per scale: the first level at the smallest value, or up to 7 eighths of a step above it


@dataclass(frozen=True)
class Points:
    """Sorted data of several groups with running sums; values (groups, points), sums (groups, points + 1)."""

    values: Tensor
    count: Tensor
    first: Tensor
    second: Tensor

    @property
    def smallest(self) -> Tensor:
        """Smallest value of each group, (groups,)."""
        return self.values[:, 0]

    @property
    def largest(self) -> Tensor:
        """Largest value of each group, (groups,)."""
        return self.values[:, -1]

    def pooled(self) -> Points:
        """All groups as one."""
        weights = self.count.diff(dim=1)
        return points(self.values.reshape(1, -1), weights.reshape(1, -1))

    def rows(self, chosen: Tensor) -> Points:
        """Some of the groups; without copying when it is all of them."""
        if len(chosen) == len(self.values):
            return self
        return Points(self.values[chosen], self.count[chosen], self.first[chosen], self.second[chosen])


def points(values: Tensor, weights: Tensor | None = None) -> Points:
    """From (groups, points) in any order; without weights every point counts once."""
    values, order = values.sort(dim=1)  # before the conversion: sorting float32 takes half as long
    values = values.double()
    weights = torch.ones_like(values) if weights is None else weights.double().gather(1, order)
    if not weights.all():  # empty bins stand where their left neighbour stands, so that the row stays sorted
        some = weights > 0
        lowest = torch.where(some, values, torch.inf).amin(1, keepdim=True)
        values = torch.where(some, values, -torch.inf).cummax(1).values.maximum(lowest)

    def running(t: Tensor) -> Tensor:
        return torch.nn.functional.pad(t.cumsum(1), (1, 0))

    weighted = weights * values
    return Points(values, running(weights), running(weighted), running(weighted * values))


def least_squares(data: Points, bits: int, signed: bool, rise: float = 0.0) -> Tensor:
    """Scale (groups,) of the grid whose levels are (q + rise) s; a group without a value that the grid can reach gets scale 1."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    reach = data.largest.maximum(-data.smallest) if signed else data.largest
    alive = reach > 0
    scale = torch.where(alive, reach / (high + rise), torch.ones_like(reach))
    for ladder in (COARSE, *FINER):
        tried = scale[:, None] * ladder
        errors = squared_error(data, tried, rise * tried, low, high)
        scale = tried.gather(1, errors.argmin(1, keepdim=True)).squeeze(1)
    for _ in range(ROUNDS):
        s0, s1 = (sums.squeeze(1) for sums in _cells(data, scale[:, None], rise * scale[:, None], low, high))
        q = torch.arange(low, high + 1, dtype=torch.float64) + rise
        norm, product = (s0 * q * q).sum(1), (s1 * q).sum(1)
        new = torch.where(alive & (norm > 0) & (product > 0), product / norm, scale)
        if torch.allclose(new, scale, rtol=1e-6, atol=0):
            break
        scale = new
    return torch.where(alive, scale, torch.ones_like(scale))


def least_squares_with_offset(data: Points, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, offset), each (groups,), of the unsigned grid; a constant group gets scale 1 and its value as the offset."""
    high = 2**bits - 1
    span = data.largest - data.smallest
    alive = span > 0
    scale = torch.where(alive, span / high, torch.ones_like(span))
    offset = data.smallest.clone()
    shifts = torch.arange(SHIFTS, dtype=torch.float64) / SHIFTS
    for ladder in (COARSE, *FINER):
        tried = (scale[:, None] * ladder).repeat_interleave(SHIFTS, 1)
        offsets = data.smallest[:, None] + tried * shifts.repeat(len(ladder))
        best = squared_error(data, tried, offsets, 0, high).argmin(1, keepdim=True)
        scale, offset = tried.gather(1, best).squeeze(1), offsets.gather(1, best).squeeze(1)
    total = data.count[:, -1]
    mean = data.first[:, -1] / total
    q = torch.arange(high + 1, dtype=torch.float64)
    for _ in range(ROUNDS):
        s0, s1 = (sums.squeeze(1) for sums in _cells(data, scale[:, None], offset[:, None], 0, high))
        mean_q = (s0 * q).sum(1) / total
        variance = (s0 * q * q).sum(1) / total - mean_q**2
        covariance = (s1 * q).sum(1) / total - mean * mean_q
        good = alive & (variance > 0) & (covariance > 0)
        new = torch.where(good, covariance / variance, scale)
        offset = torch.where(good, mean - new * mean_q, offset)
        if torch.allclose(new, scale, rtol=1e-6, atol=0):
            break
        scale = new
    return torch.where(alive, scale, torch.ones_like(scale)), torch.where(alive, offset, data.smallest)


def _cells(data: Points, scale: Tensor, offset: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Sums of w and of w v over the points of each code, (groups, tried, codes), for grids (groups, tried)."""
    edges = torch.arange(low, high, dtype=torch.float64) + 0.5
    thresholds = offset[..., None] + scale[..., None] * edges
    cut = torch.searchsorted(data.values, thresholds.flatten(1))

    def between(sums: Tensor) -> Tensor:
        inner = sums.gather(1, cut).view(thresholds.shape)
        first = torch.zeros_like(inner[..., :1])
        last = sums[:, -1, None, None].expand_as(first)
        return torch.cat([first, inner, last], 2).diff(dim=2)

    return between(data.count), between(data.first)


def squared_error(data: Points, scale: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
    """sum w (v - s q - o)^2, (groups, tried), of grids (groups, tried) with codes in [low, high]."""
    s0, s1 = _cells(data, scale, offset, low, high)
    value = scale[..., None] * torch.arange(low, high + 1, dtype=torch.float64) + offset[..., None]
    return data.second[:, -1:] + (s0 * value * value - 2 * s1 * value).sum(2)
