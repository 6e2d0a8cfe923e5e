"""What the integer-only ops demand: one function per op, in the order and manner of `check_ops`.

Three questions in turn. Do shapes and grids fit together? Are the op's integers there, with the right shapes and in their
ranges? And then, the reason for all this: can any sum or product leave the integers that backends compute in? The worst
cases are those of `integer_bounds`; a program that passes never overflows, for no image, so that no backend looks.

Where nothing is said against it codes have no offset: R(x) scales a code, and a scaled code with an offset would stand
for something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import integer_ops as i
from . import program as p
from .check_data import MAX_INNER, MAX_INTEGER
from .check_scope import WIDEST, Scope

STREAM_BITS = 16
MAX_EXPONENT = 8
MAX_SHIFT = 62
MAX_FRACTION = 30
MAX_BIAS = 1 << 28  # of a softmax: the difference of two scores, and its half more, still fit int32


def _in_range(scope: Scope, field: str, value: int, low: int, high: int) -> None:
    scope.demand(low <= value <= high, field, value, f"{low}..{high}")


def _plain_codes(
    scope: Scope, name: str, ranks: tuple[int, ...] = (1, 2, 3, 4), widest: int = p.MAX_BITS
) -> tuple[int, ...]:
    """Shape of codes without an offset."""
    shape, _ = scope.codes(name, ranks, widest)
    scope.no_offset(name)
    return shape


def _rescales(scope: Scope, source: str, multiplier: str, shift: str, side: str = "") -> tuple[int, ...]:
    """Shape of codes of any width that R may be applied to with these integers."""
    shape = _plain_codes(scope, source, widest=WIDEST)
    groups = (scope.grid(source).groups,)
    scope.integers(f"{side}multiplier", multiplier, (1,), groups)
    scope.within(f"{side}shift {shift!r}", scope.integers(f"{side}shift", shift, (1,), groups), 1, MAX_SHIFT)
    return shape


def _rounds_to_stream(scope: Scope, name: str, shape: tuple[int, ...]) -> p.Grid:
    """The grid of an output of up to 16 bits and without an offset."""
    grid = scope.rounds_to(name, shape, STREAM_BITS)
    scope.no_offset(name)
    return grid


def _dequantize(scope: Scope, op: i.Dequantize) -> None:
    shape, _ = scope.codes(op.input, widest=WIDEST)
    scope.writes_values(op.output, shape)


def _quantize_regions(scope: Scope, op: i.QuantizeRegions) -> None:
    *lead, width = scope.values(op.input)
    grid = scope.rounds_to(op.output, (*lead, 2 * width), p.MAX_BITS, narrowest=1)
    scope.groups_on(op.output, -1)
    scope.demand(grid.groups == 2, f"groups of {op.output!r}", grid.groups, "2, the low and the high region")
    scope.demand(not grid.signed, f"grid of {op.output!r}", "signed", "unsigned")
    (low_bits, high_bits), ratio = grid.bits, float(grid.scale[1]) / float(grid.scale[0])
    scope.demand(low_bits == high_bits, f"bits of {op.output!r}", grid.bits, "the same in both regions")
    powers = tuple(2.0**m for m in range(1, low_bits + 1))
    allowed = f"a power of two in 2..2^{low_bits}"
    scope.demand(ratio in powers, f"ratio of the scales of {op.output!r}", ratio, allowed)
    scope.demand(grid.offset[1] == 0, f"offset of the high region of {op.output!r}", grid.offset[1], "0")


def _linear(scope: Scope, op: i.LinearAccumulate) -> None:
    shape = _plain_codes(scope, op.input)
    scope.one_group(op.input)
    weight = scope.weight(op.weight)
    out_features, in_features = weight.codes.shape
    scope.demand(in_features == shape[-1], f"inputs of {op.weight!r}", in_features, f"{shape[-1]}, as {op.input!r} has")
    columns = weight.scale.shape[1]
    scope.demand(columns == 1, f"column groups of {op.weight!r}", columns, "1")
    if op.bias:
        scope.integers("bias", op.bias, (out_features,))
    scope.accumulates(op.output, (*shape[:-1], out_features), len(shape) - 1, (1, out_features))
    scope.bounded(op)


def scores_of(scope: Scope, op: p.QueryKey | i.QueryKeyAccumulate) -> tuple[int, ...]:
    """Shape of the scores (..., H, N, N) of queries and keys (..., H, N, d)."""
    query, key = scope.per_head(op.query, (3, 4)), scope.per_head(op.key, (3, 4))
    scope.demand(query == key, f"key {op.key!r}", key, f"{query}, the query's shape")
    scope.demand(query[-1] <= MAX_INNER, f"query {op.query!r}: inner dimension", query[-1], f"at most {MAX_INNER}")
    scope.bounded(op)
    return (*query[:-1], query[-2])


def _query_key(scope: Scope, op: i.QueryKeyAccumulate) -> None:
    scores = scores_of(scope, op)
    scope.accumulates(op.output, scores, len(scores) - 3, (1, scores[-3]))


def _attention_value(scope: Scope, op: i.AttentionValueAccumulate) -> None:
    value = _mixed(scope, op)
    scope.accumulates(op.output, value, len(value) - 3, (1, value[-3]))
    scope.bounded(op)


def _mixed(scope: Scope, op: i.AttentionValueAccumulate | i.ShiftAttentionValue) -> tuple[int, ...]:
    """Shape of attention (..., H, N, N) times v (..., H, N, d)."""
    attention, value = scope.per_head(op.attention, (3, 4)), scope.per_head(op.value, (3, 4))
    square = (*value[:-1], value[-2])
    scope.demand(attention == square, f"attention {op.attention!r}", attention, f"{square}, which fits {op.value!r}")
    return value


def _requantize(scope: Scope, op: i.Requantize) -> None:
    shape = _rescales(scope, op.input, op.multiplier, op.shift)
    grid, source = _rounds_to_stream(scope, op.output, shape), scope.grid(op.input)
    along = source.groups == 1 or grid.groups == 1 or grid.axis == source.axis
    scope.demand(along, f"grid axis of {op.output!r}", grid.axis, f"{source.axis}, the group axis of {op.input!r}")
    scope.bounded(op)


def _add_requantize(scope: Scope, op: i.AddRequantize) -> None:
    left = _rescales(scope, op.left, op.left_multiplier, op.left_shift, "left ")
    right = _rescales(scope, op.right, op.right_multiplier, op.right_shift, "right ")
    scope.demand(left == right, f"right {op.right!r}", right, f"{left}, the shape of {op.left!r}")
    _rounds_to_stream(scope, op.output, left)
    scope.one_group(op.output)
    scope.bounded(op)


def _integer_tokens(scope: Scope, op: i.IntegerTokens) -> None:
    shape = _rescales(scope, op.input, op.multiplier, op.shift)
    scope.demand(len(shape) == 2, f"input {op.input!r}", shape, "rank 2")
    scope.integers("position", op.position, shape)
    prefix = scope.integers("prefix", op.prefix)
    fits = prefix.ndim == 2 and prefix.shape[1] == shape[1]
    scope.demand(fits, f"prefix {op.prefix!r}", prefix.shape, f"(prefix tokens, {shape[1]})")
    grid = _rounds_to_stream(scope, op.output, (len(prefix) + shape[0], shape[1]))
    scope.one_group(op.output)
    scope.within(f"prefix {op.prefix!r}", prefix, int(grid.qmin[0]), int(grid.qmax[0]))
    scope.bounded(op)


def _sum_tokens(scope: Scope, op: i.SumTokens) -> None:
    *tokens, channels = _plain_codes(scope, op.input, (2, 3), STREAM_BITS)
    scope.groups_on(op.input, -1)
    _in_range(scope, "start", op.start, 0, int(np.prod(tokens)) - 1)
    scope.accumulates(op.output, (channels,), 0, (1, scope.grid(op.input).groups))
    scope.bounded(op)


def _integer_layer_norm(scope: Scope, op: i.IntegerLayerNorm) -> None:
    shape, grid = scope.codes(op.input, widest=p.MAX_BITS if op.exponent else STREAM_BITS)
    scope.groups_on(op.input, -1)
    scope.integers("multiplier", op.multiplier, shape[-1:])
    scope.integers("bias", op.bias, shape[-1:])
    if op.exponent:
        exponent = scope.integers("exponent", op.exponent, shape[-1:])
        scope.within(f"exponent {op.exponent!r}", exponent, 0, MAX_EXPONENT)
    _in_range(scope, "shift", op.shift, 9, MAX_SHIFT)
    _in_range(scope, "zero", op.zero, int(grid.qmin.max()), int(grid.qmax.min()))
    scope.rounds_to(op.output, shape, STREAM_BITS)
    scope.groups_on(op.output, -1)
    scope.bounded(op)


def _shift_gelu(scope: Scope, op: i.ShiftGelu) -> None:
    shape = _plain_codes(scope, op.input)
    scope.one_group(op.input)
    _check_exponential(scope, op)
    scope.accumulates(op.output, shape, 0, (1,))
    scope.bounded(op)


def _check_exponential(scope: Scope, op: i.ShiftGelu | i.Shiftmax) -> None:
    _in_range(scope, "unit", op.unit, 1, MAX_INTEGER)
    _in_range(scope, "fraction", op.fraction, 1, MAX_FRACTION)


def _integer_scores(scope: Scope, op: i.Shiftmax | i.LogIntSoftmax, widest: int) -> p.Grid:
    """Scores, bias and mask of an integer softmax, and the grid of its output."""
    shape = _plain_codes(scope, op.input, (3, 4), widest)
    scope.one_group(op.input)
    if op.bias:
        scope.within(f"bias {op.bias!r}", scope.integers("bias", op.bias, shape[-3:]), -MAX_BIAS, MAX_BIAS)
    if op.mask:
        scope.demand(len(shape) == 4, f"input {op.input!r}", shape, "rank 4 where there is a mask")
        mask = scope.integers("mask", op.mask, (shape[0], *shape[-2:]))
        scope.within(f"mask {op.mask!r}", mask, -MAX_BIAS, MAX_BIAS)
    grid = scope.rounds_to(op.output, shape, p.MAX_BITS)
    scope.one_group(op.output)
    scope.no_offset(op.output)
    scope.demand(not grid.signed, f"grid of {op.output!r}", "signed", "unsigned")
    return grid


def _shiftmax(scope: Scope, op: i.Shiftmax) -> None:
    _integer_scores(scope, op, STREAM_BITS)
    _check_exponential(scope, op)
    scope.bounded(op)


def _log_int_softmax(scope: Scope, op: i.LogIntSoftmax) -> None:
    grid = _integer_scores(scope, op, p.MAX_BITS)
    scope.demand(grid.scale[0] == 1, f"scale of {op.output!r}", grid.scale[0], "1: these codes are logarithms")
    for field in ("ln2", "linear", "constant"):
        _in_range(scope, field, getattr(op, field), 1, MAX_INTEGER)
    lowest = op.ln2 - 1  # of -r; the parabola r (r + linear) + constant has to rise from there to 0
    scope.demand(op.linear >= 2 * lowest, "linear", op.linear, f"at least {2 * lowest}, so that e rises with x")
    smallest = op.constant - lowest * (op.linear - lowest)
    scope.demand(
        smallest >= 1, "constant", op.constant, f"at least {op.constant - smallest + 1}, so that e is positive"
    )
    scope.bounded(op)


def _shift_attention_value(scope: Scope, op: i.ShiftAttentionValue) -> None:
    for field, name, right in (("attention", op.attention, True), ("value", op.value, False)):
        writer = scope.writers[name]
        allowed = "LogIntSoftmax" if right else "an op that writes plain codes"
        scope.demand((writer is i.LogIntSoftmax) == right, f"{field} {name!r}: writer", writer.__name__, allowed)
    scope.writes_values(op.output, _mixed(scope, op))
    scope.bounded(op)


CHECK_INTEGER: dict[type, Callable[[Scope, Any], None]] = {
    i.Dequantize: _dequantize,
    i.QuantizeRegions: _quantize_regions,
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
