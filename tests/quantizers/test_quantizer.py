"""The quantizer module: its state, its groups, its slots, its gradients."""

from __future__ import annotations

import pytest
import torch

from qvit.quantizers.quantizer import UncalibratedError
from qvit.spec import Bits, FixedBits, LearnedBits, ScaleBank, SharedScale, SingleRange, SingleScale, SwitchableScale
from toy_quantizers import HEADS, filled, heads_tensor, make


@pytest.mark.parametrize(
    ("bank", "bits", "shape"),
    [
        (SwitchableScale(), LearnedBits(2, 8), (HEADS, 7)),
        (SwitchableScale(), LearnedBits(3, 5, 4.0), (HEADS, 3)),
        (SwitchableScale(), FixedBits(4), (HEADS, 1)),
        (SharedScale(), LearnedBits(2, 8), (1, 7)),
        (SingleScale(), LearnedBits(2, 8), (HEADS, 1)),
        (SingleRange(), LearnedBits(2, 8), (HEADS, 1)),
    ],
    ids=["switchable", "narrow", "fixed", "shared", "single", "range"],
)
def test_everything_exists_after_init(bank: ScaleBank, bits: Bits, shape: tuple[int, int]) -> None:
    quantizer = make(bits, bank=bank, signed=False, offset=True)
    before = {name: tuple(t.shape) for name, t in quantizer.state_dict().items()}
    assert before == {
        "bits": (HEADS,),
        "bit_width": (HEADS,),
        "log_scale": shape,
        "offset": shape,
        "_extra_state": (2,),
    }
    filled(quantizer)(heads_tensor())
    assert {name: tuple(t.shape) for name, t in quantizer.state_dict().items()} == before


def test_forward_writes_nothing() -> None:
    quantizer = filled(make(LearnedBits(2, 8, 4.6)))
    with torch.no_grad():
        quantizer.bits.copy_(
            torch.tensor([1.5, 9.0, 4.5, 6.49])
        )  # outside the range, on a tie: forward leaves it alone
    state = {name: t.clone() for name, t in quantizer.state_dict().items()}
    quantizer(heads_tensor()).sum().backward()
    for name, t in quantizer.state_dict().items():
        assert torch.equal(t, state[name]), name


def test_uncalibrated_refuses() -> None:
    """It does not know its method, and so names no other's function as if it did."""
    text = r"no scale yet: run the `calibrate` of the method that .* \(qvit\.calibrate for qvit\.quantize, qvit\.methods\.fqvit"
    with pytest.raises(UncalibratedError, match=text):
        make()(heads_tensor())


def test_offset_needs_unsigned_codes() -> None:
    with pytest.raises(ValueError, match="an offset needs unsigned codes"):
        make(signed=True, offset=True)


def test_scale_groups_divide() -> None:
    with pytest.raises(ValueError, match=r"scale_groups \(6\) must be a multiple of bit_groups \(4\)"):
        make(scale_groups=6)


# Groups and slots.


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_width_in_force_picks_the_slot(bits: int) -> None:
    quantizer = filled(make())
    quantizer.set_bits(torch.full((HEADS,), float(bits)))
    bank = quantizer.log_scale.detach().exp()
    assert torch.equal(quantizer.scale_at(quantizer.bit_width).detach(), bank[:, bits - 2])
    values = quantizer(heads_tensor()).detach()
    steps = values / bank[:, bits - 2].view(1, -1, 1, 1)
    assert torch.allclose(steps, steps.round(), atol=1e-4)


def test_each_head_reads_its_own_slot_and_only_that_gets_a_gradient() -> None:
    quantizer = filled(make())
    widths = torch.tensor([2, 5, 8, 3])
    quantizer.set_bits(widths.float())
    (quantizer(heads_tensor()) ** 2).sum().backward()
    used = torch.zeros(HEADS, 7, dtype=torch.bool)
    used[torch.arange(HEADS), widths - 2] = True
    assert torch.equal(quantizer.log_scale.grad != 0, used)


