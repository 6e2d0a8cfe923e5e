"""2-bit weights without a zero level, and the gradient that clipped weights get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import qvit_runtime
from qvit.calibration.calibrate import NOTHING, calibrate, fit_weight, fit_weights
from qvit.calibration.range_observers import LeastSquares, MeanSquaredError, MinMax, Observer
from qvit.freezing.freeze import freeze
from qvit.freezing.integer_layers import integer_weight
from qvit.network.convert import quantize
from qvit.network.layers import QuantLinear
from qvit.quantizers.fake_quantize import composed
from qvit.quantizers.midrise import MidRiseQuantizer
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.quantizers.ste import scale_grad
from qvit.spec import (
    Bits,
    FixedBits,
    LearnedBits,
    MidRise,
    PassThroughGradient,
    PerChannel,
    ScaleBank,
    SharedScale,
    SingleScale,
    Spec,
    SwitchableScale,
)
from toy_models import images, lively, vit

ROWS, COLUMNS = 8, 12


def make(
    bits: Bits = LearnedBits(2, 8),  # noqa: B008 (a frozen value)
    *,
    raised: bool = True,
    bank: ScaleBank = SwitchableScale(),  # noqa: B008
    groups: int = 2,
    axis: int = 0,
    pass_through: bool = False,
) -> Quantizer:
    """With a grid without zero, or the usual one."""
    if raised:
        return MidRiseQuantizer(
            bits, bit_groups=groups, scale_groups=groups, axis=axis, bank=bank, pass_through=pass_through
        )
    usual = {"signed": True, "offset": False, "batched": False}
    return Quantizer(
        bits, bit_groups=groups, scale_groups=groups, axis=axis, bank=bank, pass_through=pass_through, **usual
    )


def weight(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def levels(v: np.ndarray, scale: float, bits: int) -> np.ndarray:
    """The definition, in double precision."""
    rise = 0.5 if bits == 2 else 0.0
    codes = np.rint(np.clip(v / scale - rise, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    return scale * (codes + rise)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 1), st.integers(0, 1000))
def test_two_bits_have_no_zero_and_the_others_have_one(first: int, second: int, axis: int, seed: int) -> None:
    quantizer, w = make(axis=axis), weight(seed)
    fit_weight("w", quantizer, w)
    quantizer.set_bits(torch.tensor([first, second]).float())
    found = quantizer(w).detach()
    scale = quantizer.scale_at(quantizer.bit_width).tolist()
    for half, part, bits, s in zip(found.chunk(2, axis), w.chunk(2, axis), (first, second), scale, strict=True):
        expected = levels(part.double().numpy(), s, bits)
        np.testing.assert_allclose(half.numpy(), expected, rtol=0, atol=1e-5 * s * 2**bits)
        if bits == 2:
            np.testing.assert_allclose(half.abs().unique().numpy() / s, [0.5, 1.5], rtol=1e-5)


def reference(quantizer: Quantizer, w: Tensor, log_scale: Tensor) -> Tensor:
    """`composed` with the offset that hangs on the scale."""
    widths = quantizer.bit_width.float()
    elements = torch.tensor(w.numel() / quantizer.scale_groups)
    factor = (elements * (torch.exp2(widths - 1) - 1)).rsqrt()
    slots = quantizer.slot_of(quantizer.bit_width)
    scale = log_scale[torch.arange(len(slots)), slots].exp()
    offset = scale_grad(scale, factor) * torch.where(widths == 2, 0.5, 0.0)
    return composed(w, scale, offset, widths, factor, quantizer.axis, signed=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("widths", [(2, 2), (2, 5), (4, 2)])
def test_gradients_are_those_of_the_definition(axis: int, widths: tuple[int, int]) -> None:
    quantizer, w = make(axis=axis), weight().requires_grad_()
    fit_weight("w", quantizer, w)
    quantizer.set_bits(torch.tensor(widths).float())
    upstream = weight(1)
    quantizer(w).backward(upstream)
    log_scale, again = quantizer.log_scale.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    reference(quantizer, again, log_scale).backward(upstream)
    torch.testing.assert_close(quantizer.log_scale.grad, log_scale.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad, again.grad)
    assert log_scale.grad is not None
    assert (log_scale.grad[:, 0] != 0).tolist() == [bits == 2 for bits in widths]


def test_the_same_on_the_way_that_other_devices_take(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, w, found = make(), weight().requires_grad_(), []
    fit_weight("w", quantizer, w)
    quantizer.set_bits(torch.tensor([2.0, 3.0]))
    for _ in range(2):
        quantizer.zero_grad()
        w.grad = None
        values = quantizer(w)
        values.backward(weight(1))
        found.append((values.detach(), w.grad, quantizer.log_scale.grad))
        monkeypatch.setattr("qvit.quantizers.quantizer.fused_pass", lambda *_: None)
    (native, native_w, native_scale), (torch_, torch_w, torch_scale) = found
    assert torch.equal(native, torch_)
    assert torch.equal(native_w, torch_w)  # type: ignore[arg-type]
    torch.testing.assert_close(native_scale, torch_scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_scale_that_is_fitted_is_the_best(bits: int) -> None:
    w = weight(3).repeat(40, 1)
    quantizer = make(FixedBits(bits), groups=1)
    fit_weight("w", quantizer, w)
    best = quantizer.log_scale.exp().item()

    def error(scale: float) -> float:
        return float(((levels(w.double().numpy(), scale, bits) - w.numpy()) ** 2).sum())

    assert error(best) <= min(error(best * factor) for factor in np.linspace(0.5, 1.5, 201)) * (1 + 1e-6)


def test_less_error_than_with_a_zero() -> None:
    w = torch.randn(192, 192, generator=torch.Generator().manual_seed(0))
    errors = []
    for raised in (False, True):
        quantizer = make(FixedBits(2), raised=raised, groups=1)
        fit_weight("w", quantizer, w)
        errors.append(float((quantizer(w).detach() - w).square().mean() / w.var()))
    np.testing.assert_allclose(errors, [0.149, 0.119], atol=0.004)  # of a Gaussian


def test_other_widths_are_those_of_the_usual_grid() -> None:
    risen, usual = make(), make(raised=False)
    for quantizer in (risen, usual):
        fit_weight("w", quantizer, weight())
    assert torch.equal(risen.log_scale[:, 1:], usual.log_scale[:, 1:])
    assert not torch.isclose(risen.log_scale[:, 0], usual.log_scale[:, 0], rtol=1e-3).any()
    assert risen.state_dict().keys() == usual.state_dict().keys()


def test_one_scale_for_all_widths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a scale of its own there: use SwitchableScale\(\) or SharedScale\(\)"):
        make(bank=SingleScale())
    make(FixedBits(2), bank=SingleScale())
    make(bank=SharedScale())


@pytest.mark.parametrize("raised", [False, True])
def test_a_clipped_weight_learns_only_when_gradients_pass_through(raised: bool) -> None:
    w = weight()
    w[0, 0], w[7, 11] = 9.0, -9.0
    for passes in (False, True):
        quantizer, leaf = make(FixedBits(3), raised=raised, pass_through=passes), w.clone().requires_grad_()
        quantizer.set_bank(torch.full((2, 1), 0.5), None)
        values = quantizer(leaf)
        assert torch.equal(values, make_like(quantizer, raised)(w))
        values.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad[0, 0] == leaf.grad[7, 11] == float(passes)
        inside = (w.abs() < 1.4).float()
        assert torch.equal(leaf.grad * inside, inside)
        assert quantizer.log_scale.grad is not None
        assert quantizer.log_scale.grad.abs().min() > 0


def make_like(quantizer: Quantizer, raised: bool) -> Quantizer:
    """The same grid without the gradient's way through."""
    other = make(FixedBits(3), raised=raised)
    other.load_state_dict(quantizer.state_dict())
    return other


