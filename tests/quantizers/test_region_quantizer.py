"""Two-scaled codes: region flags and code pairs from the formulas, the shape of the levels, refusals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.freezing.integer_layers import regions_grid
from qvit.quantizers.quantizer import UncalibratedError
from qvit.quantizers.region_quantizer import GELU_DEPTH, RegionQuantizer
from qvit_runtime import program as p
from qvit_runtime.integer_ops import QuantizeRegions
from qvit_runtime.interpreter import EXECUTE


def made(bits: int, scale: float, shift: int, depth: float = 0.0) -> RegionQuantizer:
    quantizer = RegionQuantizer(bits, axis=1, depth=depth)
    quantizer.set_regions(torch.tensor([scale]), shift)
    return quantizer


def oracle(x: Fraction, bits: int, scale: Fraction, shift: int, zero: int) -> tuple[int, int]:
    """(low, high) of one value, in exact arithmetic; Python's round is half to even."""
    largest = 2 ** (bits - 1) - 1
    steps = x / scale + zero
    low = max(round(steps), 0)
    if low <= largest:
        return low, 0
    return 0, min(round(steps / 2**shift), largest)


def levels(bits: int, shift: int) -> list[int]:
    """All levels in units of s, from the formula of a region each; the high region starts where the low one ends."""
    largest = 2 ** (bits - 1) - 1
    return [*range(largest + 1), *(code << shift for code in range(1, largest + 1) if code << shift > largest)]


WIDTHS = [(bits, shift) for bits in range(2, 9) for shift in range(1, bits)]


@pytest.mark.parametrize(("bits", "shift"), WIDTHS)
@pytest.mark.parametrize("depth", [0.0, GELU_DEPTH])
def test_codes_and_values_are_those_of_the_formulas(bits: int, shift: int, depth: float) -> None:
    """A scale of 1/16 and quarters of a level: every number is exact, ties of both regions and their border included."""
    scale = Fraction(1, 16)
    zero = min(round(Fraction(depth) / scale), 2 ** (bits - 1) - 1)
    quarters = range(-8, 4 * 2 ** (bits - 1) + 8)
    steps = [Fraction(quarter << region, 4) - zero for region in (0, shift) for quarter in quarters]
    x = np.array([[float(step * scale) for step in steps]], np.float32)
    quantizer = made(bits, 1 / 16, shift, depth)
    expected = [oracle(step * scale, bits, scale, shift, zero) for step in steps]

    grid = regions_grid(quantizer, 0)
    assert grid.scale.tolist() == [1 / 16, 2**shift / 16]
    assert grid.offset.tolist() == [-zero / 16, 0.0]
    assert grid.bits == (bits - 1, bits - 1)
    buffers = {"x": p.Buffer("x", x.shape[1:]), "y": p.Buffer("y", (2 * x.shape[1],), grid)}
    program = p.Program("", "x", "y", (), buffers, {}, {}, p.Preprocess((1, 1)))
    low, high = np.split(EXECUTE[QuantizeRegions](program, QuantizeRegions("x", "y"), {"x": x})[0], 2)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == expected

    values = [float(scale * (code + (large << shift) - zero)) for code, large in expected]
    assert quantizer(torch.from_numpy(x))[0].tolist() == values


@pytest.mark.parametrize(("bits", "shift"), WIDTHS)
def test_every_level_is_a_fixed_point_and_there_are_no_others(bits: int, shift: int) -> None:
    quantizer = made(bits, 0.25, shift)
    expected = [0.25 * level for level in levels(bits, shift)]
    everything = torch.linspace(-1, expected[-1] + 3, 20_001)
    assert quantizer(torch.tensor(expected)).tolist() == expected
    assert quantizer(everything).unique().tolist() == expected


@given(
    st.sampled_from(WIDTHS),
    st.floats(1e-3, 10.0),
    st.sampled_from([0.0, GELU_DEPTH]),
    st.lists(st.floats(-0.2, 1.3), min_size=2, max_size=50),
)
def test_monotone_in_range_and_as_near_as_its_region_allows(
    width: tuple[int, int], scale: float, depth: float, parts: list[float]
) -> None:
    bits, shift = width
    quantizer = made(bits, scale, shift, depth)
    largest = quantizer.largest_code
    with torch.no_grad():
        step, offset = float(quantizer.scale_at(quantizer.bit_width)), float(quantizer.offset_at(quantizer.bit_width))
    ceiling = step * largest * 2**shift
    x = torch.tensor(parts).sort().values * ceiling + offset
    values = quantizer(x)
    slack = 1e-5 * ceiling
    assert (values.diff() >= 0).all()
    assert (values >= offset).all()
    assert (values <= offset + ceiling + slack).all()
    error = (values - x).abs()
    low = (x >= offset) & (x <= offset + step * (largest + 0.5))
    high = (x > offset + step * (largest + 0.5)) & (x <= offset + ceiling)
    assert (error[low] <= step / 2 + slack).all()
    assert (error[high] <= step * 2**shift / 2 + slack).all()
    assert torch.equal(quantizer(values), values)


@given(st.integers(2, 8), st.floats(1e-4, 10.0))
def test_zero_is_a_level_and_gelu_stays_within_half_a_step(bits: int, scale: float) -> None:
    quantizer = made(bits, scale, 1, GELU_DEPTH)
    assert quantizer(torch.zeros(1)).item() == 0.0
    below = -GELU_DEPTH * torch.linspace(0, 1, 100)
    if GELU_DEPTH / scale <= quantizer.largest_code:
        assert ((quantizer(below) - below).abs() <= scale * 0.5001).all()


@pytest.mark.parametrize("shift", [0, 4])
def test_levels_that_would_not_be_monotone_are_refused(shift: int) -> None:
    with pytest.raises(
        ValueError, match=rf"shift is {shift}; with 4 bits it must lie in 1\.\.3, or the levels would not"
    ):
        made(4, 1.0, shift)


def test_uncalibrated_says_what_to_call() -> None:
    with pytest.raises(UncalibratedError, match=r"no scale yet: run qvit\.methods\.tsptq\.calibrate\(model, images\)"):
        RegionQuantizer(4, axis=1)(torch.zeros(2, 3))


def test_state_survives_a_state_dict() -> None:
    quantizer, again = made(6, 0.07, 3, GELU_DEPTH), RegionQuantizer(6, axis=1, depth=GELU_DEPTH)
    again.load_state_dict(quantizer.state_dict())
    x = torch.linspace(-0.2, 30, 1000)
    assert torch.equal(again(x), quantizer(x))


def test_float64_comes_back_as_float64_with_the_values_of_float32() -> None:
    quantizer, x = made(5, 0.1, 2), torch.linspace(0, 7, 500)
    assert quantizer(x.double()).dtype == torch.float64
    assert torch.equal(quantizer(x.double()).float(), quantizer(x))
