"""What the integer-only ops mean, in numpy: the half of the interpreter that has no float between its ends.

Codes come in as int16 (up to 8 bits), int32 (16 bits) or int64 (32 bits), are widened to int64, and go out in the type of
their grid. The formulas are those of the docstrings in `integer_ops`, line by line; their arithmetic is `integer_shift`.
Only the borders touch floats: QuantizeRegions on its way in, Dequantize and ShiftAttentionValue on their way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from . import integer_ops as i
from . import program as p
from .integer import code_dtype, expand_groups, head_scale, integer_matmul
from .integer_shift import floor_log2, integer_sqrt, requantize, shift_exp

Arrays = dict[str, np.ndarray]


def _grid(program: p.Program, name: str) -> p.Grid:
    grid = program.buffers[name].grid
    assert grid is not None
    return grid


def _clip(program: p.Program, name: str, codes: np.ndarray) -> np.ndarray:
    """int64 (batch, ...) -> codes of this buffer: clipped to its grid, in its dtype."""
    grid = _grid(program, name)
    low = expand_groups(grid.qmin, codes.shape, grid.axis + 1)
    high = expand_groups(grid.qmax, codes.shape, grid.axis + 1)
    return np.clip(codes, low, high).astype(code_dtype(grid))


def _rescale(program: p.Program, live: Arrays, name: str, multiplier: str, shift: str) -> np.ndarray:
    """R of a buffer, its multiplier and shift spread over the groups of its grid: int64 (batch, ...)."""
    codes, axis = live[name], _grid(program, name).axis + 1
    m, e = (expand_groups(program.integers[field], codes.shape, axis) for field in (multiplier, shift))
    return requantize(codes, m, e)


def flat_tokens(x: np.ndarray) -> np.ndarray:
    """(batch, N, C), or an image (batch, rows, cols, C) as one."""
    batch, *tokens, channels = x.shape
    return x.reshape(batch, math.prod(tokens), channels)


def _dequantize(program: p.Program, op: i.Dequantize, live: Arrays) -> np.ndarray:
    codes, grid = live[op.input], _grid(program, op.input)
    scale = expand_groups(grid.scale.astype(np.float64), codes.shape, grid.axis + 1)
    offset = expand_groups(grid.offset.astype(np.float64), codes.shape, grid.axis + 1)
    return (codes * scale + offset).astype(np.float32)


def _quantize_regions(program: p.Program, op: i.QuantizeRegions, live: Arrays) -> np.ndarray:
    grid = _grid(program, op.output)
    (low_scale, high_scale), (low_top, high_top) = grid.scale, grid.qmax
    above = live[op.input] - grid.offset[0]  # float32 throughout, as in `quantize`
    if np.isnan(above).any():
        raise FloatingPointError("NaN cannot be quantized: the values in front of a QuantizeRegions op are not finite")
    low = np.rint(np.maximum(above / low_scale, 0))
    high = np.rint(np.minimum(above / high_scale, high_top))
    is_low = low <= low_top
    return np.concatenate([np.where(is_low, low, 0), np.where(is_low, 0, high)], axis=-1).astype(np.int16)


def _linear_accumulate(program: p.Program, op: i.LinearAccumulate, live: Arrays) -> np.ndarray:
    acc = integer_matmul(live[op.input], program.weights[op.weight].codes.T)
    return acc + program.integers[op.bias] if op.bias else acc


def _query_key_accumulate(program: p.Program, op: i.QueryKeyAccumulate, live: Arrays) -> np.ndarray:
    return integer_matmul(live[op.query], live[op.key].swapaxes(-1, -2))


def _attention_value_accumulate(program: p.Program, op: i.AttentionValueAccumulate, live: Arrays) -> np.ndarray:
    return integer_matmul(live[op.attention], live[op.value])


def _requantize(program: p.Program, op: i.Requantize, live: Arrays) -> np.ndarray:
    return _clip(program, op.output, _rescale(program, live, op.input, op.multiplier, op.shift))


def _add_requantize(program: p.Program, op: i.AddRequantize, live: Arrays) -> np.ndarray:
    left = _rescale(program, live, op.left, op.left_multiplier, op.left_shift)
    right = _rescale(program, live, op.right, op.right_multiplier, op.right_shift)
    return _clip(program, op.output, left + right)


def _integer_tokens(program: p.Program, op: i.IntegerTokens, live: Arrays) -> np.ndarray:
    codes = _rescale(program, live, op.input, op.multiplier, op.shift) + program.integers[op.position]
    prefix = program.integers[op.prefix].astype(np.int64)
    return _clip(
        program, op.output, np.concatenate([np.broadcast_to(prefix, (len(codes), *prefix.shape)), codes], axis=1)
    )


def _sum_tokens(program: p.Program, op: i.SumTokens, live: Arrays) -> np.ndarray:
    return flat_tokens(live[op.input])[:, op.start :].sum(axis=1, dtype=np.int64)


def _integer_layer_norm(program: p.Program, op: i.IntegerLayerNorm, live: Arrays) -> np.ndarray:
    x = live[op.input].astype(np.int64) - op.zero
    if op.exponent:
        x = x << program.integers[op.exponent]
    channels = x.shape[-1]
    y = x - (2 * x.sum(axis=-1, keepdims=True) + channels) // (2 * channels)
    k = np.maximum(integer_sqrt((y * y).sum(axis=-1, keepdims=True)), 1)
    z = (y * ((2**31 - 1) // k)) >> 1
    scaled = (z * program.integers[op.multiplier]) >> (op.shift - 8)
    return _clip(program, op.output, (scaled + program.integers[op.bias] + 128) >> 8)


def _shift_gelu(program: p.Program, op: i.ShiftGelu, live: Arrays) -> np.ndarray:
    x = live[op.input].astype(np.int64)
    pivot = np.maximum(x, 0)
    e1, e2 = shift_exp(x - pivot, op.unit, op.fraction), shift_exp(-pivot, op.unit, op.fraction)
    return x * ((e1 * ((2**31 - 1) // (e1 + e2))) >> 23)


def _biased_scores(program: p.Program, op: i.Shiftmax | i.LogIntSoftmax, live: Arrays) -> np.ndarray:
    """x + bias + mask, int64 (batch, ..., H, N, N)."""
    scores = live[op.input].astype(np.int64)
    if op.bias:
        scores = scores + program.integers[op.bias]
    if op.mask:
        scores = scores + program.integers[op.mask][:, None]
    return scores


def _shiftmax(program: p.Program, op: i.Shiftmax, live: Arrays) -> np.ndarray:
    scores, (bits,) = _biased_scores(program, op, live), _grid(program, op.output).bits
    e = shift_exp(scores - scores.max(axis=-1, keepdims=True), op.unit, op.fraction)
    halves = (e * ((2**31 - 1) // e.sum(axis=-1, keepdims=True))) >> (30 - bits)
    return np.minimum((halves + 1) >> 1, 2**bits - 1).astype(np.int16)


def _log_int_softmax(program: p.Program, op: i.LogIntSoftmax, live: Arrays) -> np.ndarray:
    scores, (bits,) = _biased_scores(program, op, live), _grid(program, op.output).bits
    d = np.minimum(scores.max(axis=-1, keepdims=True) - scores, 30 * op.ln2)
    q = d // op.ln2
    r = q * op.ln2 - d
    e = (r * (r + op.linear) + op.constant) << (30 - q)
    quotient, rest = np.divmod(e.sum(axis=-1, keepdims=True), e)
    ratio = quotient + (rest >= e - rest)
    f = floor_log2(ratio)
    code = f + (ratio >= 3 * (np.int64(1) << f) - ratio)
    return np.minimum(code, 2**bits - 1).astype(np.int16)


def _shift_attention_value(program: p.Program, op: i.ShiftAttentionValue, live: Arrays) -> np.ndarray:
    codes, (bits,) = live[op.attention].astype(np.int64), _grid(program, op.attention).bits
    fraction = i.shift_fraction(bits)
    powers = np.where(codes <= fraction, np.int64(1) << np.maximum(fraction - codes, 0), 0)
    acc = integer_matmul(powers, live[op.value])
    return (acc * head_scale(program.buffers[op.value]) * 2.0**-fraction).astype(np.float32)


EXECUTE_INTEGER: dict[type, Callable[..., np.ndarray]] = {
    i.Dequantize: _dequantize,
    i.QuantizeRegions: _quantize_regions,
    i.LinearAccumulate: _linear_accumulate,
    i.QueryKeyAccumulate: _query_key_accumulate,
    i.AttentionValueAccumulate: _attention_value_accumulate,
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