def test_shared_bank_gives_heads_of_equal_bits_equal_scales() -> None:
    quantizer = filled(make(bank=SharedScale()))
    quantizer.set_bits(torch.tensor([3.0, 5.0, 3.0, 5.0]))
    scale = quantizer.scale_at(quantizer.bit_width)
    assert scale[0] == scale[2] != scale[1] == scale[3]


def test_single_scale_does_not_move_with_the_bits() -> None:
    quantizer = filled(make(bank=SingleScale()))
    scales = []
    for bits in (2.0, 8.0):
        quantizer.set_bits(torch.full((HEADS,), bits))
        scales.append(quantizer.scale_at(quantizer.bit_width).detach())
    assert torch.equal(*scales)


@pytest.mark.parametrize("low", [2, 3])
def test_a_single_range_halves_its_scale_with_every_bit(low: int) -> None:
    quantizer = make(LearnedBits(low, 8, 4.0), bank=SingleRange(), signed=False, offset=True)
    quantizer.set_bits(torch.tensor([3.0, 4.0, 5.0, 8.0]))
    fitted = torch.tensor([[0.3], [0.4], [0.5], [0.8]])
    quantizer.set_bank(fitted, -fitted)
    assert torch.allclose(quantizer.scale_at(quantizer.bit_width), fitted[:, 0])
    for bits in (3, 6):
        widths = torch.full((HEADS,), bits)
        expected = fitted[:, 0] * 2.0 ** (quantizer.bit_width - bits)
        assert torch.allclose(quantizer.scale_at(widths), expected)
        assert torch.equal(quantizer.offset_at(widths), -fitted[:, 0])  # type: ignore[arg-type]


def test_a_single_range_learns_at_every_width() -> None:
    quantizer, gradients = make(bank=SingleRange()), []
    quantizer.set_bank(torch.full((HEADS, 1), 0.2), None)
    for bits in (2.0, 7.0):
        quantizer.zero_grad()
        quantizer.set_bits(torch.full((HEADS,), bits))
        (quantizer(heads_tensor()) ** 2).sum().backward()
        gradients.append(quantizer.log_scale.grad.clone())  # type: ignore[union-attr]
    assert all((gradient != 0).all() for gradient in gradients)
    assert not torch.equal(*gradients)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_equal_heads_are_one_layer(bits: int) -> None:
    """Head-wise with equal bits and scales is layer-wise: values, and gradients once added up."""
    x = heads_tensor()
    results = []
    for groups in (HEADS, 1):
        quantizer = make(groups=groups)
        quantizer.set_bank(torch.full((groups, 7), 0.3), None)
        quantizer.set_bits(torch.full((groups,), float(bits)))
        leaf = x.clone().requires_grad_()
        values = quantizer(leaf)
        (values**3).sum().backward()
        results.append((values, leaf.grad, quantizer.bits.grad.sum()))  # type: ignore[union-attr]
    for headwise, layerwise in zip(*results, strict=True):
        assert torch.allclose(headwise, layerwise, rtol=1e-5)


@pytest.mark.parametrize("head", range(HEADS))
def test_changing_a_head_changes_only_that_head(head: int) -> None:
    quantizer, x = filled(make()), heads_tensor()
    quantizer.set_bits(torch.full((HEADS,), 4.0))
    before = quantizer(x)
    quantizer.set_bits(torch.where(torch.arange(HEADS) == head, 2.0, 4.0))
    moved = (quantizer(x) != before).flatten(2).any(2).any(0)
    assert moved.tolist() == [h == head for h in range(HEADS)]


def test_channels_inside_a_head_share_its_bits() -> None:
    quantizer = filled(make(groups=2, scale_groups=6, axis=0, batched=False))
    quantizer.set_bits(torch.tensor([2.0, 8.0]))
    weight = 3 * torch.randn(6, 500)
    levels = [len(row.unique()) for row in quantizer(weight)]
    assert max(levels[:3]) <= 4
    assert min(levels[3:]) > 16


