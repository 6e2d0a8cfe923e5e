"""Bits of a quantizer: how they settle, how they are locked, what a state dictionary keeps of it; banks fitted at bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvit.calibration.calibrate import fit_weight
from qvit.quantizers.quantizer import HYSTERESIS
from qvit.spec import FixedBits, SharedScale, SingleRange, SingleScale
from toy_quantizers import filled, heads_tensor, make


@pytest.mark.parametrize(
    ("bits", "width", "settled"),
    [
        (4.5 + HYSTERESIS / 2, 4, 4),  # past the tie, but not by enough
        (4.5 + 2 * HYSTERESIS, 4, 5),
        (4.5 - HYSTERESIS / 2, 5, 5),
        (4.5 - 2 * HYSTERESIS, 5, 4),
        (1.2, 2, 2),  # clamped
        (9.7, 8, 8),
        (6.9, 3, 7),  # several at once
    ],
)
def test_hysteresis(bits: float, width: int, settled: int) -> None:
    quantizer = make(groups=1)
    with torch.no_grad():
        quantizer.bits.fill_(bits)
        quantizer.bit_width.fill_(width)
    assert quantizer.settle_bits() == (width != settled)
    assert quantizer.widths == [settled]
    assert 2 <= float(quantizer.bits.detach()) <= 8


def test_a_bit_that_dithers_keeps_its_slot() -> None:
    quantizer = make(groups=1)
    quantizer.set_bits(torch.tensor([4.4]))
    for step in range(20):
        with torch.no_grad():
            quantizer.bits.fill_(4.5 + (0.04 if step % 2 else -0.04))
        assert not quantizer.settle_bits()
    assert quantizer.widths == [4]


def test_fixed_bits_never_settle() -> None:
    quantizer = make(FixedBits(3), groups=1)
    assert not quantizer.settle_bits()
    assert quantizer.widths == [3]


def test_lock_survives_a_safetensors_round_trip(tmp_path: Path) -> None:
    quantizer = filled(make())
    quantizer.set_bits(torch.tensor([2.2, 3.7, 5.0, 8.0]))
    quantizer.lock()
    save_file(quantizer.state_dict(), tmp_path / "q.safetensors")
    fresh = make()
    assert fresh.is_learned
    assert not fresh.is_calibrated
    fresh.load_state_dict(load_file(tmp_path / "q.safetensors"))
    assert not fresh.is_learned
    assert not fresh.bits.requires_grad
    assert fresh.widths == [2, 4, 5, 8]
    assert fresh.bits.tolist() == [2.0, 4.0, 5.0, 8.0]
    assert torch.equal(fresh(heads_tensor()), quantizer(heads_tensor()))


def test_an_unlocked_uncalibrated_state_stays_so() -> None:
    fresh = filled(make())
    fresh.lock()
    fresh.load_state_dict(make().state_dict())
    assert fresh.is_learned
    assert not fresh.is_calibrated


def test_fixed_bits_stay_fixed_whatever_is_loaded() -> None:
    fresh = make(FixedBits(8), groups=1)
    state = fresh.state_dict()
    state["_extra_state"] = torch.tensor([True, True])
    fresh.load_state_dict(state)
    assert not fresh.is_learned


def test_shared_bank_is_fitted_to_all_groups_together() -> None:
    """One dead head must not drag the shared scale away: the pooled data decide."""
    weight = torch.cat([torch.zeros(4, 500), 0.02 * torch.randn(4, 500)])
    shared = make(groups=2, axis=0, bank=SharedScale(), batched=False)
    whole = make(groups=1, axis=0, batched=False)
    with pytest.warns(UserWarning, match=r"w is zero everywhere in group \[0\]"):
        fit_weight("w", shared, weight)
    fit_weight("w", whole, weight)
    assert torch.equal(shared.log_scale, whole.log_scale)


@pytest.mark.parametrize("kind", [SingleScale(), SingleRange()])
def test_a_single_scale_is_fitted_at_the_bits_of_each_group(kind: SingleScale | SingleRange) -> None:
    single = make(groups=2, axis=0, bank=kind, batched=False)
    single.set_bits(torch.tensor([2.0, 8.0]))
    bank = make(groups=2, axis=0, batched=False)
    weight = torch.randn(4, 500)
    fit_weight("w", single, weight)
    fit_weight("w", bank, weight)
    fitted = torch.stack([bank.log_scale[0, 0], bank.log_scale[1, 6]]).exp()
    torch.testing.assert_close(single.scale_at(single.bit_width), fitted)
