"""Quantization and integer products as QuantizeLinear, DequantizeLinear and MatMul.

    values -> Sub(offset) -> [Div(scales)] -> [Max, Min] -> QuantizeLinear -> DequantizeLinear -> MatMul -> [Mul] -> [Add]
                                     weight codes -> [Cast] -> DequantizeLinear -----------^

Codes are uint8, whatever their sign and width: a signed code c of b bits is stored as c + 2^(b-1), so that the stored number
is below 2^b. Where a width is less than 8, or differs between groups, values are clipped to the learned range before
QuantizeLinear; the clipped type alone would let them run on to 255.

Saturation. Processors with AVX2 but without VNNI multiply uint8 by int8 and add pairs of products in 16 bits, saturating.
With a-bit codes and w-bit weight codes a pair is at most 2 (2^a - 1) 2^(w-1) < 2^(a+w), which fits when a + w <= 15. Only 8-bit
codes and 8-bit weights do not fit; there

    w = 2 (w >> 1) + (w & 1)                                     -64 <= w >> 1 < 64

splits the weight into a 7-bit one and a bit, which is stored as int4, and the product into two that fit.

Blocks. Where scales change along the inner axis of a Linear (`proj`, whose inputs are the heads), one MatMul per block is
needed, here as one batched MatMul over an axis of blocks that is summed away behind it:

    (..., blocks, N, width) x (blocks, width, out) * (blocks, 1, out) -> sum over blocks

The attention output is in this form already, so MergeHeads costs nothing. (DequantizeLinear has a block_size, but runtimes
take weights with block scales for compressed float ones and quantize the other side anew, see `graph`.)
"""

from __future__ import annotations

import numpy as np

from qvit_runtime import program as p
from qvit_runtime.integer_ops import Dequantize, QuantizeRegions

from .graph import storage_width
from .translation import Tensors, Translation, spread

FITTING_BITS = 15  # of a code and a weight together: a pair of products stays in 16 bits


def quantize(t: Translation, op: p.Quantize) -> Tensors:
    """values -> codes"""
    grid, buffer, graph = t.grid(op.output), t.program.buffers[op.output], t.graph
    x = t.value(op.input)
    if grid.offset.any():
        x = graph.add("Sub", x, graph.constant(spread(grid.offset, buffer)))
    scale = np.float32(1.0)
    if grid.groups == 1:
        scale = grid.scale[0]
    else:
        x = graph.add("Div", x, graph.constant(spread(grid.scale, buffer)))
    if len(set(grid.bits)) > 1 and grid.signed:  # elsewhere the lowest code is stored as 0, where uint8 ends
        x = graph.add("Max", x, graph.constant(spread(grid.qmin.astype(np.float32) * scale, buffer)))
    if min(grid.bits) < p.MAX_BITS:
        x = graph.add("Min", x, graph.constant(spread(grid.qmax.astype(np.float32) * scale, buffer)))
    return Tensors((_pair(t, x, scale, _zero_point(grid)),), (float(scale),))


def _zero_point(grid: p.Grid) -> int:
    return 1 << (max(grid.bits) - 1) if grid.signed else 0


def _pair(t: Translation, values: str, scale: float | np.float32, zero: int) -> str:
    """QuantizeLinear to uint8 and back."""
    how = (t.graph.constant(np.array(scale, np.float32)), t.graph.constant(np.array(zero, np.uint8)))
    return t.graph.add("DequantizeLinear", t.graph.add("QuantizeLinear", values, *how), *how)


def quantize_regions(t: Translation, op: QuantizeRegions) -> Tensors:
    """values -> two-scaled codes: each region sees 0 where the other one has the value"""
    grid, graph = t.grid(op.output), t.graph
    low, high = grid.scale
    x = graph.add("Sub", t.value(op.input), t.number(grid.offset[0])) if grid.offset.any() else t.value(op.input)
    code = graph.add("Round", graph.add("Div", x, t.number(low)))
    is_low = graph.add("LessOrEqual", code, t.number(grid.qmax[0]))
    parts = (
        _pair(t, graph.add("Where", is_low, x, t.number(0.0)), low, 0),
        _pair(
            t, graph.add("Min", graph.add("Where", is_low, t.number(0.0), x), t.number(grid.qmax[1] * high)), high, 0
        ),
    )
    return Tensors(parts, (float(low), float(high)))


def dequantize(t: Translation, op: Dequantize) -> Tensors:
    """codes -> values"""
    buffer, x = t.program.buffers[op.input], t.merged(op.input)
    values = scaled(t, x.names[0], spread(_rest(t, op.input), buffer))
    return Tensors((t.graph.add("Add", values, t.graph.constant(spread(t.grid(op.input).offset, buffer))),))


def _rest(t: Translation, buffer: str) -> np.ndarray:
    """What the tensors of a buffer of codes are still to be multiplied with: (groups,) float32."""
    units = np.array(t.tensors[buffer].units, np.float64)
    return (t.grid(buffer).scale.astype(np.float64) / units).astype(np.float32)


def scaled(t: Translation, tensor: str, factor: np.ndarray) -> str:
    """tensor * factor, or the tensor when that is 1."""
    if np.all(factor == 1.0):
        return tensor
    return t.graph.add("Mul", tensor, t.graph.constant(np.asarray(factor, np.float32)))


