"""What each op demands of the buffers, weights and constants it names: one function per op, like the interpreter.

Each function looks at the input buffers, which earlier ops have been checked to write, and compares the declared output
buffer with what the op really produces. Two questions come back in every op that handles codes:

  Which axis may the groups divide?  A matrix product can only take a scale out of its sum where the scale is constant
  along the summed axis, or where the sum is cut into blocks (Linear's column groups). One group fits anywhere.

  May the grid have an offset?  Linear may (freeze folds it into the bias). A product of two activations may not, and
  neither may a window partition or a patch merge, whose padding is code 0 and has to mean the value 0.

The ops that move elements about take codes of any width; everything else here stays at 8 bits. The integer-only ops are
in `check_ops_integer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import integer_ops as i
from . import program as p
from .check_data import fail
from .check_ops_integer import CHECK_INTEGER, scores_of
from .check_scope import WIDEST, Scope


def _quantize(scope: Scope, op: p.Quantize) -> None:
    scope.rounds_to(op.output, scope.values(op.input), p.MAX_BITS)


def _patchify(scope: Scope, op: p.Patchify) -> None:
    (channels, height, width), grid = scope.codes(op.input, (3,))
    scope.one_group(op.input)
    scope.demand(1 <= op.patch <= min(height, width), "patch", op.patch, f"1..{min(height, width)}")
    rows, cols, inner = height // op.patch, width // op.patch, channels * op.patch**2
    rank = len(scope.program.buffers[op.output].shape)
    scope.writes_codes(op.output, (rows, cols, inner) if rank == 3 else (rows * cols, inner), grid, 0)


def _linear(scope: Scope, op: p.Linear) -> None:
    shape, grid = scope.codes(op.input)
    scope.groups_on(op.input, -1)
    weight = scope.weight(op.weight)
    out_features, in_features = weight.codes.shape
    halves = 2 if scope.writers[op.input] is i.QuantizeRegions else 1
    expected = f"{shape[-1] // halves}, {'half of what' if halves == 2 else 'as'} {op.input!r} has"
    scope.demand(in_features * halves == shape[-1], f"inputs of {op.weight!r}", in_features, expected)
    columns = weight.scale.shape[1] * halves
    fits = max(columns, grid.groups) % min(columns, grid.groups) == 0
    found = f"{columns} against {grid.groups} input groups"
    scope.demand(fits, f"column groups of {op.weight!r}", found, "numbers of which one divides the other")
    scope.constant("bias", op.bias, (out_features,))
    scope.writes_values(op.output, (*shape[:-1], out_features))


def _split_heads(scope: Scope, op: p.SplitHeads) -> None:
    source = scope.program.buffers[op.input]
    scope.demand(len(source.shape) in (2, 3), f"input {op.input!r}", source.shape, "rank 2 or 3")
    *lead, tokens, channels = source.shape
    scope.demand(1 <= op.parts <= channels, "parts", op.parts, f"1..{channels}")
    scope.demand(0 <= op.part < op.parts, "part", op.part, f"0..{op.parts - 1}")
    output = scope.program.buffers[op.output].shape
    scope.demand(len(output) == len(lead) + 3, f"output {op.output!r}", output, f"rank {len(lead) + 3}")
    heads, dim = output[-3], output[-1]
    found = f"{op.parts} parts x {heads} heads x {dim}"
    scope.demand(op.parts * heads * dim == channels, f"output {op.output!r}", found, f"a product of {channels}")
    shape = (*lead, heads, tokens, dim)
    if source.grid is None:
        scope.writes_values(op.output, shape)
    else:
        scope.writes_codes(op.output, shape, _grid_of_part(scope, op, source.grid, heads), len(lead))


def _grid_of_part(scope: Scope, op: p.SplitHeads, grid: p.Grid, heads: int) -> p.Grid:
    """One group for all, or the part's share of groups that are as many as parts, or as parts x heads."""
    scope.groups_on(op.input, -1)
    allowed = (1, op.parts, op.parts * heads)
    scope.demand(grid.groups in allowed, f"groups of {op.input!r}", grid.groups, " or ".join(map(str, allowed)))
    if grid.groups == 1:
        return grid
    share = grid.groups // op.parts
    own = slice(op.part * share, (op.part + 1) * share)
    return replace(grid, bits=grid.bits[own], scale=grid.scale[own], offset=grid.offset[own])


def _merge_heads(scope: Scope, op: p.MergeHeads) -> None:
    shape, grid = scope.codes(op.input, (3, 4), WIDEST)
    scope.groups_on(op.input, -3)
    *lead, heads, tokens, dim = shape
    scope.writes_codes(op.output, (*lead, tokens, heads * dim), grid, len(lead) + 1)


def _query_key(scope: Scope, op: p.QueryKey) -> None:
    scores = scores_of(scope, op)
    scope.demand(1e-12 <= op.factor <= 1e12, "factor", op.factor, "a number in 1e-12..1e12")
    scope.writes_values(op.output, scores)


def _softmax(scope: Scope, op: p.Softmax) -> None:
    shape = scope.values(op.input, (3, 4))
    if op.bias:
        scope.constant("bias", op.bias, shape[-3:])
    if op.mask:
        scope.demand(len(shape) == 4, f"input {op.input!r}", shape, "rank 4 where there is a mask")
        scope.constant("mask", op.mask, (shape[0], *shape[-2:]))
    scope.writes_values(op.output, shape)


def _attention_value(scope: Scope, op: p.AttentionValue) -> None:
    value = scope.per_head(op.value, (3, 4))
    if scope.writers[op.attention] is i.QuantizeRegions:
        attention, _ = scope.codes(op.attention)
        scope.no_offset(op.attention)
        square = (*value[:-1], 2 * value[-2])
    else:
        attention = scope.per_head(op.attention, (3, 4))
        square = (*value[:-1], value[-2])
    scope.demand(attention == square, f"attention {op.attention!r}", attention, f"{square}, which fits {op.value!r}")
    scope.bounded(op)
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
    """values (..., C) -> values (..., C), or codes with groups along the channels at most -> the same codes."""
    grid = scope.program.buffers[source].grid
    if grid is None:
        scope.writes_values(output, shape)
    else:
        scope.groups_on(source, -1)
        scope.writes_codes(output, shape, grid, len(shape) - 1)


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
    source = scope.program.buffers[op.input]
    scope.demand(len(source.shape) == 3, f"input {op.input!r}", source.shape, "rank 3")
    rows, cols, channels = source.shape
    if source.grid is not None:
        scope.one_group(op.input)
        scope.no_offset(op.input)
    _rearrange(scope, op.input, op.output, ((rows + 1) // 2, (cols + 1) // 2, 4 * channels))


def _select_token(scope: Scope, op: p.SelectToken) -> None:
    source = scope.program.buffers[op.input].shape
    scope.demand(len(source) == 2, f"input {op.input!r}", source, "rank 2")
    scope.demand(0 <= op.index < source[0], "index", op.index, f"0..{source[0] - 1}")
    _rearrange(scope, op.input, op.output, source[1:])


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
    **CHECK_INTEGER,
}
