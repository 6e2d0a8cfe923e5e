"""The arithmetic of the integer-only ops against Python's integers and fractions, which have no width."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit_runtime.integer_shift import dyadic, floor_log2, integer_sqrt, requantize, shift_exp

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIER = st.integers(-(2**31) + 1, 2**31 - 1)
UNITS = [1, 2, 3, 7, 20, 59, 500]


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@given(INT32, MULTIPLIER, st.integers(1, 62))
def test_requantize_is_the_rounded_product(x, m, e):
    assert requantize(np.array([x]), m, e)[0] == half_up(Fraction(x * m, 2**e))


@pytest.mark.parametrize(
    ("x", "m", "e", "expected"),
    [
        (1, 1, 1, 1),  # 0.5 rounds up
        (-1, 1, 1, 0),  # -0.5 rounds up as well
        (-3, 1, 1, -1),
        (3, -1, 1, -1),
        (-(2**31), 2**31 - 1, 62, -1),  # the largest product, -2^62 + 2^31
        (-(2**31), 2**31 - 1, 1, -(2**61) + 2**30),
        (2**31 - 1, 2**31 - 1, 62, 1),
        (2**31 - 1, -(2**31) + 1, 1, -(2**61) + 2**31),
    ],
)
def test_requantize_at_halves_and_extremes(x, m, e, expected):
    assert requantize(np.array([x], np.int64), m, e)[0] == expected
    assert expected == half_up(Fraction(x * m, 2**e))


def test_requantize_takes_one_factor_per_group():
    codes, m, e = np.array([[5, 5, 5]], np.int16), np.array([1, 3, -3], np.int32), np.array([1, 1, 2], np.int32)
    assert requantize(codes, m, e).tolist() == [[3, 8, -4]]


@given(st.floats(2.0**-31, 2.0**28.9), st.booleans())
def test_dyadic_is_a_relative_half_step_of_31_bits_away(factor, negative):
    factor = -factor if negative else factor
    (m,), (e,) = dyadic(factor)
    assert 2**30 <= abs(int(m)) < 2**31
    assert 1 <= e <= 62
    assert abs(Fraction(int(m), 2 ** int(e)) - Fraction(factor)) <= abs(Fraction(factor)) / 2**30


@given(st.floats(2.0**-70, 2.0**-31))
def test_a_tiny_factor_has_the_last_shift(factor):
    (m,), (e,) = dyadic(factor)
    assert abs(Fraction(int(m), 2 ** int(e)) - Fraction(factor)) <= Fraction(1, 2**62)


@pytest.mark.parametrize("factor", [np.nextafter(1.0, 0.0), 1 - 2.0**-33, 2.0**-31, 0.0, np.nextafter(2.0**-31, 0)])
def test_dyadic_at_the_ends_of_its_bits(factor):
    (m,), (e,) = dyadic(factor)
    assert abs(int(m)) < 2**31
    assert 1 <= e <= 62
    assert abs(Fraction(int(m), 2 ** int(e)) - Fraction(factor)) <= Fraction(1, 2**31)


def test_a_factor_too_large_is_refused():
    with pytest.raises(ValueError, match=r"factor 1.07374e\+09 is too large for a multiplier, allowed: below 2\^29"):
        dyadic(np.array([1.0, 2.0**30]))


def exponential(t: int, unit: int, n: int) -> int:
    """The formula of the contract on Python's integers: floor of (1 + r / (2 unit)) unit 2^(n - q)."""
    t = max(t + math.floor(Fraction(t, 2)) - math.floor(Fraction(t, 16)), -n * unit)
    q = math.floor(Fraction(-t, unit))
    r = t + q * unit
    assert -unit < r <= 0
    return math.floor((1 + Fraction(r, 2 * unit)) * unit * 2 ** (n - q))


@pytest.mark.parametrize("n", [1, 8, 14, 23])
@pytest.mark.parametrize("unit", UNITS)
def test_the_exponential_is_its_formula_for_every_t(unit, n):
    t = np.arange(-(n + 2) * unit, 1)
    assert shift_exp(t, unit, n).tolist() == [exponential(int(x), unit, n) for x in t]


@pytest.mark.parametrize("unit", UNITS)
def test_the_exponential_is_monotone_and_ends_where_it_should(unit):
    e = shift_exp(np.arange(-16 * unit, 1), unit, 14)
    assert (np.diff(e) >= 0).all()
    assert e[-1] == unit << 14
    assert e[0] == unit  # 2^-14 of it: smaller exponentials count as this
    assert shift_exp(np.array([-(2**30)]), unit, 14)[0] == unit


def test_the_exponential_is_within_seven_percent():
    """1 + r / 2 for 2^r errs by 6.07 % at most, log2(e) ~ 1.4375 by 0.0052 of an exponent for each power of e."""
    t = np.arange(-4 * 1000, 1)
    ratio = shift_exp(t, 1000, 20) / (1000 * 2.0**20 * np.exp(t / 1000))
    assert ratio.min() > 0.999
    assert 1.06 < ratio.max() < 1.08


SQUARES = [0, 1, 2, 3, 4, 15, 16, 17, 2**26, 2**31 - 1, 2**31, 3037000499]
ROOTS = sorted({max(0, k * k + d) for k in SQUARES if k <= 2**31 for d in (-1, 0, 1)} | {2**62, 2**62 - 1, 2**53 + 1})


def test_the_square_root_is_exact_at_and_beside_perfect_squares():
    inside = [n for n in ROOTS if n <= 2**62]
    assert integer_sqrt(np.array(inside)).tolist() == [math.isqrt(n) for n in inside]
    assert {0, 1, 2**62, (2**31 - 1) ** 2 - 1} <= set(inside)


@given(st.integers(0, 2**31).flatmap(lambda k: st.integers(max(0, k * k - 3), min(2**62, k * k + 3))))
def test_the_square_root_is_exact(n):
    assert integer_sqrt(np.array([n]))[0] == math.isqrt(n)


@given(st.integers(1, 2**63 - 1) | st.integers(0, 62).flatmap(lambda k: st.integers(max(1, 2**k - 1), 2**k + 1)))
def test_the_logarithm_is_exact(n):
    assert floor_log2(np.array([n]))[0] == n.bit_length() - 1


def test_the_logarithm_at_the_largest_integer():
    assert floor_log2(np.array([2**63 - 1, 2**62, 2**62 - 1])).tolist() == [62, 62, 61]
