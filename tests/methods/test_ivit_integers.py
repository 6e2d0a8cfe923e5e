"""I-ViT's integer functions in torch are those of the runtime, number for number; and the numbers made from floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.methods.ivit import integers
from qvit.methods.ivit.layers import LARGEST_UNIT, SIGMOID, Grid
from qvit.methods.ivit.numbers import BIAS_RANGE, dyadic, layer_norm_numbers, linear_numbers, shiftmax_fraction
from qvit_runtime import integer_shift

INT31 = 2**31 - 1


@given(
    st.lists(st.integers(-(2**31), INT31) | st.integers(-(2**21), 2**21), min_size=1, max_size=20),
    st.integers(-INT31, INT31),
    st.integers(1, 62),
)
def test_requantize_is_the_runtimes(codes: list[int], multiplier: int, shift: int) -> None:
    """In whole 64 bits, and through float64 where every code is below 2^21."""
    expected = integer_shift.requantize(np.array(codes), multiplier, shift).tolist()
    for dtype in (torch.int64, torch.float64):
        found = integers.requantize(torch.tensor(codes, dtype=dtype), torch.tensor([multiplier]), torch.tensor([shift]))
        if max(map(abs, expected)) < 2**53:
            assert found.long().tolist() == expected


@given(st.lists(st.integers(-(2**21) + 1, 2**21 - 1), min_size=1), st.integers(1, 62), st.integers(1, 2**10))
def test_requantize_rounds_ties_up_in_float64_too(quotients: list[int], shift: int, odd: int) -> None:
    """Products on and beside the tie: x m = k 2^e + 2^(e-1) + {-m, 0, m}."""
    multiplier = torch.tensor([min((2 * odd + 1) << max(0, shift - 12), INT31)])
    codes = np.array(quotients)
    found = integers.requantize(torch.from_numpy(codes).float(), multiplier, torch.tensor([shift]))
    assert found.long().tolist() == integer_shift.requantize(codes, multiplier.item(), shift).tolist()


@given(st.lists(st.integers(-(2**15), 0), min_size=1), st.integers(1, 1024), st.integers(1, 19))
def test_shift_exp_is_the_runtimes_also_in_32_bits(t: list[int], unit: int, fraction: int) -> None:
    expected = integer_shift.shift_exp(np.array(t), unit, fraction).tolist()
    for dtype in (torch.int32, torch.int64):
        assert integers.shift_exp(torch.tensor(t, dtype=dtype), unit, fraction).tolist() == expected


@given(st.integers(0, 2**62) | st.integers(0, 2**31).map(lambda k: max(0, k * k - 1)))
def test_integer_sqrt_is_the_floor(n: int) -> None:
    assert integers.integer_sqrt(torch.tensor([n])).item() == math.isqrt(n)


@given(st.floats(-1e9, 1e9).filter(lambda r: abs(r) > 1e-9))
def test_dyadic_is_the_ratio_to_31_bits(ratio: float) -> None:
    multiplier, shift = dyadic(torch.tensor(ratio, dtype=torch.float64))
    assert abs(multiplier) <= INT31
    assert 1 <= shift <= 62
    assert abs(multiplier.item() / 2.0 ** shift.item() / ratio - 1) <= 2.0**-30


def test_dyadic_at_its_ends() -> None:
    ratios = torch.tensor([0.0, 1.0, -1.0, 2.0**-40, 1e12, 1 - 2.0**-40], dtype=torch.float64)
    multiplier, shift = dyadic(ratios)
    values = multiplier.double() / 2.0 ** shift.double()
    assert values[:4].tolist() == [0.0, 1.0, -1.0, 2.0**-40]
    assert values[4] >= 2**29  # saturated: any code but 0 leaves any grid
    assert multiplier[5] == INT31


@pytest.mark.parametrize("bits", range(2, 9))
def test_weight_codes_use_the_whole_range_of_every_row(bits: int) -> None:
    weight = torch.randn(6, 10) * torch.logspace(-3, 3, 6)[:, None]
    numbers = linear_numbers(weight, None, bits, torch.tensor(0.1, dtype=torch.float64))
    top = 2 ** (bits - 1) - 1
    assert numbers.weight.abs().amax(1).tolist() == [top] * 6
    assert ((numbers.weight * numbers.scale[:, None] - weight).abs() <= numbers.scale[:, None] * 0.50001).all()


def test_a_bias_that_its_row_is_too_small_for_widens_the_scale() -> None:
    weight = torch.tensor([[1.0, -0.5], [1e-12, 0.0], [0.0, 0.0]])
    numbers = linear_numbers(weight, torch.tensor([0.5, 3.0, 0.0]), 8, torch.tensor(0.01, dtype=torch.float64))
    assert numbers.bias is not None
    assert numbers.bias.abs().max() <= BIAS_RANGE * 1.000001
    assert torch.allclose(numbers.bias * numbers.scale * 0.01, torch.tensor([0.5, 3.0, 0.0]).double(), rtol=1e-2)


def test_accumulators_are_float64_only_where_float32_could_round() -> None:
    scale = torch.tensor(1.0, dtype=torch.float64)
    assert linear_numbers(torch.ones(2, 1000), None, 8, scale).accumulator == torch.float32
    assert linear_numbers(torch.ones(2, 1100), None, 8, scale).accumulator == torch.float64


def test_layer_norm_numbers_keep_every_gamma_and_beta() -> None:
    gamma, beta = torch.tensor([1.0, -2.0, 1e-4, 0.0]), torch.tensor([0.5, -3.0, 0.0, 1.0])
    scale = torch.tensor(0.03, dtype=torch.float64)
    multiplier, bias, shift = layer_norm_numbers(gamma, beta, scale)
    ratio = multiplier.double() / 2.0 ** (shift - 30)
    assert torch.allclose(ratio, gamma.double() * 2 / 0.03, rtol=1e-5)
    assert (bias - beta.double() * 256 / 0.03).abs().max() <= 0.5


@pytest.mark.parametrize("tokens", [1, 49, 197, 1370, 4097])
@pytest.mark.parametrize("unit", [1, 22, 127, LARGEST_UNIT])
def test_sums_of_exponentials_fit(unit: int, tokens: int) -> None:
    fraction = shiftmax_fraction(unit, tokens)
    assert fraction >= 1
    assert tokens * unit << fraction <= 2**29


@pytest.mark.parametrize("exponent", [1.0, SIGMOID])
@pytest.mark.parametrize("scale", [3.0, 1.0, 0.9, 0.0787, 0.041, 1e-9])
def test_scales_of_exponentials_have_whole_units_and_do_not_shrink(scale: float, exponent: float) -> None:
    grid = Grid(8, exponent=exponent)
    grid.set_scale(scale)
    assert float(grid.scale) >= scale * (1 - 1e-6)
    assert 1 <= grid.unit <= LARGEST_UNIT
    if exponent * scale <= 1:
        assert grid.unit * exponent * float(grid.scale) == pytest.approx(1, rel=1e-6)
    else:  # there is no unit below 1
        assert (float(grid.scale), grid.unit) == (pytest.approx(scale), 1)
