"""Two-scaled codes: QuantizeRegions, and the products that read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from one_op import run_op
from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from toy_integer_draft import make_grid

STEP, OFFSET = 2.0**-6, -0.171875  # exact in float32


def regions_grid(bits: int, m: int, offset: float = OFFSET, axis: int = 0) -> p.Grid:
    scale = np.array([STEP, STEP * 2**m], np.float32)
    return p.Grid((bits, bits), False, scale, np.array([offset, 0], np.float32), axis)


def quantize_regions(values: np.ndarray, grid: p.Grid) -> tuple[np.ndarray, np.ndarray]:
    """Low and high codes of values (n,)."""
    found = run_op(i.QuantizeRegions("x", "z"), {"x": values[None].astype(np.float32)}, {"z": grid})
    return tuple(np.split(found[0].astype(int), 2))


def values_of(low: np.ndarray, high: np.ndarray, m: int, offset: float = OFFSET) -> np.ndarray:
    return offset + STEP * low + STEP * 2**m * high


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_codes_are_monotone_and_in_one_region_only(bits):
    for m in range(1, bits + 1):
        x = OFFSET + STEP * np.arange(-2, 2 ** (bits + m) + 2, 0.25)
        low, high = quantize_regions(x, regions_grid(bits, m))
        assert ((low == 0) | (high == 0)).all()
        assert (np.diff(values_of(low, high, m)) >= 0).all()
        assert low.min() == high.min() == 0
        assert low.max() == high.max() == 2**bits - 1


@given(st.integers(2, 7).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(1, bits))))
def test_grid_points_come_back_exactly(case):
    bits, m = case
    codes = np.arange(2**bits)
    beyond = codes[(codes << m) >= 2**bits]  # high codes that no low code reaches
    points = np.concatenate([values_of(codes, 0 * codes, m), values_of(0 * beyond, beyond, m)])
    low, high = quantize_regions(points, regions_grid(bits, m))
    assert values_of(low, high, m).tolist() == points.tolist()
    assert (high > 0).tolist() == [False] * len(codes) + [True] * len(beyond)


def test_the_region_changes_right_at_the_border():
    """Three bits: up to 7.5 steps are code 7 of the low region (half to even would give 8), more is in the high one."""
    border = OFFSET + 7.5 * STEP
    low, high = quantize_regions(np.array([border - STEP * 2.0**-20, border]), regions_grid(3, 2))
    assert low.tolist() == [7, 0]
    assert high.tolist() == [0, 2]  # 7.5 / 4 rounds to 2


def test_below_the_offset_is_code_zero_and_far_above_the_largest():
    low, high = quantize_regions(np.array([-np.inf, -5.0, OFFSET, 1e30, np.inf]), regions_grid(4, 3))
    assert low.tolist() == [0, 0, 0, 0, 0]
    assert high.tolist() == [0, 0, 0, 15, 15]


def test_not_a_number_has_no_code():
    with pytest.raises(FloatingPointError, match="in front of a QuantizeRegions op are not finite"):
        quantize_regions(np.array([np.nan]), regions_grid(4, 3))


def test_linear_uses_its_weight_for_both_halves():
    """Behind GELU: the offset of the low half is in the bias, once."""
    rng = np.random.default_rng(0)
    weight = p.Weight(
        rng.integers(-8, 8, (3, 6)).astype(np.int8), np.full((3, 2), 4), rng.uniform(0.5, 1, (3, 2)).astype(np.float32)
    )
    low = rng.integers(0, 8, (2, 6))
    high = np.where(rng.random((2, 6)) < 0.5, rng.integers(0, 8, (2, 6)), 0)
    low[high > 0] = 0
    matrix = weight.codes * np.repeat(weight.scale, 3, axis=1)
    bias = (OFFSET * matrix.sum(axis=1)).astype(np.float32)
    grid = regions_grid(3, 2)
    codes = np.concatenate([low, high], axis=1).astype(np.int16)
    found = run_op(
        p.Linear("x", "z", "w", "b"), {"x": codes}, {"x": grid}, weights={"w": weight}, constants={"b": bias}
    )
    assert np.allclose(found, values_of(low, high, 2) @ matrix.T, rtol=1e-6, atol=1e-6)


def test_attention_value_uses_v_for_both_halves():
    rng = np.random.default_rng(1)
    low, value = rng.integers(0, 8, (1, 2, 4, 4)), rng.integers(-128, 128, (1, 2, 4, 3))
    high = np.where(rng.random(low.shape) < 0.5, 5, 0)
    low[high > 0] = 0
    codes = np.concatenate([low, high], axis=-1).astype(np.int16)
    grids = {"a": regions_grid(3, 2, 0.0, 2), "v": make_grid(8, True, [0.5, 0.25], 0)}
    found = run_op(p.AttentionValue("a", "v", "z"), {"a": codes, "v": value.astype(np.int16)}, grids)
    expected = values_of(low, high, 2, 0.0) @ (value * np.array([0.5, 0.25]).reshape(2, 1, 1))
    assert found.tolist() == expected.tolist()
