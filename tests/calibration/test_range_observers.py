"""Range observers against direct numpy computations, through the observers and through calibrate()."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qvit.calibration.calibrate import calibrate, observe
from qvit.calibration.least_squares import points
from qvit.calibration.observers import Extremes
from qvit.calibration.range_observers import (
    LeastSquares,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    fit_grid,
    grid_of_range,
    quantile,
    watcher,
)
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.settings.values import from_values, to_values
from qvit.spec import FixedBits, PerChannel, PerTensor, SharedScale, Spec
from toy_models import images, vit

ALL: tuple[Observer, ...] = (LeastSquares(), MinMax(), MovingAverage(0.2), Percentile(0.99), MeanSquaredError())


def batches(count: int = 5, groups: int = 2) -> list[np.ndarray]:
    """(groups, elements) each: heavy tails, another size and centre in every batch and group."""
    draw = np.random.default_rng(0)
    size = np.array([[1.0], [30.0]])[:groups]
    return [
        (draw.standard_t(3, (groups, 400)) * size * (1 + index) + size).astype(np.float32) for index in range(count)
    ]


def fed(observer: Observer, data: list[np.ndarray]):  # type: ignore[no-untyped-def]
    seen = watcher(observer, len(data[0]), 0)
    for batch in data:
        seen.update(torch.from_numpy(batch))
    return seen


def nearest(x: np.ndarray, scale: float, offset: float, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint((x - offset) / scale), low, high) * scale + offset


def test_extremes_are_those_of_everything() -> None:
    seen = fed(MinMax(), batches())
    whole = np.concatenate(batches(), 1)
    assert np.array_equal(seen.low.numpy(), whole.min(1).astype(np.float64))
    assert np.array_equal(seen.high.numpy(), whole.max(1).astype(np.float64))


def test_moving_average_by_its_recurrence() -> None:
    seen = fed(MovingAverage(0.2), batches())
    low, high = (getattr(batches()[0], end)(1).astype(np.float64) for end in ("min", "max"))
    for batch in batches()[1:]:
        low, high = low + 0.2 * (batch.min(1) - low), high + 0.2 * (batch.max(1) - high)
    assert np.allclose(seen.low.numpy(), low, rtol=1e-12)
    assert np.allclose(seen.high.numpy(), high, rtol=1e-12)
    assert (seen.low > fed(MinMax(), batches()).low).all()


@pytest.mark.parametrize("share", [0.9, 0.999, 1.0])
def test_quantiles_are_numpys_on_raw_data_and_within_a_bin_on_histograms(share: float) -> None:
    whole = np.concatenate(batches(), 1)
    for p in (share, 1 - share):
        exact = np.quantile(whole, p, axis=1, method="inverted_cdf")
        assert np.array_equal(quantile(points(torch.from_numpy(whole)), p).numpy(), exact)
        binned = quantile(fed(Percentile(), batches()).points(), p).numpy()
        assert np.allclose(binned, exact, atol=4 * np.abs(whole).max() / 16384)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_signed_grid_ends_half_a_step_behind_the_largest_value(bits: int) -> None:
    low, high = torch.tensor([-3.0, -1.0]).double(), torch.tensor([2.0, 5.0]).double()
    scale, offset = grid_of_range(low, high, bits, signed=True, offset=False)
    assert np.allclose(scale.numpy(), np.array([3.0, 5.0]) / (2 ** (bits - 1) - 0.5))
    assert not offset.any()
    values = np.linspace(-3, 3, 1001)
    error = np.abs(values - nearest(values, float(scale[0]), 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    assert error.max() <= 0.5 * float(scale[0]) * (1 + 1e-9)


def test_eight_signed_bits_divide_by_the_published_127_and_a_half() -> None:
    assert float(grid_of_range(torch.tensor(-1.0), torch.tensor(0.5), 8, True, False)[0]) == pytest.approx(1 / 127.5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-2.0, -0.5)])
def test_zero_is_a_code_of_an_asymmetric_grid(low: float, high: float) -> None:
    """Ranges that do not contain 0 are widened to it."""
    ends = torch.tensor([low]).double(), torch.tensor([high]).double()
    scale, offset = (float(value) for value in grid_of_range(*ends, 6, False, True))
    zero = -offset / scale
    assert zero == pytest.approx(round(zero), abs=1e-9)
    assert 0 <= round(zero) <= 63
    assert scale == pytest.approx((max(high, 0) - min(low, 0)) / 63)


def test_unsigned_grid_and_a_group_of_zeros() -> None:
    scale, _ = grid_of_range(torch.zeros(2).double(), torch.tensor([0.9, 0.0]).double(), 4, False, False)
    assert scale.tolist() == pytest.approx([0.06, 1.0])


@pytest.mark.parametrize(("signed", "offset"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("bits", [3, 8])
def test_shrunk_range_is_the_best_of_ninety(bits: int, signed: bool, offset: bool) -> None:
    data = np.concatenate(batches(2, 1), 1)[0].astype(np.float64)
    data = data if signed or offset else np.abs(data)
    found, shift = (
        float(v) for v in fit_grid(MeanSquaredError(), points(torch.from_numpy(data)[None]), bits, signed, offset)
    )
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    best = np.inf
    for i in range(90):
        ends = (1 - 0.01 * i) * data.min(), (1 - 0.01 * i) * data.max()
        if signed:
            scale, zero = max(-ends[0], ends[1]) / (2 ** (bits - 1) - 0.5), 0.0
        elif offset:
            scale = (max(ends[1], 0) - min(ends[0], 0)) / high
            zero = -np.rint(-min(ends[0], 0) / scale) * scale
        else:
            scale, zero = ends[1] / high, 0.0
        error = np.square(data - nearest(data, scale, zero, low, high)).sum()
        if error < best:
            best, expected = error, (scale, zero)
    assert (found, shift) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if bits == 3:
        assert found < float(fit_grid(MinMax(), points(torch.from_numpy(data)[None]), bits, signed, offset)[0])


@pytest.mark.parametrize("observer", ALL[1:], ids=lambda o: type(o).__name__)
def test_every_observer_fills_every_slot_of_every_bank(observer: Observer) -> None:
    model = quantize(vit(depth=1), Spec(scale=SharedScale()), quiet=True)
    calibrate(model, [images(model, 8), images(model, 8, seed=2)], observer=observer)
    for name, quantizer in named_quantizers(model).items():
        assert quantizer.is_calibrated, name
        assert torch.isfinite(quantizer.log_scale).all(), name
        if quantizer.log_scale.shape[1] == 7 and not isinstance(observer, MeanSquaredError):
            signed = torch.tensor([2.0 ** (b - 1) - 0.5 if quantizer.signed else 2.0**b - 1 for b in range(2, 9)])
            spans = quantizer.log_scale.exp() * signed  # the same range at every width
            assert torch.allclose(spans, spans[:, :1].expand_as(spans), rtol=1e-5), name


def test_min_max_of_a_model_is_that_of_its_tensors() -> None:
    """Per-channel weights and one activation deep in the float network."""
    float_model, x = vit(), images(vit(), 16)
    seen: list[torch.Tensor] = []
    float_model.blocks[1].mlp.fc1.register_forward_hook(lambda _, args, output: seen.append(args[0]))  # type: ignore[union-attr, index]
    with torch.no_grad():
        float_model(x)
    spec = Spec(FixedBits(8), FixedBits(8), heads=PerTensor(), weight_scale=PerChannel())
    model = quantize(vit(), spec, quiet=True)
    calibrate(model, list(x.split(4)), observer=MinMax())
    quantizers = named_quantizers(model)
    assert quantizers["blocks.1.mlp.fc1.input"].log_scale.exp().item() == pytest.approx(
        float(seen[0].abs().max()) / 127.5, rel=1e-5
    )
    weight = float_model.blocks[1].mlp.fc1.weight.detach().abs().amax(1) / 127.5  # type: ignore[union-attr, index, operator]
    assert torch.allclose(quantizers["blocks.1.mlp.fc1.weight"].log_scale.exp().flatten(), weight, rtol=1e-5)


def test_least_squares_is_the_default() -> None:
    banks = []
    for kwargs in ({}, {"observer": LeastSquares()}):
        model = quantize(vit(depth=1), Spec(FixedBits(3), FixedBits(3)), quiet=True)
        calibrate(model, [images(model)], **kwargs)
        banks.append(torch.cat([q.log_scale.detach().flatten() for q in named_quantizers(model).values()]))
    assert torch.equal(*banks)


def test_a_percentile_cuts_outliers_and_nothing_from_a_small_group() -> None:
    data = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([100.0])])[None]
    scale, _ = fit_grid(Percentile(0.9999), points(data), 8, True, False)
    assert float(scale) == pytest.approx(1 / 127.5, rel=1e-3)
    small = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    pair = (fit_grid(o, points(small), 8, True, False)[0] for o in (Percentile(), MinMax()))
    assert torch.equal(*pair)


@pytest.mark.parametrize("observer", ALL, ids=lambda o: type(o).__name__)
def test_values_round_trip(observer: Observer) -> None:
    assert from_values(Observer, to_values(observer), "observer") == observer


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"MovingAverage\.momentum is 0; it must lie in \(0, 1\]"):
        MovingAverage(0)
    with pytest.raises(ValueError, match=r"Percentile\.share is 0\.5; it must lie in \(0\.5, 1\], such as 0\.99999"):
        Percentile(0.5)
    with pytest.raises(ValueError, match=r"observer\.kind is 'Entropy'; allowed: LeastSquares, MinMax"):
        from_values(Observer, {"kind": "Entropy"}, "observer")
    with pytest.raises(FloatingPointError, match="the float model is not finite here"):
        Extremes(1, 0).update(torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("given", ["Percentile", Percentile], ids=["a name", "a class"])
def test_what_is_no_observer_does_not_count_as_min_max(given: object) -> None:
    with pytest.raises(ValueError, match=r"^observer is .*Percentile.*; allowed: LeastSquares\(\), MinMax\(\), "):
        calibrate(quantize(vit(), quiet=True), [images(vit(), 2)], observer=given)  # type: ignore[arg-type]


class Doubled(nn.Module):
    """A module that computes in integers: twice as much as it should."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def float_forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_observing_runs_the_float_side_of_integer_modules() -> None:
    model = quantize(vit(), quiet=True)
    largest = []
    for drop in (nn.Identity(), Doubled()):
        model.pos_drop = drop
        seen = Extremes(1, 0)
        observe(model, [images(model)], {"head.input": seen})
        largest.append(float(seen.high))
    assert largest[0] == largest[1]
    assert model.pos_drop(torch.ones(1)) == 2  # and the integer side is back
