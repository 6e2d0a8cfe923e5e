"""IRM: what it does to a distribution, where it starts, and that it folds into the integer program exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qvit_runtime
from qvit.calibration.calibrate import calibrate as calibrate_quantizers
from qvit.calibration.calibrate import float_forward
from qvit.freezing.freeze import freeze
from qvit.freezing.integer_layers import integer_weight
from qvit.methods.qvit_irm import QViTIRM, calibrate, placement, quantize
from qvit.methods.qvit_irm.guide import head_statistics
from qvit.network.attention import split_heads
from qvit.network.placement import FOLDED, format_placement
from qvit.network.rectify import RectifiedLinear, Rectifier
from qvit.quantizers.exact import in_float64
from qvit.quantizers.quantizer import Quantizer
from qvit.spec import FixedBits, SwitchableScale
from toy_models import images, swin, vit

HEADS, DIM = 3, 8


def skewed(seed: int = 0) -> torch.Tensor:
    """(B, N, 3 H d): q and k of every head with another mean and spread, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 10, 3 * HEADS, DIM, generator=generator)
    mean = 4 * torch.randn(3 * HEADS, generator=generator) + 4
    spread = torch.rand(3 * HEADS, generator=generator) + 0.5
    return (x * spread[:, None] + mean[:, None]).flatten(-2)


def rectifier_for(x: torch.Tensor) -> Rectifier:
    rectifier = Rectifier(HEADS)
    rectifier.start(*head_statistics(x, HEADS))
    return rectifier


def test_zero_mean_and_unit_variance_of_q_and_k_of_every_head() -> None:
    x = skewed()
    rectifier = rectifier_for(x)
    torch.nn.init.zeros_(rectifier.log_gamma)  # gamma 1, beta 0
    result = rectifier(x)
    mean, variance = head_statistics(result, HEADS)
    assert mean.abs().max() < 1e-4
    torch.testing.assert_close(variance, torch.ones(2 * HEADS), rtol=1e-4, atol=1e-4)
    v = slice(2 * HEADS * DIM, None)
    assert torch.equal(result[..., v], x[..., v])


def test_it_starts_by_removing_means_only() -> None:
    x = skewed()
    mean, variance = head_statistics(rectifier_for(x)(x), HEADS)
    assert mean.abs().max() < 1e-4
    torch.testing.assert_close(variance, head_statistics(x, HEADS)[1], rtol=1e-4, atol=1e-4)


def test_gamma_and_beta_of_a_head_move_that_head() -> None:
    x = skewed()
    rectifier = rectifier_for(x)
    before = split_heads(rectifier(x), HEADS)
    with torch.no_grad():
        rectifier.log_gamma[1] += 1  # q of head 1
        rectifier.beta[HEADS + 2] += 0.5  # k of head 2
    q, k, _ = split_heads(rectifier(x), HEADS)
    torch.testing.assert_close(q[:, 1], before[0][:, 1] * torch.e, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k[:, 2], before[1][:, 2] + 0.5)
    assert torch.equal(q[:, [0, 2]], before[0][:, [0, 2]])
    assert torch.equal(k[:, :2], before[1][:, :2])


def test_running_statistics_move_by_the_momentum() -> None:
    rectifier = Rectifier(HEADS)
    rectifier.update(torch.full((2 * HEADS,), 2.0), torch.full((2 * HEADS,), 3.0), 0.25)
    torch.testing.assert_close(rectifier.mean, torch.full((2 * HEADS,), 0.5))
    torch.testing.assert_close(rectifier.variance, torch.full((2 * HEADS,), 1.5))


@pytest.mark.parametrize("bits", [2, 3])
def test_codes_carry_more_information(bits: int) -> None:
    """Entropy of the codes of q, scales fitted by least squares both times: far from zero most codes are never used."""

    def entropy(q: torch.Tensor) -> float:
        quantizer = Quantizer(
            FixedBits(bits),
            bit_groups=HEADS,
            scale_groups=HEADS,
            axis=1,
            signed=True,
            offset=False,
            bank=SwitchableScale(),
            batched=True,
        )
        model = torch.nn.Sequential(quantizer)
        model.register_parameter("device", torch.nn.Parameter(torch.zeros(1)))
        calibrate_quantizers(model, [q])
        codes = (quantizer(q) / quantizer.scale_at(quantizer.bit_width)[:, None, None]).round()
        shares = [(codes == code).double().mean() for code in codes.unique()]
        return -float(sum(share * share.log2() for share in shares))

    x = skewed()
    assert entropy(split_heads(rectifier_for(x)(x), HEADS)[0]) > entropy(split_heads(x, HEADS)[0]) + 0.3


