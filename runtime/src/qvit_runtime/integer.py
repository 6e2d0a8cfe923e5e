"""The normative integer arithmetic: quantize, dequantize and the integer products. Everything else is tested against it.

  quantize     code  = rint(clip((value - offset) / scale, qmin, qmax))        rint: half to even; float32 division
  dequantize   value = code * scale + offset
  matmul       acc   = sum_k x[k] * w[k]                                       exact

The division is a division, not a multiplication by 1 / scale, and it is done in float32: torch, numpy, C++ and ONNX agree
on it bit for bit. A backend that fuses an epilogue with the quantization behind it may multiply by one float32 factor;
its code may then differ by one where the exact value lies within 1e-3 of a step from a tie, and tests count those.

Products go through BLAS, which is exact while no sum, however it is ordered, can leave the integers that its floats hold:
up to 2^24 in float32, up to 2^53 in float64, where 8 x 8-bit products stay exact for any inner dimension below 2^38.
"""

from __future__ import annotations

import numpy as np

from .program import MAX_BITS, Buffer, Grid


def expand_groups(per_group: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Spread a (groups,) array over `axis` of `shape` in equal contiguous blocks; broadcastable against `shape`."""
    length = shape[axis]
    groups = len(per_group)
    if length % groups:
        raise ValueError(f"axis {axis} of {shape} does not divide into {groups} equal groups")
    view = [1] * len(shape)
    view[axis] = length
    return np.repeat(per_group, length // groups).reshape(view)


def code_dtype(grid: Grid) -> type[np.signedinteger]:
    """How codes of this grid are kept: int16 up to 8 bits (unsigned ones need 9), int32 for 16 bits, int64 for 32."""
    bits = max(grid.bits)
    return np.int16 if bits <= MAX_BITS else np.int32 if bits == 16 else np.int64


def head_scale(buffer: Buffer) -> np.ndarray:
    """The scale of a buffer of codes as float64, broadcastable against (batch, *its shape)."""
    assert buffer.grid is not None
    return expand_groups(buffer.grid.scale.astype(np.float64), (1, *buffer.shape), buffer.grid.axis + 1)


def batch_axis(grid: Grid) -> int:
    """Axis of the groups in an array that has a leading batch axis."""
    return grid.axis + 1


def quantize(values: np.ndarray, grid: Grid) -> np.ndarray:
    """float32 (batch, ...) -> int16 codes of the same shape. NaN is refused: it has no code."""
    axis = batch_axis(grid)
    scale = expand_groups(grid.scale.astype(np.float32), values.shape, axis)
    offset = expand_groups(grid.offset.astype(np.float32), values.shape, axis)
    steps = (values.astype(np.float32, copy=False) - offset) / scale
    if np.isnan(steps).any():
        raise FloatingPointError("NaN cannot be quantized: the values in front of a Quantize op are not finite")
    low = expand_groups(grid.qmin.astype(np.float32), values.shape, axis)
    high = expand_groups(grid.qmax.astype(np.float32), values.shape, axis)
    np.clip(steps, low, high, out=steps)
    return np.rint(steps, out=steps).astype(np.int16)


def dequantize(codes: np.ndarray, grid: Grid) -> np.ndarray:
    """int codes (batch, ...) -> float32 values."""
    axis = batch_axis(grid)
    scale = expand_groups(grid.scale.astype(np.float32), codes.shape, axis)
    offset = expand_groups(grid.offset.astype(np.float32), codes.shape, axis)
    return codes.astype(np.float32) * scale + offset


def integer_matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact product of integer arrays (..., m, k) @ (..., k, n) -> int64 (..., m, n)."""
    return float_matmul(left, right).astype(np.int64)


def float_matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same integers in float64. Where no sum can leave 2^24 they are computed in float32, in half the time."""
    bound = left.shape[-1] * _largest(left) * _largest(right)
    kind = np.float32 if bound <= 1 << 24 else np.float64
    return np.matmul(left.astype(kind), right.astype(kind)).astype(np.float64, copy=False)


def _largest(codes: np.ndarray) -> int:
    """Largest magnitude; not np.abs, which leaves -128 in int8 as it is."""
    return max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
