"""The least-squares scale from a streamed histogram against brute force on the raw data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from qvit.calibration.least_squares import least_squares, least_squares_with_offset, points
from qvit.calibration.observers import BINS, Histogram

RNG = np.random.default_rng(0)
COUNT = 20_000


def attention_map() -> np.ndarray:
    return softmax(2.0 * RNG.standard_normal((200, 200)), axis=-1).ravel()


def gelu(spread: float) -> np.ndarray:
    x = spread * RNG.standard_normal(COUNT)
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


SIGNED = {
    "gaussian": RNG.standard_normal(COUNT),
    "shifted": RNG.standard_normal(COUNT) + 1.5,
    "laplace": RNG.laplace(size=COUNT),
    "student_t": RNG.standard_t(4, COUNT),
    "uniform": RNG.uniform(-1, 1, COUNT),
    "outlier": np.append(RNG.standard_normal(COUNT), 30.0),
}


def streamed(data: np.ndarray, pieces: int = 4) -> Histogram:
    """The data in several updates, sorted by magnitude: every update makes the range double."""
    histogram = Histogram(1, 0)
    for piece in np.array_split(data[np.argsort(np.abs(data))], pieces):
        histogram.update(torch.from_numpy(piece).float())
    return histogram


def codes(data: np.ndarray, scale: float, bits: int, signed: bool, offset: float = 0.0) -> np.ndarray:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return np.rint(np.clip((data - offset) / scale, low, high))


def error(data: np.ndarray, scale: float, bits: int, signed: bool, offset: float = 0.0) -> float:
    return float(np.mean((data - offset - scale * codes(data, scale, bits, signed, offset)) ** 2))


def brute_force(data: np.ndarray, bits: int, signed: bool) -> float:
    """The best of 600 scales on the raw data, first a percent and then 0.03 % apart around the coarse minimum."""
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    coarse = np.abs(data).max() / high * np.geomspace(1.5, 4e-3, 500)
    best = coarse[np.argmin([error(data, s, bits, signed) for s in coarse])]
    fine = best * np.linspace(0.985, 1.015, 100)
    return float(fine[np.argmin([error(data, s, bits, signed) for s in fine])])


def assert_optimal(data: np.ndarray, found: float, bits: int, signed: bool) -> None:
    """Within 1 % of the brute-force scale, or in another valley whose depth is the same to 1e-4."""
    best = brute_force(data, bits, signed)
    ours, reference = error(data, found, bits, signed), error(data, best, bits, signed)
    assert ours <= 1.001 * reference
    assert found == pytest.approx(best, rel=0.01) or ours <= 1.0001 * reference


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", SIGNED)
def test_histogram_gives_the_exact_scale_of_signed_data(name: str, bits: int) -> None:
    data = SIGNED[name].astype(np.float32).astype(np.float64)
    assert_optimal(data, float(least_squares(streamed(data).points(), bits, signed=True)), bits, signed=True)


@pytest.mark.parametrize("bits", range(2, 9))
def test_histogram_gives_the_exact_scale_of_an_attention_map(bits: int) -> None:
    data = attention_map().astype(np.float32).astype(np.float64)
    assert_optimal(data, float(least_squares(streamed(data).points(), bits, signed=False)), bits, signed=False)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_offset_is_as_good_as_a_search_over_both_and_beats_the_signed_grid(spread: float, bits: int) -> None:
    data = gelu(spread).astype(np.float32).astype(np.float64)
    histogram = streamed(data)
    scale, offset = (float(t) for t in least_squares_with_offset(histogram.points(), bits))
    found = error(data, scale, bits, False, offset)
    sample = data[::8]
    grid = [
        (error(sample, s, bits, False, o), s, o)
        for s in scale * np.linspace(0.85, 1.15, 13)
        for o in data.min() + s * np.linspace(-0.3, 1.2, 16)
    ]
    _, s, o = min(grid)
    assert found <= 1.01 * error(data, s, bits, False, o)
    signed = float(least_squares(histogram.points(), bits, signed=True))
    assert found < error(data, signed, bits, True)


def test_range_doubles_over_six_orders_of_magnitude() -> None:
    small, large = RNG.standard_normal(COUNT) * 1e-3, RNG.standard_normal(COUNT) * 1e3
    histogram = Histogram(1, 0)
    for piece in (small, large[:100], large[100:]):
        histogram.update(torch.from_numpy(piece).float())
    assert histogram.count.sum() == 2 * COUNT
    both = np.concatenate([small, large]).astype(np.float32).astype(np.float64)
    assert float(histogram.sum.sum()) == pytest.approx(both.sum(), rel=1e-6)
    for bits in (2, 4, 8):
        assert_optimal(both, float(least_squares(histogram.points(), bits, signed=True)), bits, signed=True)


def test_groups_are_independent_and_follow_the_axis() -> None:
    x = torch.randn(3, 4, 50) * torch.tensor([1.0, 1.0, 20.0, 20.0]).view(1, 4, 1)
    histogram = Histogram(2, 1)
    histogram.update(x)
    together = least_squares(histogram.points(), 4, signed=True)
    for group, part in enumerate((x[:, :2], x[:, 2:])):
        alone = Histogram(1, 0)
        alone.update(part)
        assert torch.equal(together[group : group + 1], least_squares(alone.points(), 4, signed=True))
    assert together[1] > 10 * together[0]


def test_resolution() -> None:
    assert BINS >= 8192


def test_raw_points_and_their_weights_say_the_same() -> None:
    values = torch.tensor([[0.0, 1.0, 1.0, 1.0, -2.0]])
    weighted = points(torch.tensor([[-2.0, 7.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 3.0]]))
    assert torch.allclose(least_squares(points(values), 3, True), least_squares(weighted, 3, True))
    assert weighted.largest == 1.0  # a point of weight zero is not there


@pytest.mark.parametrize("signed", [True, False])
def test_dead_groups_get_a_finite_scale(signed: bool) -> None:
    data = points(torch.stack([torch.zeros(10), torch.linspace(-1, 2, 10)]))
    scale = least_squares(data, 4, signed)
    assert scale[0] == 1.0
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    scale, offset = least_squares_with_offset(points(torch.full((1, 10), 3.0)), 4)
    assert (float(scale), float(offset)) == (1.0, 3.0)


def test_denormal_values_count_as_zero() -> None:
    histogram = Histogram(1, 0)
    histogram.update(torch.full((10,), 1e-40))
    assert float(least_squares(histogram.points(), 8, True)) == 1.0
    histogram.update(torch.randn(1000))
    assert histogram.count.sum() == 1010


def test_nan_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="float model is not finite"):
        Histogram(1, 0).update(torch.tensor([1.0, float("nan")]))
