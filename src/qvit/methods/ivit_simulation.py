"""The integer network in torch, bit for bit what its program computes, with gradients.

What travels is `Codes`: a float tensor that holds integers, and what one of them stands for. Forward, every operation
computes the integers of its op in `qvit_runtime.integer_ops`; backward, it passes the gradient of the real function that
the op approximates, taken at the dequantized input:

    requantize, add, tokens   r x, inside the range of the grid           rounding is stepped over
    linear, products          the product itself: sums are exact
    Shiftmax                  softmax
    ShiftGELU                 x sigmoid(1.702 x)
    IntegerLayerNorm          LayerNorm; gamma and beta get their gradients (the authors' code cuts beta's)

Activation scales are constants here; the scale of a weight row moves with its largest weight, without a gradient.

Floats that hold integers. Products of codes run in float32 where no partial sum can reach 2^24, else in float64, so that
they are exact in any order of summation; everything behind them is int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ste import round_ste
from . import ivit_integers as integers
from . import ivit_moves as moves
from .ivit_arithmetic import Factor, Pair
from .ivit_layers import SIGMOID, Grid, LayerNorm, Linear
from .ivit_numbers import (
    constant_codes,
    dyadic,
    layer_norm_numbers,
    linear_numbers,
    shift_gelu_fraction,
    shiftmax_fraction,
)


@dataclass(frozen=True)
class Codes:
    """Integers in a float tensor: value = codes * scale.

    scale  float64, one number or one per channel of the last axis
    """

    codes: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """float32: the product in float64, rounded once."""
        return (self.codes.double() * self.scale.float()).float()


class _Replace(torch.autograd.Function):
    """The numbers of one tensor with the gradient of another of the same shape."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def exact_as(exact: Tensor, smooth: Callable[[], Tensor]) -> Tensor:
    """`exact` as float32, with the gradient of `smooth()`, which is computed only where a gradient may be asked for."""
    exact = exact.float()
    return _Replace.apply(exact, smooth()) if torch.is_grad_enabled() else exact


def quantize_image(images: Tensor, grid: Grid) -> Codes:
    """Image values -> codes: rint(clip(x / scale)) in float32."""
    codes = round_ste((images.float() / grid.scale).clamp(grid.qmin, grid.qmax))
    return Codes(codes, grid.scale.double())