# The gradient factor.


def test_gradient_factor_does_not_know_the_batch() -> None:
    """The same image twice has twice the gradient of the scale: the sum grows, its factor stays."""
    image = heads_tensor(1)
    grads = []
    for batch in (1, 2, 8):
        quantizer = filled(make())
        (quantizer(image.expand(batch, -1, -1, -1).clone()) ** 2).sum().backward()
        grads.append(quantizer.log_scale.grad / batch)  # type: ignore[operator]
    assert torch.allclose(grads[0], grads[1], rtol=1e-5)
    assert torch.allclose(grads[0], grads[2], rtol=1e-5)


def test_gradient_factor_by_hand() -> None:
    """g = 1 / sqrt(elements of one image and group * Qp): 15 elements per head, Qp = 7 at 4 bits."""
    factor = make().gradient_factor(heads_tensor(8), torch.full((HEADS,), 7.0))
    assert torch.allclose(factor, torch.full((HEADS,), (15 * 7) ** -0.5))
    weight = make(axis=0, batched=False).gradient_factor(torch.zeros(8, 6), torch.full((HEADS,), 7.0))
    assert torch.allclose(weight, torch.full((HEADS,), (12 * 7) ** -0.5))


def test_fixed_bits_get_no_gradient_and_locked_bits_neither() -> None:
    fixed = filled(make(FixedBits(3)))
    locked = filled(make())
    locked.lock()
    for quantizer in (fixed, locked):
        assert not quantizer.is_learned
        quantizer(heads_tensor()).sum().backward()
        assert quantizer.bits.grad is None


@pytest.mark.parametrize("x_type", [torch.float32, torch.bfloat16])
def test_autocast_rounds_the_result_alone(x_type: torch.dtype) -> None:
    """As if the product behind had cast it: values and gradients are those of float32, cast."""
    quantizer, twin = filled(make()), filled(make())
    x = heads_tensor().to(x_type)
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(x.shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = quantizer(left)
    assert values.dtype == torch.bfloat16
    expected = twin(right).bfloat16()
    assert torch.equal(values, expected)
    values.backward(upstream)
    expected.backward(upstream)
    assert left.grad.dtype == x_type  # type: ignore[union-attr]
    assert torch.equal(left.grad, right.grad)  # type: ignore[arg-type]
    assert torch.equal(quantizer.log_scale.grad, twin.log_scale.grad)  # type: ignore[arg-type]
    assert torch.equal(quantizer.bits.grad, twin.bits.grad)  # type: ignore[arg-type]


def test_float64_keeps_the_float32_grid_also_under_autocast() -> None:
    quantizer, x = filled(make()), heads_tensor()
    with torch.autocast("cpu", torch.bfloat16):
        values = quantizer(x.double())
    assert torch.equal(values, quantizer(x).double())


@pytest.mark.parametrize("scale_groups", [HEADS, 3 * HEADS])
@pytest.mark.parametrize("bank", [SwitchableScale(), SharedScale(), SingleScale(), SingleRange()])
@pytest.mark.parametrize("signed", [True, False])
def test_the_native_pass_is_the_quantizer_of_other_devices(
    signed: bool, bank: ScaleBank, scale_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter's gradient, through the bank; what a GPU runs is what runs here without the native pass."""
    ends = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr("qvit.quantizers.quantizer.fused_pass", lambda *_: None)
        quantizer = filled(make(scale_groups=scale_groups, signed=signed, offset=not signed, bank=bank))
        quantizer.set_bits(torch.tensor([2.0, 3.4, 5.0, 8.0]))
        x = torch.randn(2, 3 * HEADS, 5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        values = quantizer(x)
        (values * torch.arange(values.numel()).cos().view(values.shape)).sum().backward()
        ends.append([values, x.grad, *(p.grad for p in quantizer.parameters())])
    assert all(t is not None for t in ends[0])
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    for left, right in zip(ends[0][2:], ends[1][2:], strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))