def moved(family: str) -> torch.nn.Module:
    """Calibrated at 4 bits, with gamma and beta somewhere else than at their start."""
    float_model = vit() if family == "vit" else swin()
    model = quantize(float_model, QViTIRM(4, 4))
    calibrate(model, [images(float_model, 32, seed=7)])
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, Rectifier):
            with torch.no_grad():
                module.log_gamma += 0.3 * torch.randn(module.log_gamma.shape, generator=generator)
                module.beta += 0.3 * torch.randn(module.beta.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_frozen_program_is_the_module(family: str) -> None:
    """Same codes of every q and k but for a few near ties, same logits; no operation was added for the rectifier."""
    model = moved(family)
    batch = images(model, 8)
    program = freeze(model)
    trace = qvit_runtime.trace(program, batch.numpy())
    seen: dict[str, torch.Tensor] = {}
    exact = in_float64(model)
    for name, module in exact.named_modules():
        if name.endswith((".q_quantizer", ".k_quantizer")):
            module.register_forward_hook(lambda m, _, out, name=name: seen.update({name: codes_of(m, out)}))
    with torch.no_grad():
        logits = exact(batch.double())
    assert len(seen) == (4 if family == "vit" else 8)
    for name, codes in seen.items():
        ours = trace[name.removesuffix("_quantizer")].reshape(codes.shape)
        assert len(np.unique(ours)) > 8
        assert (ours != codes.numpy()).mean() < 5e-4, name
    np.testing.assert_allclose(trace[program.output], logits.numpy(), atol=0.05 * float(logits.std()))
    plain = quantize(vit() if family == "vit" else swin(), QViTIRM(4, 4, rectify=False))
    calibrate(plain, [images(plain, 8)])
    assert [type(op) for op in program.ops] == [type(op) for op in freeze(plain).ops]


def codes_of(quantizer: Quantizer, values: torch.Tensor) -> torch.Tensor:
    """Codes of fake-quantized values (B, H, N, d)."""
    return (values / quantizer.scale_at(quantizer.bit_width)[:, None, None]).round()


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per q, k, v"])
def test_folding_leaves_the_weight_codes_alone(per_channel: bool) -> None:
    layer = next(m for m in moved("vit").modules() if isinstance(m, RectifiedLinear))
    weight = integer_weight(layer)
    if not per_channel:
        weight = qvit_runtime.program.Weight(weight.codes, weight.bits[:3], weight.scale[:3])
    weight.midrise[-1] = True
    bias = layer.bias.detach().numpy()
    folded, moved_bias = layer.folded(weight, bias)
    assert folded.codes is weight.codes
    assert folded.bits.shape == folded.scale.shape == ((48, 1) if per_channel else (6, 1))
    assert folded.midrise.sum() == (1 if per_channel else 2)
    assert folded.midrise[-1]
    factor, shift = (t.detach().numpy() for t in layer.rectifier.affine())

    def dense(w: qvit_runtime.program.Weight) -> np.ndarray:
        return w.codes * np.repeat(w.scale, len(w.codes) // len(w.scale), axis=0)

    rows = np.repeat(factor, 8)
    np.testing.assert_allclose(dense(folded), rows[:, None] * dense(weight), rtol=1e-6)
    np.testing.assert_allclose(moved_bias, rows * bias + np.repeat(shift, 8), rtol=1e-5, atol=1e-6)


def test_the_float_network_keeps_its_temperature() -> None:
    """Calibrated, and with quantizers stepped over, scores differ from the float model's by the removed means alone."""
    float_model = vit()
    model = quantize(float_model, QViTIRM(4, 4))
    batch = images(float_model, 16)
    calibrate(model, [batch])
    layer = model.blocks[0].attn.qkv  # type: ignore[union-attr, index]
    with float_forward(model), torch.no_grad():
        x = torch.randn(2, 17, 16)
        ours, theirs = (split_heads(qkv(x), 2)[:2] for qkv in (layer, float_model.blocks[0].attn.qkv))  # type: ignore[union-attr, index, operator]
    means = layer.rectifier.mean.view(2, 1, 2, 1, 1)  # type: ignore[union-attr]
    for mine, other, mean in zip(ours, theirs, means, strict=True):
        torch.testing.assert_close(mine, other - mean, rtol=1e-5, atol=1e-5)


def test_placement_says_where_it_went() -> None:
    """Not among what stays float: no operation is left of it."""
    rows = [row for row in placement(moved("vit")) if row.tensor.endswith("rectifier")]
    assert [row.tensor for row in rows] == ["blocks.0.attn.qkv.rectifier", "blocks.1.attn.qkv.rectifier"]
    assert rows[0].bits == FOLDED
    assert "scales and bias of qkv" in rows[0].reason
    assert format_placement(rows).splitlines()[1].split()[:2] == ["blocks.0-1.attn.qkv.rectifier", "folded"]
