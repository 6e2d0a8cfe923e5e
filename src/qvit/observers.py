"""How a quantizer is filled from data: a streaming histogram per group, and the least-squares scale of every slot.

Histogram. Activations of a calibration set do not fit in memory, so each group keeps BINS counts and sums over a range
that doubles when a larger value arrives: neighbouring bins are added in pairs, nothing is lost but resolution. The mean of
each bin stands for its elements. (The authors' code keeps the tensors of one batch of the validation set instead.)

Least squares (arXiv 2201.07703, initialisation). For codes q the best scale is s = <v, q> / <q, q>, for a scale the best
codes are q = round(clamp(v / s)). Alternating is Lloyd's algorithm and finds a local minimum only, so it starts from the
best of a geometric ladder of scales. With an offset the pair solves the 2 x 2 normal equations at once,

    s = cov(v, q) / var(q),  o = mean(v) - s mean(q),

where the authors' code uses a stale v - o for s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fake_quantize import code_range, grouped

BINS = 8192
LADDER = 40  # starting scales, a factor 2^(1/4) apart, down from max / qmax
ROUNDS = 30  # alternations from the best start


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
        view = grouped(x.detach().float(), self.groups, self.axis).transpose(0, 1).reshape(self.groups, -1)
        view = view.cpu()
        if not torch.isfinite(view).all():
            raise FloatingPointError(
                "calibration met NaN or infinity in an activation: the float model is not finite here"
            )
        largest = view.abs().amax(1).double() * (1 + 1e-9)
        self._grow(largest)
        for group in range(self.groups):
            limit = float(self.limit[group])
            if limit == 0:
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

    def points(self) -> tuple[Tensor, Tensor]:
        """(values, weights), each (groups, BINS): bin means and bin counts."""
        return self.sum / self.count.clamp(min=1), self.count


def least_squares(values: Tensor, weights: Tensor, bits: int, signed: bool) -> Tensor:
    """Scale (groups,) that minimises sum w (v - s q)^2 for each row of values (groups, points).

    A group without a non-zero value gets scale 1.
    """
    low, high = (float(b) for b in code_range(torch.tensor(float(bits)), signed))
    reach = _reach(values, weights, low, high)
    ladder = [reach / high * 2.0 ** (-step / 4) for step in range(LADDER)]
    errors = torch.stack([_error(values, weights, s, 0 * s, low, high) for s in ladder])
    scale = torch.stack(ladder).gather(0, errors.argmin(0, keepdim=True)).squeeze(0)
    for _ in range(ROUNDS):
        codes = (values / scale[:, None]).clamp_(low, high).round_()
        weighted = codes * weights
        norm = (weighted * codes).sum(1)
        new = (weighted * values).sum(1) / norm
        new = torch.where((norm > 0) & (new > 0), new, scale)
        if torch.allclose(new, scale, rtol=1e-6, atol=0):
            break
        scale = new
    return scale


def least_squares_with_offset(values: Tensor, weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, offset), each (groups,), of the unsigned grid that minimises sum w (v - s q - o)^2."""
    low, high = 0.0, float(2**bits - 1)
    present = weights > 0
    smallest = torch.where(present, values, torch.inf).amin(1)
    largest = torch.where(present, values, -torch.inf).amax(1)
    span = torch.where(largest > smallest, largest - smallest, torch.ones_like(largest))
    ladder = [span / high * 2.0 ** (-step / 4) for step in range(LADDER)]
    errors = torch.stack([_error(values, weights, s, smallest, low, high) for s in ladder])
    scale = torch.stack(ladder).gather(0, errors.argmin(0, keepdim=True)).squeeze(0)
    offset, total = smallest.clone(), weights.sum(1)
    for _ in range(ROUNDS):
        codes = ((values - offset[:, None]) / scale[:, None]).clamp_(low, high).round_()
        mean_v, mean_q = (weights * values).sum(1) / total, (weights * codes).sum(1) / total
        centred = codes - mean_q[:, None]
        variance = (weights * centred * centred).sum(1)
        covariance = (weights * centred * values).sum(1)
        good = (variance > 0) & (covariance > 0)
        new = torch.where(good, covariance / variance, scale)
        offset = torch.where(good, mean_v - new * mean_q, offset)
        if torch.allclose(new, scale, rtol=1e-6, atol=0):
            break
        scale = new
    return scale, offset


def _reach(values: Tensor, weights: Tensor, low: float, high: float) -> Tensor:
    present = torch.where(weights > 0, values, torch.zeros_like(values))
    reach = present.abs().amax(1) if low < 0 else present.amax(1)
    return torch.where(reach > 0, reach, torch.full_like(reach, high))


def _error(values: Tensor, weights: Tensor, scale: Tensor, offset: Tensor, low: float, high: float) -> Tensor:
    shifted = values - offset[:, None]
    codes = (shifted / scale[:, None]).clamp_(low, high).round_()
    return (weights * (shifted - codes * scale[:, None]) ** 2).sum(1)
