"""Fake quantization lands on the integer grid, stays there, and is the grid of the normative integer code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.quantizers.fake_quantize import code_range, fake_quantize
from qvit_runtime import integer
from qvit_runtime.program import Grid

EVERY_BITS = pytest.mark.parametrize("bits", range(2, 9))
KINDS = pytest.mark.parametrize(
    ("signed", "offset"), [(True, 0.0), (False, 0.0), (False, -0.17)], ids=["signed", "unsigned", "offset"]
)


def grid_of(bits: tuple[int, ...], signed: bool, scale: np.ndarray, offset: np.ndarray, axis: int) -> Grid:
    return Grid(bits, signed, scale.astype(np.float32), offset.astype(np.float32), axis)


def fake(x: np.ndarray, grid: Grid) -> np.ndarray:
    """qvit's fake quantization on the runtime's grid; x has a batch axis."""
    count = grid.groups
    return fake_quantize(
        torch.from_numpy(x),
        torch.from_numpy(grid.scale),
        torch.from_numpy(grid.offset) if grid.offset.any() else None,
        torch.tensor(grid.bits).float(),
        torch.ones(count),
        grid.axis + 1,
        grid.signed,
    ).numpy()


@EVERY_BITS
@KINDS
def test_every_code_is_a_fixed_point(bits: int, signed: bool, offset: float) -> None:
    low, high = (int(b) for b in code_range(torch.tensor(float(bits)), signed))
    codes = np.arange(low, high + 1, dtype=np.int16)[None]
    grid = grid_of((bits,), signed, np.array([0.037]), np.array([offset]), 0)
    values = integer.dequantize(codes, grid)
    assert np.array_equal(integer.quantize(values, grid), codes)
    assert np.array_equal(fake(values, grid), values)


@given(
    bits=st.lists(st.integers(2, 8), min_size=1, max_size=4),
    signed=st.booleans(),
    with_offset=st.booleans(),
    axis=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_fake_quantize_equals_the_integer_code(
    bits: list[int], signed: bool, with_offset: bool, axis: int, seed: int
) -> None:
    """Bit for bit, ties included: quantize, then dequantize, is the fake quantization."""
    rng = np.random.default_rng(seed)
    groups = len(bits)
    shape = [2, 3, 4, 5]
    shape[axis + 1] = groups * 2
    scale = rng.uniform(0.01, 1.0, groups)
    offset = rng.normal(size=groups) if with_offset and not signed else np.zeros(groups)
    grid = grid_of(tuple(bits), signed, scale, offset, axis)
    x = (rng.normal(size=shape) * 10).astype(np.float32)
    x[0] = np.rint(x[0]) * np.float32(0.5)  # many exact halves of a step where the scale is 1
    codes = integer.quantize(x, grid)
    low = integer.expand_groups(grid.qmin, codes.shape, axis + 1)
    high = integer.expand_groups(grid.qmax, codes.shape, axis + 1)
    assert ((codes >= low) & (codes <= high)).all()
    assert np.array_equal(fake(x, grid), integer.dequantize(codes, grid))


@EVERY_BITS
def test_ties_go_to_the_even_code(bits: int) -> None:
    grid = grid_of((bits,), True, np.array([1.0]), np.array([0.0]), 0)
    halves = np.array([[-1.5, -0.5, 0.5]], np.float32)
    assert fake(halves, grid).tolist() == [[-2.0, 0.0, 0.0]]


@EVERY_BITS
@KINDS
def test_number_of_levels(bits: int, signed: bool, offset: float) -> None:
    """A ramp that passes the range on both sides takes 2^bits values and not one more."""
    grid = grid_of((bits,), signed, np.array([0.1]), np.array([offset]), 0)
    ramp = np.linspace(-40, 40, 20_001, dtype=np.float32)[None]
    assert len(np.unique(fake(ramp, grid))) == 2**bits