def test_a_spec_reaches_the_weights_and_nothing_else() -> None:
    model = quantize(vit(), Spec(weight_grid=MidRise(), weight_gradient=PassThroughGradient()), quiet=True)
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            assert isinstance(module, MidRiseQuantizer) == module.pass_through == name.endswith("weight_quantizer")


@pytest.mark.parametrize("scale", [PerChannel(), None])
def test_integer_weights_are_the_same_values(scale: PerChannel | None) -> None:
    spec = Spec(weights=FixedBits(2), weight_grid=MidRise(), **({"weight_scale": scale} if scale else {}))  # type: ignore[arg-type]
    model = quantize(lively(vit()), spec, quiet=True)
    calibrate(model, [torch.randn(4, 3, 16, 16)])
    seen = 0
    for layer in model.modules():
        if not isinstance(layer, QuantLinear):
            continue
        weight = integer_weight(layer)
        grid = [np.repeat(np.repeat(t, layer.out_features // len(t), 0), layer.in_features // t.shape[1], 1)
                for t in (weight.scale, weight.midrise, weight.bits)]  # fmt: skip
        expected = layer.weight_quantizer(layer.weight).detach().numpy()
        np.testing.assert_array_equal(weight.codes * grid[0], expected)
        assert (weight.codes[grid[1]] % 2 == 1).all()
        assert set(np.unique(weight.codes[grid[1]])) <= {-3, -1, 1, 3}
        assert np.array_equal(grid[1], grid[2] == 2)
        seen += int(grid[1].any())
    assert seen == 8  # qkv, proj, fc1 and fc2 of two blocks; the classifier has eight bits


def test_bits_leave_and_enter_two() -> None:
    """A group that changes its width changes its grid, with nothing else to be told."""
    quantizer, w = make(groups=1), weight()
    fit_weight("w", quantizer, w)
    zeros = []
    for bits in (2.0, 3.0, 2.0):
        quantizer.set_bits(torch.tensor([bits]))
        zeros.append(bool((quantizer(w) == 0).any()))
    assert zeros == [False, True, False]


# -- groups of zeros --------------------------------------------------------------------------------------------------

DEAD = "blocks.0.mlp.fc1"


def pruned() -> nn.Module:
    """One hidden channel of the first MLP gives nothing and goes nowhere but through GELU: it is 0."""
    model = vit()
    with torch.no_grad():
        model.get_parameter(f"{DEAD}.weight")[3] = 0
        model.get_parameter(f"{DEAD}.bias")[3] = 0
    return model


def calibrated_pruned(spec: Spec, text: str) -> nn.Module:
    model = quantize(pruned(), spec, quiet=True)
    with pytest.warns(UserWarning, match=rf"{DEAD}.weight is zero everywhere in group \[3\]: {text}"):
        calibrate(model, [images(model, 16)])
    return model.eval()


@pytest.mark.parametrize("observer", [LeastSquares(), MinMax(), MeanSquaredError()], ids=lambda o: type(o).__name__)
def test_a_channel_of_zeros_stays_one(observer: Observer) -> None:
    """Half a step of scale 1 made every weight 0.5."""
    quantizer = make(FixedBits(2), groups=ROWS)
    w = weight()
    w[3] = 0
    with pytest.warns(UserWarning, match="w is zero everywhere"):
        fit_weight("w", quantizer, w, observer)
    values = quantizer(w).detach()
    assert 0 < values[3].abs().max() < 1e-11
    assert values[2].abs().min() > 0.1


def test_a_pruned_channel_is_frozen_and_runs_as_such(tmp_path: Path) -> None:
    """The smallest scale passes the checks of a program and the file; float32 sums of its products are nothing."""
    spec = Spec(FixedBits(2), FixedBits(8), weight_scale=PerChannel(), weight_grid=MidRise())
    model = calibrated_pruned(spec, r"its scale is arbitrary, and at 2 bits, .* the smallest there is \(4e-12\)")
    program = freeze(model)
    qvit_runtime.check(program)
    qvit_runtime.save(program, tmp_path / "m.qvit")
    loaded = qvit_runtime.load(tmp_path / "m.qvit")
    stored = loaded.weights[f"{DEAD}.weight"]
    assert stored.scale[3, 0] == pytest.approx(2e-12)
    assert set(stored.codes[3].tolist()) == {1}
    x = images(model, 4, seed=5)
    hidden: list[Tensor] = []
    model.get_submodule(DEAD).register_forward_hook(lambda _, args, output: hidden.append(output.detach()))
    with torch.no_grad():
        logits = model(x)
    assert hidden[0][..., 3].abs().max() < 1e-9
    np.testing.assert_allclose(qvit_runtime.run(loaded, x.numpy()), logits.numpy(), rtol=0, atol=0.05)


def test_a_group_of_zeros_in_a_shared_bank_is_told_apart() -> None:
    """One row of scales for all: nothing can be done for it at 2 bits, and the warning says so."""
    spec = Spec(FixedBits(2), FixedBits(8), weight_scale=PerChannel(), weight_grid=MidRise(), scale=SharedScale())
    model = calibrated_pruned(
        spec, r"at 2 bits, whose grid has no zero, it becomes half a step of the scale that all gro"
    )
    assert named_quantizers(model)[f"{DEAD}.weight"].log_scale.exp().item() > 1e-3


def test_the_switch_of_activations_first_fits_it_so_too() -> None:
    """And other widths of the bank have the scale that a zero does not care about."""
    model = calibrated_pruned(
        Spec(weight_scale=PerChannel(), weight_grid=MidRise()), "its scale is arbitrary, and at 2 bits"
    )
    bank = named_quantizers(model)[f"{DEAD}.weight"].log_scale
    with torch.no_grad():
        bank.zero_()
    with pytest.warns(UserWarning, match="is zero everywhere"):
        fit_weights(model)
    torch.testing.assert_close(bank[3].exp(), torch.tensor([NOTHING, *[1.0] * 6]), rtol=1e-5, atol=0.0)