def _rescaled(x: Codes, factor: Factor, scale: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """factor * x in codes of `scale`: as int64, and as the real number behind it."""
    ratio = x.scale * factor / scale
    exact = integers.requantize(x.codes.long(), *dyadic(ratio.detach()))
    return exact, lambda: x.codes.float() * ratio.float()


class Simulation:
    """Integer codes with gradients; see the module docstring."""

    def patches(self, image: Codes, patch: int, as_grid: bool) -> Codes:
        return Codes(moves.cut_patches(image.codes, patch, as_grid), image.scale)

    def linear(self, x: Codes, layer: Linear) -> Codes:
        numbers = linear_numbers(layer.matrix, layer.bias, layer.bits, x.scale)
        dtype = numbers.accumulator
        bias = None if numbers.bias is None else numbers.bias.to(dtype)
        return Codes(F.linear(x.codes.to(dtype), numbers.weight.to(dtype), bias), x.scale * numbers.scale)

    def requantize(self, x: Codes, grid: Grid) -> Codes:
        return self._onto(grid, *_rescaled(x, 1.0, grid.scale.double()))

    def _onto(self, grid: Grid, exact: Tensor, smooth: Callable[[], Tensor]) -> Codes:
        low, high = grid.qmin, grid.qmax
        codes = exact_as(exact.clamp(low, high), lambda: smooth().clamp(low, high))
        return Codes(codes, grid.scale.double())

    def split_heads(self, x: Codes, grids: tuple[Grid, Grid, Grid], heads: int) -> tuple[Codes, Codes, Codes]:
        scales = torch.stack([grid.scale.double() for grid in grids])
        each = scales.repeat_interleave(x.codes.shape[-1] // 3)
        codes = self._onto(grids[0], *_rescaled(x, 1.0, each)).codes  # the three have equal bits
        q, k, v = (Codes(*pair) for pair in zip(moves.cut_heads(codes, heads), scales, strict=True))
        return q, k, v

    def query_key(self, q: Codes, k: Codes, grid: Grid, factor: float) -> Codes:
        sums = Codes(q.codes @ k.codes.transpose(-2, -1), q.scale * k.scale)
        return self._onto(grid, *_rescaled(sums, factor, grid.scale.double()))

    def softmax(self, x: Codes, scores: Grid, output: Grid, bias: Tensor | None, mask: Tensor | None) -> Codes:
        t = x.codes
        if bias is not None:
            t = t + constant_codes(bias, x.scale)
        if mask is not None:
            t = t + constant_codes(mask, x.scale)[:, None]
        with torch.no_grad():
            exact = integers.shiftmax(t.int(), scores.unit, shiftmax_fraction(scores.unit), output.bits)
        levels, scale = 2.0**output.bits, x.scale.float()
        return Codes(exact_as(exact, lambda: (t * scale).softmax(-1) * levels), output.scale.double())

    def attention_value(self, attention: Codes, v: Codes, grid: Grid) -> Codes:
        sums = Codes(attention.codes @ v.codes, attention.scale * v.scale)
        mixed = self._onto(grid, *_rescaled(sums, 1.0, grid.scale.double()))
        return Codes(moves.join_heads(mixed.codes), mixed.scale)

    def layer_norm(self, x: Codes, norm: LayerNorm) -> Codes:
        gamma, beta = norm.parameters_or_defaults()
        scale = norm.output.scale.double()
        exact = integers.layer_norm(x.codes.long(), *layer_norm_numbers(gamma, beta, scale))

        def smooth() -> Tensor:
            values = x.codes * x.scale.float()
            return F.layer_norm(values, (norm.channels,), gamma, beta, norm.eps) / scale.float()

        return self._onto(norm.output, exact, smooth)

    def gelu(self, x: Codes, grid: Grid) -> Codes:
        unit = grid.unit
        with torch.no_grad():
            codes = x.codes.long()
            exact = integers.shift_gelu(codes, unit, shift_gelu_fraction(unit))
        scale = SIGMOID * x.scale.float()
        return Codes(exact_as(exact, lambda: x.codes * (x.codes * scale).sigmoid() * 256), x.scale / 256)

    def add(self, left: Codes, right: Codes, grid: Grid, factors: tuple[Factor, Factor]) -> Codes:
        scale = grid.scale.double()
        exact_left, smooth_left = _rescaled(left, factors[0], scale)
        exact_right, smooth_right = _rescaled(right, factors[1], scale)
        return self._onto(grid, exact_left + exact_right, lambda: smooth_left() + smooth_right())

    def tokens(self, x: Codes, prefix: Tensor, position: Tensor, grid: Grid) -> Codes:
        scale = grid.scale.double()
        exact, smooth = _rescaled(x, 1.0, scale)
        shift, first = constant_codes(position, scale), constant_codes(prefix, scale)
        patches = self._onto(grid, exact + shift.long(), lambda: smooth() + shift)
        first = first.clamp(grid.qmin, grid.qmax).expand(len(x.codes), *first.shape)
        return Codes(torch.cat([first, patches.codes], 1), scale)

    def select_token(self, x: Codes, index: int) -> Codes:
        return Codes(x.codes[:, index], x.scale)

    def mean_tokens(self, x: Codes, start: int, grid: Grid) -> Codes:
        tokens = x.codes.flatten(1, -2)[:, start:].double()
        return self._onto(grid, *_rescaled(Codes(tokens.sum(1), x.scale), 1 / tokens.shape[1], grid.scale.double()))

    def window_partition(self, x: Codes, window: Pair, shift: Pair) -> Codes:
        return Codes(moves.cut_windows(x.codes, window, shift), x.scale)

    def window_merge(self, x: Codes, window: Pair, shift: Pair, size: Pair) -> Codes:
        return Codes(moves.join_windows(x.codes, window, shift, size), x.scale)

    def patch_merge(self, x: Codes) -> Codes:
        return Codes(moves.merge_patches(x.codes), x.scale)
