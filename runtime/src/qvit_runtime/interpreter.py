"""The reference interpreter: what every op of a Program means, in numpy.

Values are float32 between ops. Inside an op everything is computed in float64 and rounded once at its end, so that the
interpreter is the accurate end of every comparison. Codes are int16 (they need 9 bits at most; wide ones are int32 and
int64). All arrays have a leading batch axis; the last axes are those of the op's docstring in `program`.

One function per op, one dict from op to function: a new op is a new function here, or in `interpreter_integer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from . import integer_ops as i
from . import program as p
from .integer import float_matmul, head_scale, quantize
from .interpreter_integer import EXECUTE_INTEGER, Arrays, flat_tokens

PASS = (
    1 << 17
)  # elements of the largest buffer that go through the ops together: a megabyte of float64 stays in the cache


def run(program: p.Program, images: np.ndarray) -> np.ndarray:
    """Run a program on normalised images, float32 (batch, *input shape) -> float32 (batch, *output shape)."""
    largest = max(math.prod(buffer.shape) for buffer in program.buffers.values())
    step = max(1, PASS // largest)
    parts = [images[at : at + step] for at in range(0, max(1, len(images)), step)]  # no images are one part too
    return np.concatenate([trace(program, part, keep=(program.output,))[program.output] for part in parts])


def trace(program: p.Program, images: np.ndarray, keep: tuple[str, ...] | None = None) -> Arrays:
    """Run and return buffers by name: those in `keep`, or all of them.

    Raises ValueError when the images do not have the input's shape.
    """
    expected = program.buffers[program.input].shape
    if images.shape[1:] != expected:
        raise ValueError(
            f"images have shape {images.shape}; the program takes (batch, {', '.join(map(str, expected))})"
        )
    live: Arrays = {program.input: images.astype(np.float32)}
    last_use = _last_use(program)
    for step, op in enumerate(program.ops):
        output = EXECUTE[type(op)](program, op, live)
        shape = program.buffers[op.output].shape
        live[op.output] = output.reshape(len(images), *shape)
        for name in [name for name in live if keep is not None and last_use.get(name, -1) <= step and name not in keep]:
            del live[name]
    return live


def _last_use(program: p.Program) -> dict[str, int]:
    uses: dict[str, int] = {}
    for step, op in enumerate(program.ops):
        for name in inputs_of(op):
            uses[name] = step
    return uses


def inputs_of(op: p.Op) -> tuple[str, ...]:
    """The buffers an op reads."""
    match op:
        case p.QueryKey() | i.QueryKeyAccumulate():
            return (op.query, op.key)
        case p.AttentionValue() | i.AttentionValueAccumulate() | i.ShiftAttentionValue():
            return (op.attention, op.value)
        case p.Add() | i.AddRequantize():
            return (op.left, op.right)
        case _:
            return (op.input,)


@lru_cache(maxsize=1)
def _erf_table() -> tuple[np.ndarray, np.ndarray, float, float]:
    step, limit = 1.0 / 512.0, 6.0
    grid = np.arange(-limit, limit + step, step)
    return np.array([math.erf(x) for x in grid]), 2.0 / np.sqrt(np.pi) * np.exp(-grid * grid), step, limit


def erf(x: np.ndarray) -> np.ndarray:
    """Error function of a float64 array, absolute error below 1e-12.

    Cubic Hermite interpolation of exact values and slopes on a grid of 1/512; numpy has no erf of its own.
    """
    value, slope, step, limit = _erf_table()
    position = (np.clip(x, -limit, limit - step) + limit) / step
    index = position.astype(np.int64)
    t = position - index
    t2, t3 = t * t, t * t * t
    inside = (
        value[index] * (2 * t3 - 3 * t2 + 1)
        + value[index + 1] * (3 * t2 - 2 * t3)
        + step * (slope[index] * (t3 - 2 * t2 + t) + slope[index + 1] * (t3 - t2))
    )
    return np.where(x >= limit - step, 1.0, np.where(x <= -limit, -1.0, inside))


def _quantize(program: p.Program, op: p.Quantize, live: Arrays) -> np.ndarray:
    grid = program.buffers[op.output].grid
    assert grid is not None
    return quantize(live[op.input], grid)


def _patchify(program: p.Program, op: p.Patchify, live: Arrays) -> np.ndarray:
    codes = live[op.input]
    batch, channels, height, width = codes.shape
    rows, cols = height // op.patch, width // op.patch
    cut = codes[:, :, : rows * op.patch, : cols * op.patch].reshape(batch, channels, rows, op.patch, cols, op.patch)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, channels * op.patch**2)


def _linear(program: p.Program, op: p.Linear, live: Arrays) -> np.ndarray:
    weight, grid = program.weights[op.weight], program.buffers[op.input].grid
    assert grid is not None
    codes = live[op.input]
    out_features, in_features = len(weight.codes), codes.shape[-1]
    halves = in_features // weight.codes.shape[1]  # 2 for the two regions of QuantizeRegions, else 1
    weight_codes, scales = np.tile(weight.codes, (1, halves)), np.tile(weight.scale, (1, halves))
    row_groups, columns = scales.shape
    blocks = max(columns, grid.groups)  # column blocks that have one input scale and one weight scale each
    width = in_features // blocks
    total = np.zeros((*codes.shape[:-1], out_features))
    for block in range(blocks):
        part = slice(block * width, (block + 1) * width)
        acc = float_matmul(codes[..., part], weight_codes[:, part].T)
        weight_scale = scales[:, block * columns // blocks].astype(np.float64)
        input_scale = float(grid.scale[block * grid.groups // blocks])
        total += acc * (np.repeat(weight_scale, out_features // row_groups) * input_scale)
    return (total + program.constants[op.bias].astype(np.float64)).astype(np.float32)


def _split_heads(program: p.Program, op: p.SplitHeads, live: Arrays) -> np.ndarray:
    values = live[op.input]
    heads, _, dim = program.buffers[op.output].shape[-3:]
    width = heads * dim
    part = values[..., op.part * width : (op.part + 1) * width]
    return part.reshape(*part.shape[:-1], heads, dim).swapaxes(-3, -2)


def _merge_heads(program: p.Program, op: p.MergeHeads, live: Arrays) -> np.ndarray:
    codes = live[op.input].swapaxes(-3, -2)
    *rows, heads, dim = codes.shape
    return codes.reshape(*rows, heads * dim)


def _query_key(program: p.Program, op: p.QueryKey, live: Arrays) -> np.ndarray:
    acc = float_matmul(live[op.query], live[op.key].swapaxes(-1, -2))
    factor = head_scale(program.buffers[op.query]) * head_scale(program.buffers[op.key]) * op.factor
    return (acc * factor).astype(np.float32)


def _softmax(program: p.Program, op: p.Softmax, live: Arrays) -> np.ndarray:
    scores = live[op.input].astype(np.float64)
    if op.bias:
        scores = scores + program.constants[op.bias]
    if op.mask:
        scores = scores + program.constants[op.mask][:, None]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _attention_value(program: p.Program, op: p.AttentionValue, live: Arrays) -> np.ndarray:
    attention, value = live[op.attention], live[op.value]
    value_scale = head_scale(program.buffers[op.value])
    if attention.shape[-1] == value.shape[-2]:
        factor = head_scale(program.buffers[op.attention]) * value_scale
        return (float_matmul(attention, value) * factor).astype(np.float32)
    regions = program.buffers[op.attention].grid  # of QuantizeRegions: both halves multiply the same value
    assert regions is not None
    low, high = (float_matmul(half, value) for half in np.split(attention, 2, axis=-1))
    total = low * float(regions.scale[0]) + high * float(regions.scale[1])
    return (total * value_scale).astype(np.float32)


def _layer_norm(program: p.Program, op: p.LayerNorm, live: Arrays) -> np.ndarray:
    values = live[op.input].astype(np.float64)
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt(variance + op.eps)
    return (normal * program.constants[op.weight] + program.constants[op.bias]).astype(np.float32)


def _gelu(program: p.Program, op: p.Gelu, live: Arrays) -> np.ndarray:
    values = live[op.input].astype(np.float64)
    return (values * 0.5 * (1.0 + erf(values * np.sqrt(0.5)))).astype(np.float32)


def _add(program: p.Program, op: p.Add, live: Arrays) -> np.ndarray:
    return live[op.left] + live[op.right]


def _multiply(program: p.Program, op: p.Multiply, live: Arrays) -> np.ndarray:
    return live[op.input] * program.constants[op.factor]


def _tokens(program: p.Program, op: p.Tokens, live: Arrays) -> np.ndarray:
    values = live[op.input] + program.constants[op.position]
    prefix = program.constants[op.prefix]
    return np.concatenate([np.broadcast_to(prefix, (len(values), *prefix.shape)), values], axis=1)


def _window_grid(op: p.WindowPartition | p.WindowMerge, rows: int, cols: int) -> tuple[int, int]:
    return -(-rows // op.window[0]), -(-cols // op.window[1])


def _window_partition(program: p.Program, op: p.WindowPartition, live: Arrays) -> np.ndarray:
    codes = np.roll(live[op.input], (-op.shift[0], -op.shift[1]), axis=(1, 2))
    batch, rows, cols, channels = codes.shape
    (height, width), (down, across) = op.window, _window_grid(op, rows, cols)
    padded = np.pad(codes, ((0, 0), (0, down * height - rows), (0, across * width - cols), (0, 0)))
    windows = padded.reshape(batch, down, height, across, width, channels).swapaxes(2, 3)
    return windows.reshape(batch, down * across, height * width, channels)


def _window_merge(program: p.Program, op: p.WindowMerge, live: Arrays) -> np.ndarray:
    rows, cols, channels = program.buffers[op.output].shape
    (height, width), (down, across) = op.window, _window_grid(op, rows, cols)
    windows = live[op.input].reshape(-1, down, across, height, width, channels).swapaxes(2, 3)
    image = windows.reshape(-1, down * height, across * width, channels)[:, :rows, :cols]
    return np.roll(image, op.shift, axis=(1, 2))


def _patch_merge(program: p.Program, op: p.PatchMerge, live: Arrays) -> np.ndarray:
    values = live[op.input]
    batch, rows, cols, channels = values.shape
    padded = np.pad(values, ((0, 0), (0, rows % 2), (0, cols % 2), (0, 0)))
    squares = padded.reshape(batch, (rows + 1) // 2, 2, (cols + 1) // 2, 2, channels)
    return squares.transpose(0, 1, 3, 4, 2, 5)


def _select_token(program: p.Program, op: p.SelectToken, live: Arrays) -> np.ndarray:
    return live[op.input][:, op.index]


def _mean_tokens(program: p.Program, op: p.MeanTokens, live: Arrays) -> np.ndarray:
    tokens = flat_tokens(live[op.input])[:, op.start :]
    return tokens.astype(np.float64).mean(axis=1).astype(np.float32)


EXECUTE: dict[type, Callable[..., np.ndarray]] = {
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
    **EXECUTE_INTEGER,
}
