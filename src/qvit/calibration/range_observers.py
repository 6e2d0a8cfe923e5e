"""Where the ends of a quantization grid come from: five observers as values, and the grid that each of them gives.

    LeastSquares()           the grid with the least squared error, searched for every bit-width (`least_squares`)
    MinMax()                 everything seen is inside
    MovingAverage(0.01)      min and max of each batch, averaged: the first batch sets, then v <- v + 0.01 (new - v)
    Percentile(0.99999)      all but a share of 1e-5 at either end is inside
    MeanSquaredError()       "OMSE": min and max shrunk together by 0 to 89 %, whatever gives the least squared error

The last four are the baselines that post-training methods compare with, as FQ-ViT does (arXiv 2111.13824).
They look for a range [low, high] and turn it into a grid of b bits by one rule, `grid_of_range`:

    signed              s = max(|low|, |high|) / (2^(b-1) - 1/2)         codes -2^(b-1) .. 2^(b-1) - 1
    signed, no zero     s = max(|low|, |high|) / 2^(b-1)                 the same codes, levels half a step above them (`midrise`)
    unsigned            s = high / (2^b - 1)                             codes 0 .. 2^b - 1
    unsigned + offset   s = (high - low) / (2^b - 1),  zero = rint(-low / s),  offset = -zero s,  low <= 0 <= high

The half makes the cell of the largest positive code end at the largest value, so that rounding is never off by more than
half a step; it is the 127.5 of the authors' code. The last line keeps 0 on the grid, as an integer zero point does; the
range is widened to contain 0 first, since a zero point that is clipped (theirs) moves the whole range.

Every slot of a bank gets its scale from the same range; MeanSquaredError shrinks it for each bit-width by itself. Weights
are one batch: their range under MovingAverage is that of MinMax, and a percentile cuts nothing from a small group.

Differences from the authors' code: their percentile is taken per batch and averaged, and OMSE looks at the last batch only;
here both see a histogram of everything. Their baselines have min-max weights whatever the observer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .least_squares import Points, least_squares, least_squares_with_offset, squared_error
from .observers import Extremes, Histogram

SHRINK = 1 - 0.01 * torch.arange(90, dtype=torch.float64)  # the ranges that OMSE tries, of the whole one


@dataclass(frozen=True)
class LeastSquares:
    """The grid closest to the data, for each bit-width."""


@dataclass(frozen=True)
class MinMax:
    """The smallest and the largest value seen."""


@dataclass(frozen=True)
class MovingAverage:
    """Moving averages of the extremes of the batches; `momentum` is the share of the new batch."""

    momentum: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise ValueError(f"MovingAverage.momentum is {self.momentum}; it must lie in (0, 1]")


@dataclass(frozen=True)
class Percentile:
    """The quantiles `share` and 1 - `share` of all values seen."""

    share: float = 0.99999

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise ValueError(f"Percentile.share is {self.share}; it must lie in (0.5, 1], such as 0.99999")


@dataclass(frozen=True)
class MeanSquaredError:
    """The smallest and the largest value seen, shrunk together to the least squared error for each bit-width."""


Observer = LeastSquares | MinMax | MovingAverage | Percentile | MeanSquaredError


def check_observer(what: str, observer: object) -> None:
    """Raise ValueError, naming `what`, for anything but an observer: a name or a class would count as MinMax()."""
    if not isinstance(observer, Observer):
        allowed = ", ".join(f"{cls.__name__}()" for cls in Observer.__args__)
        raise ValueError(f"{what} is {observer!r}; allowed: {allowed}")


def watcher(observer: Observer, groups: int, axis: int) -> Histogram | Extremes:
    """What collects the data that this observer looks at, for an activation whose `axis` the groups divide."""
    match observer:
        case MinMax():
            return Extremes(groups, axis)
        case MovingAverage():
            return Extremes(groups, axis, observer.momentum)
        case _:
            return Histogram(groups, axis)


def fit_grid(
    observer: Observer, data: Points, bits: int, signed: bool, offset: bool, rise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(scale, offset), float64 (groups,) each, of a grid for this data; the offset is zero where there is none to be.

    rise  steps between a code and its level on a signed grid: 1/2 for one without zero

    A group that is zero everywhere gets scale 1, which is none of its values where the grid has no zero (`calibrate`).
    """
    match observer:
        case LeastSquares() if offset:
            return least_squares_with_offset(data, bits)
        case LeastSquares():
            scale = least_squares(data, bits, signed, rise)
            return scale, torch.zeros_like(scale)
        case Percentile():
            low, high = quantile(data, 1 - observer.share), quantile(data, observer.share)
            return grid_of_range(low, high, bits, signed, offset, rise)
        case MeanSquaredError():
            return _shrunk(data, bits, signed, offset, rise)
        case _:
            return grid_of_range(data.smallest, data.largest, bits, signed, offset, rise)


def grid_of_range(
    low: Tensor, high: Tensor, bits: int, signed: bool, offset: bool, rise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(scale, offset) of the grid of b bits on [low, high], float64 tensors of one shape; see the rule above."""
    if signed:
        span, steps = torch.maximum(-low, high), 2 ** (bits - 1) - 0.5 + rise
    elif offset:
        low, high = low.clamp(max=0), high.clamp(min=0)
        span, steps = high - low, 2**bits - 1
    else:
        span, steps = high, 2**bits - 1
    scale = torch.where(span > 0, span / steps, torch.ones_like(span))
    return scale, -(-low / scale).round() * scale if offset else torch.zeros_like(scale)


def quantile(data: Points, share: float) -> Tensor:
    """The smallest value of each group that at least this share of the group does not exceed, (groups,)."""
    below = data.count[:, 1:]
    rank = share * below[:, -1:]
    index = torch.searchsorted(below.contiguous(), rank).clamp(max=below.shape[1] - 1)
    return data.values.gather(1, index).squeeze(1)


def _shrunk(data: Points, bits: int, signed: bool, offset: bool, rise: float) -> tuple[Tensor, Tensor]:
    lows, highs = data.smallest[:, None] * SHRINK, data.largest[:, None] * SHRINK
    scales, offsets = grid_of_range(lows, highs, bits, signed, offset, rise)
    bottom = -(2 ** (bits - 1)) if signed else 0
    errors = squared_error(data, scales, offsets + rise * scales, bottom, bottom + 2**bits - 1)
    best = errors.argmin(1, keepdim=True)
    return scales.gather(1, best).squeeze(1), offsets.gather(1, best).squeeze(1)
