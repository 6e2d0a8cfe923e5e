"""How large the integers inside an op can get, whatever the image: one list of bounds per op.

A bound is the worst case of one intermediate result, computed from the op's own integers and weights, the grids of its
inputs (a code is anywhere in its grid, also a 32-bit one) and the lengths of its sums; and the limit below which every
backend's arithmetic is exact: 2^31 or 2^63 for int32 and int64, 2^62 where a backend doubles the number or takes its
root. `check` refuses a program with a bound at or above its limit, `integer_only` reports them.

Of the ops on values, the products of two activations are here: both sides may be unsigned, and 255 x 255 x 33,026 is more
than 2^31. Linear is not: 255 x 128 times the 65,536 inputs that `check_data` allows is less, whatever its weights.

Parameters are taken to be in their ranges (`check_ops_integer` looks at those first), so that no bound is astronomic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import integer_ops as i
from . import program as p


@dataclass(frozen=True)
class Bound:
    """|quantity| <= worst must stay below 2^limit_bits.

    quantity  what it is, in the words of the op's docstring
    """

    quantity: str
    worst: int
    limit_bits: int


def largest(program: p.Program, name: str) -> int:
    """The largest |code| that the grid of a buffer allows."""
    grid = program.buffers[name].grid
    assert grid is not None
    return max(int(np.abs(grid.qmin.astype(np.int64)).max()), int(grid.qmax.max()))


def _magnitude(program: p.Program, name: str) -> int:
    """The largest |element| of integers that an op may leave away."""
    return int(np.abs(program.integers[name].astype(np.int64)).max(initial=0)) if name else 0


def _linear(program: p.Program, op: i.LinearAccumulate) -> list[Bound]:
    """Row by row, with the true weights: far below what their width alone would allow."""
    rows = np.abs(program.weights[op.weight].codes.astype(np.int64)).sum(axis=1) * largest(program, op.input)
    bias = np.abs(program.integers[op.bias].astype(np.int64)) if op.bias else 0
    return [Bound("sum of products + bias", int((rows + bias).max()), 31)]


def _query_key(program: p.Program, op: p.QueryKey | i.QueryKeyAccumulate) -> list[Bound]:
    inner = program.buffers[op.query].shape[-1]
    return [Bound("sum of products", inner * largest(program, op.query) * largest(program, op.key), 31)]


def _attention_value(program: p.Program, op: p.AttentionValue | i.AttentionValueAccumulate) -> list[Bound]:
    inner = program.buffers[op.attention].shape[-1]
    return [Bound("sum of products", inner * largest(program, op.attention) * largest(program, op.value), 31)]


def _product(program: p.Program, source: str, multiplier: str, shift: str) -> int:
    """|x m| + 2^(e-1) of R(x; m, e)."""
    return largest(program, source) * _magnitude(program, multiplier) + (1 << (_magnitude(program, shift) - 1))


def _requantize(program: p.Program, op: i.Requantize) -> list[Bound]:
    return [Bound("x m + half", _product(program, op.input, op.multiplier, op.shift), 63)]


def _add_requantize(program: p.Program, op: i.AddRequantize) -> list[Bound]:
    left = _product(program, op.left, op.left_multiplier, op.left_shift)
    right = _product(program, op.right, op.right_multiplier, op.right_shift)
    return [Bound("x m + half, left", left, 63), Bound("x m + half, right", right, 63)]


def _integer_tokens(program: p.Program, op: i.IntegerTokens) -> list[Bound]:
    return [Bound("x m + half", _product(program, op.input, op.multiplier, op.shift), 63)]


def _sum_tokens(program: p.Program, op: i.SumTokens) -> list[Bound]:
    *tokens, _ = program.buffers[op.input].shape
    return [Bound("sum over tokens", (int(np.prod(tokens)) - op.start) * largest(program, op.input), 31)]


def _integer_layer_norm(program: p.Program, op: i.IntegerLayerNorm) -> list[Bound]:
    """mu is a rounded mean of integers, so it lies between the smallest and the largest x, and |y| is at most their span."""
    grid, channels = program.buffers[op.input].grid, program.buffers[op.input].shape[-1]
    assert grid is not None
    steps = 1 << _magnitude(program, op.exponent)
    low, high = (int(grid.qmin.min()) - op.zero) * steps, (int(grid.qmax.max()) - op.zero) * steps
    largest_x = max(abs(low), abs(high))
    scaled = (1 << 30) * _magnitude(program, op.multiplier)
    return [
        Bound("2 sum x + C", channels * (2 * largest_x + 1), 62),
        Bound("sum of squares", channels * (high - low) ** 2, 62),
        Bound("y F", (1 << 31) - 1, 31),
        Bound("z m", scaled, 63),
        Bound("(z m >> (e - 8)) + bias + 128", (scaled >> (op.shift - 8)) + 1 + _magnitude(program, op.bias) + 128, 63),
    ]


def _shift_gelu(program: p.Program, op: i.ShiftGelu) -> list[Bound]:
    return [
        Bound("e1 + e2", 2 * op.unit << op.fraction, 31),
        Bound("e1 F", (1 << 31) - 1, 31),
        Bound("x sigmoid", largest(program, op.input) * 255, 31),
    ]


def _shiftmax(program: p.Program, op: i.Shiftmax) -> list[Bound]:
    return [
        Bound("t + (t >> 1)", _score_range(program, op) * 3 // 2, 31),
        Bound("2 unit 2^n", 2 * op.unit << op.fraction, 31),
        Bound("sum of exponentials", program.buffers[op.input].shape[-1] * op.unit << op.fraction, 31),
        Bound("e F", (1 << 31) - 1, 31),
    ]


def _score_range(program: p.Program, op: i.Shiftmax | i.LogIntSoftmax) -> int:
    """The largest difference of two biased scores."""
    return 2 * (largest(program, op.input) + _magnitude(program, op.bias) + _magnitude(program, op.mask))


def _log_int_softmax(program: p.Program, op: i.LogIntSoftmax) -> list[Bound]:
    total = program.buffers[op.input].shape[-1] * op.constant << 30
    return [Bound("d", _score_range(program, op), 31), Bound("sum of exponentials", total, 62)]


def _shift_attention_value(program: p.Program, op: i.ShiftAttentionValue) -> list[Bound]:
    buffer = program.buffers[op.attention]
    assert buffer.grid is not None
    fraction = i.shift_fraction(buffer.grid.bits[0])
    return [Bound("sum of shifted values", buffer.shape[-1] * largest(program, op.value) << fraction, 62)]


BOUNDS: dict[type, Callable[..., list[Bound]]] = {
    p.QueryKey: _query_key,
    p.AttentionValue: _attention_value,
    i.LinearAccumulate: _linear,
    i.QueryKeyAccumulate: _query_key,
    i.AttentionValueAccumulate: _attention_value,
    i.Requantize: _requantize,
    i.AddRequantize: _add_requantize,
    i.IntegerTokens: _integer_tokens,
    i.SumTokens: _sum_tokens,
    i.IntegerLayerNorm: _integer_layer_norm,
    i.ShiftGelu: _shift_gelu,
    i.Shiftmax: _shiftmax,
    i.LogIntSoftmax: _log_int_softmax,
    i.ShiftAttentionValue: _shift_attention_value,
}


def bounds(program: p.Program, op: p.Op) -> list[Bound]:
    """The bounds of one op; none for Linear, and for an op that adds and multiplies nothing, or nothing but floats."""
    return BOUNDS[type(op)](program, op) if type(op) in BOUNDS else []
