"""What each op demands of the buffers, weights and constants it names: one function per op, like the interpreter.

Each function looks at the input buffers, which earlier ops have been checked to write, and compares the declared output
buffer with what the op really produces. Two questions come back in every op that handles codes:

  Which axis may the groups divide?  A matrix product can only take a scale out of its sum where the scale is constant
  along the summed axis, or where the sum is cut into blocks (Linear's column groups). One group fits anywhere.

  May the grid have an offset?  Linear may (freeze folds it into the bias). A product of two activations may not, and
  neither may a window partition, whose padding is code 0 and has to mean the value 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import program as p
from .check_data import MAX_INNER, fail


class Scope:
    """The program as one op sees it: look-ups and comparisons that fail with the op's own name in the message."""

    def __init__(self, program: p.Program, where: str) -> None:
        self.program = program
        self.where = where

    def demand(self, holds: bool, field: str, found: object, allowed: str) -> None:
        if not holds:
            raise fail(f"{self.where}: {field}", found, allowed)

    def values(self, name: str, ranks: tuple[int, ...] = (1, 2, 3, 4)) -> tuple[int, ...]:
        """Shape of a buffer that must hold values and have one of these ranks."""
        buffer = self.program.buffers[name]
        self.demand(buffer.grid is None, f"input {name!r}", "codes", "values")
        self.demand(len(buffer.shape) in ranks, f"input {name!r}", buffer.shape, f"rank {_either(ranks)}")
        return buffer.shape

    def codes(self, name: str, ranks: tuple[int, ...] = (1, 2, 3, 4)) -> tuple[tuple[int, ...], p.Grid]:
        buffer = self.program.buffers[name]
        self.demand(len(buffer.shape) in ranks, f"input {name!r}", buffer.shape, f"rank {_either(ranks)}")
        if buffer.grid is None:
            raise fail(f"{self.where}: input {name!r}", "values", "codes")
        return buffer.shape, buffer.grid

    def groups_on(self, name: str, axis: int) -> None:
        """One group, or groups along this axis."""
        shape, grid = self.codes(name)
        axis %= len(shape)
        found = f"{grid.groups} along axis {grid.axis}"
        self.demand(
            grid.groups == 1 or grid.axis == axis, f"groups of {name!r}", found, f"1, or more along axis {axis}"
        )

    def no_offset(self, name: str) -> None:
        _, grid = self.codes(name)
        self.demand(not grid.offset.any(), f"offset of {name!r}", grid.offset, "0")

    def writes_values(self, name: str, shape: tuple[int, ...]) -> None:
        buffer = self.program.buffers[name]
        self.demand(buffer.grid is None, f"output {name!r}", "codes", "values")
        self.demand(buffer.shape == shape, f"output {name!r}", buffer.shape, str(shape))

    def writes_codes(self, name: str, shape: tuple[int, ...], grid: p.Grid, axis: int) -> None:
        """The same codes in another arrangement: the grid is unchanged but for the axis of its groups."""
        buffer = self.program.buffers[name]
        self.demand(buffer.shape == shape, f"output {name!r}", buffer.shape, str(shape))
        if buffer.grid is None:
            raise fail(f"{self.where}: output {name!r}", "values", "codes")
        same = (
            buffer.grid.bits == grid.bits
            and buffer.grid.signed == grid.signed
            and np.array_equal(buffer.grid.scale, grid.scale)
            and np.array_equal(buffer.grid.offset, grid.offset)
        )
        self.demand(same, f"grid of {name!r}", "another one", "the grid of the input")
        moved = grid.groups == 1 or buffer.grid.axis == axis
        self.demand(moved, f"grid axis of {name!r}", buffer.grid.axis, str(axis))

    def constant(self, field: str, name: str, *shapes: tuple[int, ...]) -> None:
        if name not in self.program.constants:
            raise fail(f"{self.where}: {field}", repr(name), "the name of a constant")
        shape = self.program.constants[name].shape
        self.demand(shape in shapes, f"{field} {name!r}", shape, " or ".join(map(str, shapes)))

    def per_head(self, name: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of codes (..., H, N, x) with one group or H groups along the head axis, and no offset."""
        shape, grid = self.codes(name, ranks)
        self.groups_on(name, -3)
        self.demand(
            grid.groups in (1, shape[-3]), f"groups of {name!r}", grid.groups, f"1 or {shape[-3]}, one per head"
        )
        self.no_offset(name)
        return shape


def _either(ranks: tuple[int, ...]) -> str:
    return " or ".join(map(str, ranks))


def _quantize(scope: Scope, op: p.Quantize) -> None:
    shape = scope.values(op.input)
    buffer = scope.program.buffers[op.output]
    scope.demand(buffer.grid is not None, f"output {op.output!r}", "values", "codes")
    scope.demand(buffer.shape == shape, f"output {op.output!r}", buffer.shape, str(shape))


def _patchify(scope: Scope, op: p.Patchify) -> None:
    (channels, height, width), grid = scope.codes(op.input, (3,))
    scope.demand(grid.groups == 1, f"groups of {op.input!r}", grid.groups, "1")
    scope.demand(1 <= op.patch <= min(height, width), "patch", op.patch, f"1..{min(height, width)}")
    rows, cols, inner = height // op.patch, width // op.patch, channels * op.patch**2
    rank = len(scope.program.buffers[op.output].shape)
    scope.writes_codes(op.output, (rows, cols, inner) if rank == 3 else (rows * cols, inner), grid, 0)


def _linear(scope: Scope, op: p.Linear) -> None:
    shape, grid = scope.codes(op.input)
    scope.groups_on(op.input, -1)
    if op.weight not in scope.program.weights:
        raise fail(f"{scope.where}: weight", repr(op.weight), "the name of a weight")
    weight = scope.program.weights[op.weight]
    out_features, in_features = weight.codes.shape
    scope.demand(in_features == shape[-1], f"inputs of {op.weight!r}", in_features, f"{shape[-1]}, as {op.input!r} has")
    columns = weight.scale.shape[1]
    fits = max(columns, grid.groups) % min(columns, grid.groups) == 0
    found = f"{columns} against {grid.groups} input groups"
    scope.demand(fits, f"column groups of {op.weight!r}", found, "numbers of which one divides the other")
    scope.constant("bias", op.bias, (out_features,))
    scope.writes_values(op.output, (*shape[:-1], out_features))


def _split_heads(scope: Scope, op: p.SplitHeads) -> None:
    *lead, tokens, channels = scope.values(op.input, (2, 3))
    scope.demand(1 <= op.parts <= channels, "parts", op.parts, f"1..{channels}")
    scope.demand(0 <= op.part < op.parts, "part", op.part, f"0..{op.parts - 1}")
    output = scope.program.buffers[op.output].shape
    scope.demand(len(output) == len(lead) + 3, f"output {op.output!r}", output, f"rank {len(lead) + 3}")
    heads, dim = output[-3], output[-1]
    found = f"{op.parts} parts x {heads} heads x {dim}"
    scope.demand(op.parts * heads * dim == channels, f"output {op.output!r}", found, f"a product of {channels}")
    scope.writes_values(op.output, (*lead, heads, tokens, dim))


def _merge_heads(scope: Scope, op: p.MergeHeads) -> None:
    shape, grid = scope.codes(op.input, (3, 4))
    scope.groups_on(op.input, -3)
    *lead, heads, tokens, dim = shape
    scope.writes_codes(op.output, (*lead, tokens, heads * dim), grid, len(lead) + 1)


def _query_key(scope: Scope, op: p.QueryKey) -> None:
    query, key = scope.per_head(op.query, (3, 4)), scope.per_head(op.key, (3, 4))
    scope.demand(query == key, f"key {op.key!r}", key, f"{query}, the query's shape")
    scope.demand(query[-1] <= MAX_INNER, f"query {op.query!r}: inner dimension", query[-1], f"at most {MAX_INNER}")
    scope.demand(1e-12 <= op.factor <= 1e12, "factor", op.factor, "a number in 1e-12..1e12")
    scope.writes_values(op.output, (*query[:-1], query[-2]))


def _softmax(scope: Scope, op: p.Softmax) -> None:
    shape = scope.values(op.input, (3, 4))
    if op.bias:
        scope.constant("bias", op.bias, shape[-3:])
    if op.mask:
        scope.demand(len(shape) == 4, f"input {op.input!r}", shape, "rank 4 where there is a mask")
        scope.constant("mask", op.mask, (shape[0], *shape[-2:]))
    scope.writes_values(op.output, shape)


def _attention_value(scope: Scope, op: p.AttentionValue) -> None:
    attention, value = scope.per_head(op.attention, (3, 4)), scope.per_head(op.value, (3, 4))
    square = (*value[:-1], value[-2])
    scope.demand(attention == square, f"attention {op.attention!r}", attention, f"{square}, which fits {op.value!r}")
    inner = attention[-1]
    scope.demand(inner <= MAX_INNER, f"attention {op.attention!r}: inner dimension", inner, f"at most {MAX_INNER}")
    scope.writes_values(op.output, value)


def _layer_norm(scope: Scope, op: p.LayerNorm) -> None:
    shape = scope.values(op.input)
    scope.constant("weight", op.weight, shape[-1:])
    scope.constant("bias", op.bias, shape[-1:])
    scope.demand(1e-12 <= op.eps <= 1.0, "eps", op.eps, "a number in 1e-12..1")
    scope.writes_values(op.output, shape)


def _gelu(scope: Scope, op: p.Gelu) -> None:
    scope.writes_values(op.output, scope.values(op.input))


def _add(scope: Scope, op: p.Add) -> None:
    left, right = scope.values(op.left), scope.values(op.right)
    scope.demand(left == right, f"right {op.right!r}", right, f"{left}, the shape of {op.left!r}")
    scope.writes_values(op.output, left)


def _multiply(scope: Scope, op: p.Multiply) -> None:
    shape = scope.values(op.input)
    scope.constant("factor", op.factor, shape[-1:], (1,))
    scope.writes_values(op.output, shape)


def _tokens(scope: Scope, op: p.Tokens) -> None:
    count, channels = scope.values(op.input, (2,))
    scope.constant("position", op.position, (count, channels))
    if op.prefix not in scope.program.constants:
        raise fail(f"{scope.where}: prefix", repr(op.prefix), "the name of a constant")
    prefix = scope.program.constants[op.prefix].shape
    fits = len(prefix) == 2 and prefix[1] == channels
    scope.demand(fits, f"prefix {op.prefix!r}", prefix, f"(prefix tokens, {channels})")
    scope.writes_values(op.output, (prefix[0] + count, channels))


def _windows(scope: Scope, op: p.WindowPartition | p.WindowMerge, image: tuple[int, ...]) -> tuple[int, ...]:
    """(rows, cols, C) -> (windows, T, C), with the window and the shift checked."""
    rows, cols, channels = image
    (height, width), (down, across) = op.window, op.shift
    scope.demand(1 <= height <= rows and 1 <= width <= cols, "window", op.window, f"(1, 1)..({rows}, {cols})")
    in_window = 0 <= down < height and 0 <= across < width
    scope.demand(in_window, "shift", op.shift, f"(0, 0)..({height - 1}, {width - 1}), inside the window")
    return (-(-rows // height) * -(-cols // width), height * width, channels)


def _rearrange(scope: Scope, source: str, output: str, shape: tuple[int, ...]) -> None:
    """values -> values, or codes with groups along the channels at most -> the same codes."""
    grid = scope.program.buffers[source].grid
    if grid is None:
        scope.writes_values(output, shape)
    else:
        scope.groups_on(source, -1)
        scope.writes_codes(output, shape, grid, 2)


def _window_partition(scope: Scope, op: p.WindowPartition) -> None:
    source = scope.program.buffers[op.input]
    scope.demand(len(source.shape) == 3, f"input {op.input!r}", source.shape, "rank 3")
    windows = _windows(scope, op, source.shape)
    if source.grid is not None:
        scope.no_offset(op.input)
    _rearrange(scope, op.input, op.output, windows)


def _window_merge(scope: Scope, op: p.WindowMerge) -> None:
    source, target = scope.program.buffers[op.input].shape, scope.program.buffers[op.output].shape
    scope.demand(len(target) == 3, f"output {op.output!r}", target, "rank 3")
    windows = _windows(scope, op, target)
    scope.demand(source == windows, f"input {op.input!r}", source, f"{windows}, the windows of {target}")
    _rearrange(scope, op.input, op.output, target)


def _patch_merge(scope: Scope, op: p.PatchMerge) -> None:
    rows, cols, channels = scope.values(op.input, (3,))
    scope.writes_values(op.output, ((rows + 1) // 2, (cols + 1) // 2, 4 * channels))


def _select_token(scope: Scope, op: p.SelectToken) -> None:
    tokens, channels = scope.values(op.input, (2,))
    scope.demand(0 <= op.index < tokens, "index", op.index, f"0..{tokens - 1}")
    scope.writes_values(op.output, (channels,))


def _mean_tokens(scope: Scope, op: p.MeanTokens) -> None:
    shape = scope.values(op.input, (2, 3))
    tokens = int(np.prod(shape[:-1]))
    scope.demand(0 <= op.start < tokens, "start", op.start, f"0..{tokens - 1}")
    scope.writes_values(op.output, shape[-1:])


CHECK: dict[type, Callable[[Scope, Any], None]] = {
    p.Quantize: _quantize,
    p.Patchify: _patchify,
    p.Linear: _linear,
    p.SplitHeads: _split_heads,
    p.MergeHeads: _merge_heads,
    p.QueryKey: _query_key,
    p.Softmax: _softmax,
    p.AttentionValue: _attention_value,
    p.LayerNorm: _layer_norm,
    p.Gelu: _gelu,
    p.Add: _add,
    p.Multiply: _multiply,
    p.Tokens: _tokens,
    p.WindowPartition: _window_partition,
    p.WindowMerge: _window_merge,
    p.PatchMerge: _patch_merge,
    p.SelectToken: _select_token,
    p.MeanTokens: _mean_tokens,
}
