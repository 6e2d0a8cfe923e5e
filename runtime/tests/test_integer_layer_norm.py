"""IntegerLayerNorm: its formula on Python's integers, and the float LayerNorm that it stands for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from one_op import run_op
from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from toy_integer_draft import make_grid

STREAM = make_grid(16, True, 0.001)


def parameters(gamma: np.ndarray, beta: np.ndarray, scale: float, offset: float = 0.0) -> tuple[dict, int]:
    """multiplier and bias of a LayerNorm with these float parameters, and the shift."""
    factor = gamma * math.sqrt(len(gamma)) / scale
    shift = min(62, 60 - math.floor(math.log2(np.abs(factor).max())))
    multiplier, bias = np.rint(factor * 2.0 ** (shift - 30)), np.rint(256 * (beta - offset) / scale)
    return {"m": multiplier, "b": bias}, shift


def normalise(
    codes: np.ndarray,
    integers: dict,
    shift: int,
    grid: p.Grid,
    source: p.Grid = STREAM,
    exponent: str = "",
    zero: int = 0,
) -> np.ndarray:
    op = i.IntegerLayerNorm("x", "z", "m", "b", shift, exponent, zero)
    return run_op(op, {"x": codes[None]}, {"x": source, "z": grid}, integers=integers)[0]


def by_hand(row: list[int], integers: dict, shift: int, low: int, high: int) -> list[int]:
    """The contract's lines on Python's integers."""
    mu = math.floor(Fraction(sum(row), len(row)) + Fraction(1, 2))
    y = [x - mu for x in row]
    k = max(1, math.isqrt(sum(v * v for v in y)))
    z = [(v * ((2**31 - 1) // k)) >> 1 for v in y]
    assert all(-(2**30) <= v < 2**30 for v in z)
    pairs = zip(z, integers["m"], integers["b"], strict=True)
    sums = [(((v * int(m)) >> (shift - 8)) + int(b) + 128) >> 8 for v, m, b in pairs]
    return [min(max(code, low), high) for code in sums]


@settings(max_examples=50)
@given(
    st.integers(1, 40).flatmap(lambda c: st.lists(st.integers(-(2**15), 2**15 - 1), min_size=c, max_size=c)), st.data()
)
def test_a_row_is_its_formula(row, data):
    size = len(row)
    multiplier = data.draw(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=size, max_size=size))
    bias = data.draw(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=size, max_size=size))
    shift = data.draw(st.integers(9, 62))
    integers = {"m": multiplier, "b": bias}
    found = normalise(np.array([row], np.int32), integers, shift, STREAM)
    assert found[0].tolist() == by_hand(row, integers, shift, -(2**15), 2**15 - 1)


@pytest.mark.parametrize("row", [[-32768] * 64, [-32768, 32767] * 4096, [0] * 3 + [1], [32767]], ids=str)
def test_extreme_rows_are_the_formula_too(row):
    row = row[:9000]
    integers = {"m": [2**31 - 1] * len(row), "b": [-(2**31) + 1] * len(row)}
    found = normalise(np.array([row], np.int32), integers, 40, STREAM)
    assert found[0].tolist() == by_hand(row, integers, 40, -(2**15), 2**15 - 1)


def exact(values: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True)) * gamma + beta


@pytest.mark.parametrize("channels", [16, 192, 768])
@pytest.mark.parametrize("spread", [300, 3000, 8000])
def test_a_16_bit_stream_is_normalised_to_the_nearest_code(channels, spread):
    """Rounding is half a code. mu is off by up to half a code of the input, F and the bias by little more than nothing."""
    rng = np.random.default_rng(channels + spread)
    codes = np.clip(np.rint(rng.normal(200, spread, (50, channels))), -(2**15), 2**15 - 1).astype(np.int32)
    gamma, beta, scale = 1 + 0.2 * rng.standard_normal(channels), 0.3 * rng.standard_normal(channels), 4 / 127
    integers, shift = parameters(gamma, beta, scale)
    found = normalise(codes, integers, shift, make_grid(8, True, scale))
    target = np.clip(exact(codes.astype(float), gamma, beta) / scale, -128, 127)
    of_mu = 0.5 * np.abs(gamma).max() / (spread * scale)
    assert np.abs(found - target).max() < 0.52 + 1.1 * of_mu
    assert len(np.unique(found)) > 100


def test_power_of_two_factors_and_a_zero_point_undo_the_input_grid():
    """FQ-ViT: unsigned codes whose channels have the scales s 2^exponent and one zero point."""
    rng = np.random.default_rng(5)
    exponent, zero, step = rng.integers(0, 4, 96), 117, 0.01
    values = rng.normal(0, 0.25 * 2.0**exponent, (40, 96))
    codes = np.clip(np.rint(values / (step * 2.0**exponent)) + zero, 0, 255).astype(np.int16)
    scale = (step * 2.0**exponent).astype(np.float32)
    source = p.Grid((8,) * 96, False, scale, -zero * scale, 1)
    gamma, beta = 1 + 0.2 * rng.standard_normal(96), 0.3 * rng.standard_normal(96)
    integers, shift = parameters(gamma, beta, 8 / 255, -4.0)
    grid = make_grid(8, False, 8 / 255, 0, -4.0)
    found = normalise(codes, integers | {"e": exponent}, shift, grid, source, "e", zero)
    target = exact((codes - zero) * scale.astype(float), gamma, beta)
    error = found - np.clip((target + 4) / (8 / 255), 0, 255)
    assert np.abs(error).max() < 0.8  # mu is a whole step of the finest channel, which is more than in a 16-bit stream
    assert found.std() > 20


def test_gamma_near_zero_is_harmless():
    """Theirs divides beta by gamma."""
    gamma, beta = np.array([1e-9, 0.0, -1e-9, 1.0]), np.array([0.5, -0.5, 0.25, 0.0])
    integers, shift = parameters(gamma, beta, 1 / 64)
    found = normalise(np.array([[100, -200, 300, 50]], np.int32), integers, shift, make_grid(8, True, 1 / 64))
    assert found[0, :3].tolist() == [32, -32, 16]


def test_a_constant_row_gives_beta():
    integers, shift = parameters(np.ones(4), np.array([0.0, 1.0, -1.0, 0.5]), 1 / 64)
    assert normalise(np.full((1, 4), 777, np.int32), integers, shift, make_grid(8, True, 1 / 64))[0].tolist() == [
        0,
        64,
        -64,
        32,
    ]


def test_an_offset_of_all_codes_changes_nothing():
    codes = np.random.default_rng(0).integers(-1000, 1000, (8, 32)).astype(np.int32)
    integers, shift = parameters(np.ones(32), np.zeros(32), 4 / 127)
    grid = make_grid(8, True, 4 / 127)
    assert np.array_equal(normalise(codes, integers, shift, grid), normalise(codes + 5000, integers, shift, grid))
