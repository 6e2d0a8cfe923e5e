"""Calibration: the float network runs, and every grid sees the tensor that it will have to hold.

`Observation` gives the operations of `arithmetic` their float meaning: exact softmax, GELU and LayerNorm, nothing rounded.
Run with it, the network computes what timm's model computes. Of each grid it keeps a histogram, from which the scales come:

    16-bit grids                   the limit of the histogram, 1 to 2 times the largest magnitude (it doubles, see `observers`): the
                                   stream has bits to spare, and clipping it is felt everywhere
    grids of up to 8 bits          the least-squares scale
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...calibration.least_squares import least_squares
from ...calibration.observers import Histogram
from ...network.attention import split_heads
from . import moves
from .arithmetic import Factor, Pair
from .layers import STREAM_BITS, Grid, LayerNorm, Linear


class Observation:
    """Float tensors in, float tensors out, histograms kept."""

    def __init__(self) -> None:
        self.seen: dict[Grid, Histogram] = {}

    def see(self, x: Tensor, grid: Grid) -> Tensor:
        """Note a tensor of this grid; returns it."""
        self.seen.setdefault(grid, Histogram(1, 0)).update(x)
        return x

    def set_scales(self) -> None:
        """Give every grid that was seen its scale; one that held zeros only gets 1."""
        for grid, histogram in self.seen.items():
            largest = float(histogram.limit)
            if largest == 0:
                grid.set_scale(1.0)
            elif grid.bits == STREAM_BITS:
                grid.set_scale(largest / grid.qmax)
            else:
                grid.set_scale(float(least_squares(histogram.points(), grid.bits, grid.signed)))

    def patches(self, image: Tensor, patch: int, as_grid: bool) -> Tensor:
        return moves.cut_patches(image, patch, as_grid)

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        return F.linear(x, layer.matrix, layer.bias)

    def requantize(self, x: Tensor, grid: Grid) -> Tensor:
        return self.see(x, grid)

    def split_heads(self, x: Tensor, grids: tuple[Grid, Grid, Grid], heads: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.see(part, grid) for part, grid in zip(split_heads(x, heads), grids, strict=True))
        return q, k, v

    def query_key(self, q: Tensor, k: Tensor, grid: Grid, factor: float) -> Tensor:
        return self.see(q @ k.transpose(-2, -1) * factor, grid)

    def softmax(self, x: Tensor, scores: Grid, output: Grid, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        if bias is not None:
            x = x + bias
        if mask is not None:
            x = x + mask[:, None]
        return x.softmax(-1)

    def attention_value(self, attention: Tensor, v: Tensor, grid: Grid) -> Tensor:
        return self.see(moves.join_heads(attention @ v), grid)

    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        return self.see(F.layer_norm(x, (norm.channels,), norm.weight, norm.bias, norm.eps), norm.output)

    def gelu(self, x: Tensor, grid: Grid) -> Tensor:
        return F.gelu(x)

    def add(self, left: Tensor, right: Tensor, grid: Grid, factors: tuple[Factor, Factor]) -> Tensor:
        return self.see(factors[0] * left + factors[1] * right, grid)

    def tokens(self, x: Tensor, prefix: Tensor, position: Tensor, grid: Grid) -> Tensor:
        return self.see(torch.cat([prefix.expand(len(x), *prefix.shape), x + position], 1), grid)

    def select_token(self, x: Tensor, index: int) -> Tensor:
        return x[:, index]

    def mean_tokens(self, x: Tensor, start: int, grid: Grid) -> Tensor:
        return self.see(x.flatten(1, -2)[:, start:].mean(1), grid)

    def window_partition(self, x: Tensor, window: Pair, shift: Pair) -> Tensor:
        return moves.cut_windows(x, window, shift)

    def window_merge(self, x: Tensor, window: Pair, shift: Pair, size: Pair) -> Tensor:
        return moves.join_windows(x, window, shift, size)

    def patch_merge(self, x: Tensor) -> Tensor:
        return moves.merge_patches(x)