def linear(t: Translation, op: p.Linear) -> Tensors:
    """codes (..., in) -> values (..., out)"""
    weight, held = t.program.weights[op.weight], t.tensors[op.input]
    factors = _rest(t, op.input).reshape(len(held.names), -1)  # one row per tensor
    blocks = max(weight.scale.shape[1], factors.shape[1])
    if blocks == 1 or held.heads != blocks:
        held = t.merged(op.input)
    multiply = _plain if blocks == 1 else _blocked
    parts = zip(held.names, held.units, factors, strict=True)
    products = [multiply(t, op, x, unit, factor) for x, unit, factor in parts]
    total = products[0] if len(products) == 1 else t.graph.add("Add", *products)
    return Tensors((t.graph.add("Add", total, t.float_constant(op.bias)),))


def _plain(t: Translation, op: p.Linear, x: str, unit: float, factors: np.ndarray) -> str:
    """One scale per output channel: the scale of the DequantizeLinear of the weight."""
    weight = t.program.weights[op.weight]
    rows = weight.scale[:, 0].astype(np.float64) * factors[0]
    if len(rows) > 1:
        rows = np.repeat(rows, len(weight.codes) // len(rows))
    return _multiply(t, op, x, unit, weight.codes.T, rows if len(rows) > 1 else rows.reshape(()))


def _blocked(t: Translation, op: p.Linear, x: str, unit: float, factors: np.ndarray) -> str:
    """One scale per block of input channels (and per output channel): applied to the products of the blocks."""
    weight, graph = t.program.weights[op.weight], t.graph
    out_features, in_features = weight.codes.shape
    (row_groups, columns), lead = weight.scale.shape, t.shape(op.output)[:-1]
    blocks = max(columns, len(factors))
    width = in_features // blocks
    if t.tensors[op.input].heads != blocks:
        rows = lead or (1,)
        x = t.swap(graph.reshape(x, *rows, blocks, width), len(rows) + 3)
    codes = weight.codes.reshape(out_features, blocks, width).transpose(1, 2, 0)
    product = _multiply(t, op, x, unit, codes, np.ones(()))
    scale = np.repeat(weight.scale.T.astype(np.float64), blocks // columns, axis=0)
    scale = scale * np.repeat(factors.astype(np.float64), blocks // len(factors))[:, None]
    if row_groups > 1:
        scale = np.repeat(scale, out_features // row_groups, axis=1)
    total = graph.add("ReduceSum", scaled(t, product, scale[:, None, :]), graph.axes(-3), keepdims=0)
    return total if lead else graph.reshape(total, out_features)


def _multiply(t: Translation, op: p.Linear, x: str, unit: float, codes: np.ndarray, scale: np.ndarray) -> str:
    """x, which holds code * unit, times weight codes (..., in, out) that stand for code * scale, a scalar or (out,)."""
    bits, name, grid = int(t.program.weights[op.weight].code_bits.max()), op.weight, t.grid(op.input)
    if t.graph.kinds[x] != "DequantizeLinear":
        x = _pair(t, x, unit, _zero_point(grid))
    if max(grid.bits) + bits <= FITTING_BITS:
        return _matmul(t, x, codes, storage_width(bits, t.int2), scale, name)
    halves = _matmul(t, x, codes >> 1, 8, 2 * scale, f"{name}.half")
    return t.graph.add("Add", halves, _matmul(t, x, codes & 1, 4, scale, f"{name}.odd"))


def _matmul(t: Translation, x: str, codes: np.ndarray, width: int, scale: np.ndarray, name: str) -> str:
    graph = t.graph
    stored = graph.integers(codes, width, name)
    weight = graph.add("DequantizeLinear", stored, graph.constant(scale.astype(np.float32)), axis=codes.ndim - 1)
    return graph.add("MatMul", x, weight)


def query_key(t: Translation, op: p.QueryKey) -> Tensors:
    """codes q, k -> values q k^T"""
    query, key = t.tensors[op.query].names[0], t.tensors[op.key].names[0]
    rank = len(t.shape(op.key)) + 1
    transposed = t.graph.add("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2])
    factor = _head_rest(t, op.query) * _head_rest(t, op.key) * op.factor
    return Tensors((scaled(t, t.graph.add("MatMul", query, transposed), factor),))


def attention_value(t: Translation, op: p.AttentionValue) -> Tensors:
    """codes attention, v -> values attention v; two-scaled attention is two products"""
    value = t.tensors[op.value].names[0]
    products = [t.graph.add("MatMul", part, value) for part in t.tensors[op.attention].names]
    total = products[0] if len(products) == 1 else t.graph.add("Add", *products)
    factor = _head_rest(t, op.value)
    if len(products) == 1:
        factor = factor * _head_rest(t, op.attention)
    return Tensors((scaled(t, total, factor),))


def _head_rest(t: Translation, buffer: str) -> np.ndarray:
    """`_rest` of a buffer (..., H, N, d), float64, a scalar or (H, 1, 1)."""
    return spread(_rest(t, buffer).astype(np.float64), t.program.buffers[buffer])
