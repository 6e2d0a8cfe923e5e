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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...network.attention import split_heads
from ...quantizers.ste import round_ste
from . import integers, moves
from .arithmetic import Factor, Pair
from .layers import SIGMOID, Grid, LayerNorm, Linear
from .numbers import (
    SHIFT_GELU_FRACTION,
    constant_codes,
    dyadic,
    layer_norm_numbers,
    linear_numbers,
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


Term = tuple[Tensor, Tensor | None]


class _Linearised(torch.autograd.Function):
    """Numbers computed elsewhere, with the gradient of sum_i slope_i * x_i where `inside`; slope None is 1."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, inside: Tensor | None, *terms: Tensor | None) -> Tensor:
        slopes_learn = ctx.needs_input_grad[3::2]
        ctx.save_for_backward(
            inside, *terms[1::2], *(x if learn else None for x, learn in zip(terms[::2], slopes_learn, strict=True))
        )
        ctx.shapes = [None if x is None else x.shape for x in terms]
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside, *saved = ctx.saved_tensors
        count = len(saved) // 2
        if inside is not None:
            gradient = gradient * inside
        results: list[Tensor | None] = [None, None]
        for index, (slope, x) in enumerate(zip(saved[:count], saved[count:], strict=True)):
            shape, slope_shape = ctx.shapes[2 * index : 2 * index + 2]
            through = gradient if slope is None else gradient * slope.float()
            results += [
                through.sum_to_size(shape) if ctx.needs_input_grad[2 + 2 * index] else None,
                None if x is None else (gradient * x).sum_to_size(slope_shape),
            ]
        return tuple(results)


def linearised(exact: Tensor, inside: Tensor | None, terms: Callable[[], Sequence[Term]]) -> Tensor:
    """`exact` as float32, with the gradient of the sum of slope * x over `terms()` where `inside`.

    terms  called only where a gradient may be asked for: pairs of a tensor x and its slope, which may be smaller and
           broadcast, and which may be learned itself
    """
    exact = exact.float()
    if not torch.is_grad_enabled():
        return exact
    return _Linearised.apply(exact, inside, *(tensor for term in terms() for tensor in term))


def onto(grid: Grid, exact: Tensor, terms: Callable[[], Sequence[Term]]) -> Codes:
    """Integers clipped to a grid; what is clipped gets no gradient."""
    codes = exact.clamp(grid.qmin, grid.qmax)
    inside = codes == exact if torch.is_grad_enabled() else None
    return Codes(linearised(codes, inside, terms), grid.scale.double())


def quantize_image(images: Tensor, grid: Grid) -> Codes:
    """Image values -> codes: rint(clip(x / scale)) in float32."""
    codes = round_ste((images.float() / grid.scale).clamp(grid.qmin, grid.qmax))
    return Codes(codes, grid.scale.double())


def rescaled(x: Codes, factor: Factor, scale: Tensor) -> tuple[Tensor, Term]:
    """factor * x in codes of `scale`: the integers, and the linear term that they stand for."""
    ratio = x.scale * factor / scale
    with torch.no_grad():
        exact = integers.requantize(x.codes, *dyadic(ratio))
    return exact, (x.codes, ratio)


def rescale_onto(x: Codes, factor: Factor, grid: Grid) -> Codes:
    """factor * x rounded onto a grid."""
    exact, term = rescaled(x, factor, grid.scale.double())
    return onto(grid, exact, lambda: [term])


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
        return rescale_onto(x, 1.0, grid)

    def split_heads(self, x: Codes, grids: tuple[Grid, Grid, Grid], heads: int) -> tuple[Codes, Codes, Codes]:
        scales = torch.stack([grid.scale.double() for grid in grids])
        each = scales.repeat_interleave(x.codes.shape[-1] // 3)
        exact, term = rescaled(x, 1.0, each)
        codes = onto(grids[0], exact, lambda: [term]).codes  # the three have equal bits
        q, k, v = (Codes(*pair) for pair in zip(split_heads(codes, heads), scales, strict=True))
        return q, k, v

    def query_key(self, q: Codes, k: Codes, grid: Grid, factor: float) -> Codes:
        sums = Codes(q.codes @ k.codes.transpose(-2, -1), q.scale * k.scale)
        return rescale_onto(sums, factor, grid)

    def softmax(self, x: Codes, scores: Grid, output: Grid, bias: Tensor | None, mask: Tensor | None) -> Codes:
        t = x.codes
        if bias is not None:
            t = t + constant_codes(bias, x.scale)
        if mask is not None:
            t = t + constant_codes(mask, x.scale)[:, None]
        with torch.no_grad():
            exact = integers.shiftmax(t.int(), scores.unit, shiftmax_fraction(scores.unit, t.shape[-1]), output.bits)
        levels, scale = 2.0**output.bits, x.scale.float()
        codes = linearised(exact, None, lambda: [((t * scale).softmax(-1) * levels, None)])
        return Codes(codes, output.scale.double())

    def attention_value(self, attention: Codes, v: Codes, grid: Grid) -> Codes:
        sums = Codes(attention.codes @ v.codes, attention.scale * v.scale)
        mixed = rescale_onto(sums, 1.0, grid)
        return Codes(moves.join_heads(mixed.codes), mixed.scale)

    def layer_norm(self, x: Codes, norm: LayerNorm) -> Codes:
        gamma, beta = norm.parameters_or_defaults()
        scale = norm.output.scale.double()
        exact = integers.layer_norm(x.codes.long(), *layer_norm_numbers(gamma, beta, scale))

        def smooth() -> Tensor:
            values = x.codes * x.scale.float()
            return F.layer_norm(values, (norm.channels,), gamma, beta, norm.eps) / scale.float()

        return onto(norm.output, exact, lambda: [(smooth(), None)])

    def gelu(self, x: Codes, grid: Grid) -> Codes:
        with torch.no_grad():  # a function of one 8-bit code: computed for all of them and looked up
            every = torch.arange(grid.qmin, grid.qmax + 1, device=x.codes.device)
            index = (x.codes.detach() - grid.qmin).int().flatten()

        def looked_up(table: Tensor) -> Tensor:
            return table.float().index_select(0, index).view(x.codes.shape)

        def slope() -> Tensor:  # of 256 x sigmoid(z), z = 1.702 scale x
            z = SIGMOID * x.scale * every
            sigmoid = z.sigmoid()
            return looked_up(256 * (sigmoid + sigmoid * (1 - sigmoid) * z))

        exact = looked_up(integers.shift_gelu(every, grid.unit, SHIFT_GELU_FRACTION))
        return Codes(linearised(exact, None, lambda: [(x.codes, slope())]), x.scale / 256)

    def add(self, left: Codes, right: Codes, grid: Grid, factors: tuple[Factor, Factor]) -> Codes:
        scale = grid.scale.double()
        exact_left, term_left = rescaled(left, factors[0], scale)
        exact_right, term_right = rescaled(right, factors[1], scale)
        return onto(grid, exact_left + exact_right, lambda: [term_left, term_right])

    def tokens(self, x: Codes, prefix: Tensor, position: Tensor, grid: Grid) -> Codes:
        scale = grid.scale.double()
        exact, term = rescaled(x, 1.0, scale)
        shift, first = constant_codes(position, scale), constant_codes(prefix, scale)
        patches = onto(grid, exact + shift.detach(), lambda: [term, (shift, None)])
        first = first.clamp(grid.qmin, grid.qmax).expand(len(x.codes), *first.shape)
        return Codes(torch.cat([first, patches.codes], 1), scale)

    def select_token(self, x: Codes, index: int) -> Codes:
        return Codes(x.codes[:, index], x.scale)

    def mean_tokens(self, x: Codes, start: int, grid: Grid) -> Codes:
        tokens = x.codes.flatten(1, -2)[:, start:].double()
        return rescale_onto(Codes(tokens.sum(1), x.scale), 1 / tokens.shape[1], grid)

    def window_partition(self, x: Codes, window: Pair, shift: Pair) -> Codes:
        return Codes(moves.cut_windows(x.codes, window, shift), x.scale)

    def window_merge(self, x: Codes, window: Pair, shift: Pair, size: Pair) -> Codes:
        return Codes(moves.join_windows(x.codes, window, shift, size), x.scale)

    def patch_merge(self, x: Codes) -> Codes:
        return Codes(moves.merge_patches(x.codes), x.scale)
