"""ShiftGelu, Shiftmax and the log2 pair: their formulas on Python's integers, and the functions that they stand for."""

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
from test_integer_shift import exponential
from toy_integer_draft import make_grid

SCALES = [0.02, 0.03, 0.05, 0.08, 0.12, 0.2]
LARGEST = 2**31 - 1


def shift_gelu(codes: np.ndarray, scale: float, fraction: int) -> np.ndarray:
    op = i.ShiftGelu("x", "z", math.ceil(1 / (1.702 * scale)), fraction)
    return run_op(op, {"x": codes[None]}, {"x": make_grid(8, True, scale), "z": make_grid(32, True, scale / 256)})[0]


@pytest.mark.parametrize("fraction", [8, 14, 22])
@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_gelu_is_its_formula_for_every_code(scale, fraction):
    codes, unit = np.arange(-128, 128, dtype=np.int16), math.ceil(1 / (1.702 * scale))
    for x, found in zip(codes.tolist(), shift_gelu(codes, scale, fraction).tolist(), strict=True):
        e1, e2 = exponential(min(x, 0), unit, fraction), exponential(-max(x, 0), unit, fraction)
        assert max(e1, e2) == unit << fraction
        assert found == x * ((e1 * (LARGEST // (e1 + e2))) >> 23)


@pytest.mark.parametrize("fraction", range(8, 17))
@pytest.mark.parametrize("scale", SCALES)
def test_gelu_is_within_a_step_of_x_sigmoid(scale, fraction):
    """0.5 for coarse grids; 1.04 at scale 0.02, most of it because unit is a whole number (29.4 is 30)."""
    codes = np.arange(-128, 128, dtype=np.int16)
    steps = shift_gelu(codes, scale, fraction) / 256
    exact = codes / (1 + np.exp(-1.702 * scale * codes.astype(float)))
    assert np.abs(steps - exact).max() < (0.51 if scale >= 0.05 else 0.7 if scale >= 0.03 else 1.05)


def test_gelu_loses_precision_where_the_fraction_is_large():
    codes = np.arange(-128, 128, dtype=np.int16)
    exact = codes / (1 + np.exp(-1.702 * 0.02 * codes.astype(float)))
    error = {n: np.abs(shift_gelu(codes, 0.02, n) / 256 - exact).max() for n in (4, 14, 23)}
    assert error[14] < 1 < 5 < error[4]  # underflow: 2^-4 for what should be nothing
    assert error[23] > 5  # (2^31 - 1) // sum is a small number


def test_gelu_of_a_row_of_negatives_is_small_and_never_positive():
    """With the authors' pivot such a row has e^(positive) in it, and a large negative one comes out halved."""
    steps = shift_gelu(np.arange(-128, 0, dtype=np.int16), 0.1, 14) / 256
    assert steps[0] == 0  # -12.8 gives nothing
    assert (steps <= 0).all()
    assert -2.5 < steps.min() < -1.2  # the dip of x sigmoid(1.702 x) is -0.164


def test_gelu_of_a_code_does_not_depend_on_its_row():
    codes = np.array([[-128, 5, 127], [-128, 5, -3]], np.int16)
    first, second = shift_gelu(codes, 0.2, 14)
    assert first[:2].tolist() == second[:2].tolist()


def scores(shape: tuple[int, ...], scale: float, top: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 1.5, shape)
    return np.clip(np.rint(values / scale), -top - 1, top).astype(np.int32)


def shiftmax(x: np.ndarray, unit: int, fraction: int, bits: int = 8, wide: bool = False, **names: object) -> np.ndarray:
    grids = {"x": make_grid(16 if wide else 8, True, 1 / unit), "z": make_grid(bits, False, 2.0**-bits)}
    op = i.Shiftmax("x", "z", unit, fraction, **{name: name for name in names})
    return run_op(op, {"x": x}, grids, integers=names)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("wide", [False, True])
def test_shiftmax_is_its_formula_with_bias_and_mask(bits, wide):
    x = scores((2, 2, 2, 5, 5), 0.02, 2**15 - 1 if wide else 127)
    rng = np.random.default_rng(1)
    bias, mask = rng.integers(-40, 40, (2, 5, 5)), rng.choice([0, -5000], (2, 5, 5))
    found = shiftmax(x, 50, 12, bits, wide, bias=bias, mask=mask)
    for batch, window, head, row in np.ndindex(2, 2, 2, 5):
        t = [
            int(a + b + c)
            for a, b, c in zip(x[batch, window, head, row], bias[head, row], mask[window, row], strict=True)
        ]
        e = [exponential(v - max(t), 50, 12) for v in t]
        rounded = [math.floor(Fraction(v * (LARGEST // sum(e)), 2 ** (31 - bits)) + Fraction(1, 2)) for v in e]
        expected = [min(code, 2**bits - 1) for code in rounded]
        assert found[batch, window, head, row].tolist() == expected


@pytest.mark.parametrize("fraction", range(10, 17))
@pytest.mark.parametrize("tokens", [49, 197])
def test_shiftmax_is_close_to_softmax_where_its_unit_is(tokens, fraction):
    """Scores of scale 1 / 50: 3.5 codes of 1/256 at most (6 % of 1 + r / 2), a quarter of a code on average."""
    x = scores((1, 4, tokens, tokens), 0.02, 127)
    found = shiftmax(x, 50, fraction) / 256
    e = np.exp((x - x.max(-1, keepdims=True)) * 0.02)
    error = 256 * (found - e / e.sum(-1, keepdims=True))
    assert np.abs(error).max() < 3.5
    assert np.abs(error).mean() < 0.35
    assert abs(error.mean()) < 0.1  # neither up nor down
    assert found.max() > 0.03


def test_shiftmax_gets_coarse_at_both_ends_of_the_fraction():
    x = scores((1, 2, 49, 49), 0.2, 127, seed=3)
    e = np.exp((x - x.max(-1, keepdims=True)) * 0.2)
    error = {n: 256 * np.abs(shiftmax(x, 5, n) / 256 - e / e.sum(-1, keepdims=True)).max() for n in (4, 12, 22)}
    assert error[12] < 10
    assert error[4] > 2 * error[12]


def test_one_token_has_all_but_one_step_of_the_attention():
    assert shiftmax(np.zeros((1, 1, 1, 1), np.int16), 50, 12).item() == 255


# LogIntSoftmax


def log_softmax(x: np.ndarray, bits: int, ln2: int, linear: int, constant: int, **names: object) -> np.ndarray:
    grids = {"x": make_grid(8, True, 0.1), "z": make_grid(bits, False, 1.0)}
    op = i.LogIntSoftmax("x", "z", ln2, linear, constant, **{name: name for name in names})
    return run_op(op, {"x": x}, grids, integers=names)


def parabola(scale: float) -> tuple[int, int, int]:
    """ln2, linear and constant of i-exp for a scale."""
    return (
        math.ceil(math.log(2) / scale),
        math.floor(0.96963238 / 0.35815147 / scale),
        math.floor(1 / 0.35815147 / scale**2),
    )


def log_by_hand(row: list[int], bits: int, ln2: int, linear: int, constant: int) -> list[int]:
    e = []
    for x in row:
        q, rest = divmod(min(max(row) - x, 30 * ln2), ln2)
        e.append((-rest * (linear - rest) + constant) * 2 ** (30 - q))
    codes = []
    for v in e:
        ratio = math.floor(Fraction(sum(e), v) + Fraction(1, 2))
        f = next(f for f in range(64) if 2**f <= ratio < 2 ** (f + 1))
        codes.append(f + 1 if ratio >= Fraction(3, 2) * 2**f else f)
    return [min(code, 2**bits - 1) for code in codes]


@settings(max_examples=60)
@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=30),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([0.005, 0.02, 0.1, 0.5]),
)
def test_log_softmax_is_its_formula(row, bits, scale):
    x = np.array(row, np.int16).reshape(1, 1, 1, -1)
    assert log_softmax(x, bits, *parabola(scale)).ravel().tolist() == log_by_hand(row, bits, *parabola(scale))


def test_log_softmax_adds_bias_and_mask_first():
    rng = np.random.default_rng(2)
    x, bias, mask = (
        rng.integers(-100, 100, (1, 2, 3, 4, 4)),
        rng.integers(-30, 30, (3, 4, 4)),
        rng.integers(-900, 1, (2, 4, 4)),
    )
    found = log_softmax(x.astype(np.int16), 4, *parabola(0.05), bias=bias, mask=mask)
    row = (x[0, 1, 2, 3] + bias[2, 3] + mask[1, 3]).tolist()
    assert found[0, 1, 2, 3].tolist() == log_by_hand(row, 4, *parabola(0.05))


@pytest.mark.parametrize("f", [1, 2, 3, 5])
def test_a_ratio_of_three_halves_of_a_power_is_the_first_to_round_up(f):
    """n equal scores have the ratio n exactly: 1.5 2^f of them give f + 1, one fewer f."""
    threshold = 3 * 2 ** (f - 1)
    for tokens, code in ((threshold, f + 1), (threshold - 1, f), (2**f, f)):
        found = log_softmax(np.full((1, 1, 1, tokens), 7, np.int16), 8, *parabola(0.1))
        assert found.ravel().tolist() == [code] * tokens


def test_the_sum_is_rounded_before_it_is_compared():
    """Two scores one power of two apart: sum e / e is 1.5 for the larger, which rounds to 2, code 1; and 3 for the other."""
    assert log_softmax(np.array([[[[0, -7]]]], np.int16), 8, 7, 27, 279).ravel().tolist() == [1, 2]
    assert log_softmax(np.array([[[[0, -8]]]], np.int16), 8, 7, 27, 279).ravel().tolist() == [0, 2]


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2])
def test_powers_of_two_sum_to_about_one(scale):
    """A power of two is off by a factor of 0.625 (sum e / e = 2.5) to 1.5, rarely all in one direction."""
    x = scores((1, 8, 65, 65), scale, 127)
    sums = (2.0 ** -log_softmax(x, 8, *parabola(scale))).sum(-1)
    assert sums.min() > 0.75
    assert sums.max() < 1.4
    assert 1.0 < sums.mean() < 1.1


@pytest.mark.parametrize("scale", np.geomspace(1e-4, 0.6, 40))
def test_the_parabola_rises_and_stays_positive_up_to_a_scale_of_0_6(scale):
    ln2, linear, constant = parabola(scale)
    assert linear >= 2 * (ln2 - 1)
    assert constant - (ln2 - 1) * (linear - (ln2 - 1)) >= 1


# ShiftAttentionValue


@pytest.mark.parametrize("bits", range(2, 9))
def test_shifted_sums_are_exact(bits):
    rng = np.random.default_rng(bits)
    codes, value = rng.integers(0, 2**bits, (2, 3, 5, 5)), rng.integers(-128, 128, (2, 3, 5, 4))
    scale, fraction = np.array([0.5, 0.013, 3.0], np.float32), min(2**bits - 2, 20)
    grids = {"a": make_grid(bits, False, 1.0), "v": p.Grid((8,) * 3, True, scale, np.zeros(3, np.float32), 0)}
    arrays = {"a": codes.astype(np.int16), "v": value.astype(np.int16)}
    found = run_op(i.ShiftAttentionValue("a", "v", "z"), arrays, grids)
    for b, head, row, column in np.ndindex(2, 3, 5, 4):
        pairs = zip(codes[b, head, row].tolist(), value[b, head, :, column].tolist(), strict=True)
        exact = sum((Fraction(v, 2**c) for c, v in pairs if c <= fraction), Fraction(0))
        assert found[b, head, row, column] == np.float32(
            float(exact * 2**fraction) * float(scale[head]) * 2.0**-fraction
        )


def test_the_largest_code_is_nothing_and_the_smallest_is_all():
    grids = {"a": make_grid(4, False, 1.0), "v": make_grid(8, True, 1.0)}
    arrays = {"a": np.array([[[[15, 0], [14, 15]]]], np.int16), "v": np.array([[[[100], [-64]]]], np.int16)}
    found = run_op(i.ShiftAttentionValue("a", "v", "z"), arrays, grids)
    assert found.ravel().tolist() == [-64, 100 / 2**14]
