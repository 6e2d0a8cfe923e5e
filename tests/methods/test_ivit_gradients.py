"""Gradients of I-ViT's simulation: of every operation against the real function that it stands for, and through whole models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.methods import ivit
from qvit.methods.ivit.layers import Grid, LayerNorm, Linear
from qvit.methods.ivit.simulation import Codes, Simulation
from toy_models import FAMILIES, images, swin, vit

OPS = Simulation()


def grid(bits: int, scale: float, **kwargs: float) -> Grid:
    made = Grid(bits, **kwargs)  # type: ignore[arg-type]
    made.set_scale(scale)
    return made


def codes(*shape: int, limit: int = 127, scale: float = 0.05, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-limit, limit + 1, shape, generator=generator).float().requires_grad_()
    return Codes(drawn, torch.tensor(scale, dtype=torch.float64))


def assert_gradients_agree(found: Codes, smooth: Tensor, *leaves: Tensor) -> None:
    """The gradients of random combinations of the values are those of the real function."""
    weight = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(9))
    mine = torch.autograd.grad((found.codes * found.scale.float() * weight).sum(), leaves)
    real = torch.autograd.grad((smooth * weight).sum(), leaves)
    for one, other in zip(mine, real, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_requantize_passes_inside_the_range_and_nothing_outside() -> None:
    x = codes(40, limit=300)
    found = OPS.requantize(x, grid(8, 0.08))
    values = x.codes * 0.05
    assert_gradients_agree(found, values.clamp(-128 * 0.08, 127 * 0.08), x.codes)
    assert (found.codes.abs() >= 127).any()


def test_linear() -> None:
    layer = Linear(nn.Linear(6, 4), 8)
    x = codes(3, 6)
    found = OPS.linear(x, layer)
    assert_gradients_agree(found, F.linear(x.codes * 0.05, layer.weight, layer.bias), layer.weight, layer.bias)


def test_products_of_activations() -> None:
    q, k, v = (codes(2, 5, 4, seed=seed, limit=50) for seed in range(3))
    scores = OPS.query_key(q, k, grid(8, 0.4), 0.5)
    assert_gradients_agree(
        scores, (q.codes @ k.codes.mT * 0.05**2 * 0.5).clamp(-128 * 0.4, 127 * 0.4), q.codes, k.codes
    )
    attention = Codes(torch.full((2, 5, 5), 51.0, requires_grad=True), torch.tensor(1 / 256).double())
    mixed = OPS.attention_value(attention, v, grid(8, 0.02))
    real = (attention.codes / 256) @ (v.codes * 0.05)
    assert_gradients_agree(
        mixed, real.transpose(0, 1).flatten(1).clamp(-128 * 0.02, 127 * 0.02), attention.codes, v.codes
    )


def test_shiftmax_is_softmax_also_for_the_position_bias() -> None:
    scores, output = grid(8, 0.04, exponent=1.0), Grid(8, signed=False, scale=2.0**-8)
    x = Codes(codes(1, 3, 2, 5, 5).codes, scores.scale.double())
    step = float(scores.scale)
    bias = (torch.randint(-20, 20, (2, 5, 5)) * step).requires_grad_()
    mask = torch.where(torch.rand(3, 5, 5) < 0.2, -100.0, 0.0)
    found = OPS.softmax(x, scores, output, bias, mask)
    assert_gradients_agree(found, (x.codes * step + bias + mask[:, None]).softmax(-1), x.codes, bias)


def test_shift_gelu() -> None:
    hidden = grid(8, 0.05, exponent=1.702)
    x = Codes(codes(7, 30).codes, hidden.scale.double())
    values = x.codes * hidden.scale
    assert_gradients_agree(OPS.gelu(x, hidden), values * torch.sigmoid(1.702 * values), x.codes)


def test_layer_norm_has_gradients_of_gamma_and_beta() -> None:
    norm = LayerNorm(nn.LayerNorm(12), 8)
    norm.output.set_scale(0.04)
    with torch.no_grad():
        norm.weight.uniform_(0.2, 1.0)
        norm.bias.uniform_(-1.0, 1.0)
    x = codes(5, 12, limit=20000, scale=1e-4)
    real = F.layer_norm(x.codes * 1e-4, (12,), norm.weight, norm.bias, norm.eps)
    assert_gradients_agree(
        OPS.layer_norm(x, norm), real.clamp(-128 * 0.04, 127 * 0.04), x.codes, norm.weight, norm.bias
    )


def test_addition_and_layer_scale() -> None:
    left, right = codes(5, 6, limit=20000, scale=1e-4), codes(5, 6, limit=3000, scale=1e-3, seed=1)
    gamma = torch.tensor([1.0, -0.5, 0.1, 0.0, 2.0, -1.0], requires_grad=True)
    found = OPS.add(left, right, grid(16, 5e-4), (1.0, gamma))
    assert_gradients_agree(found, left.codes * 1e-4 + gamma * right.codes * 1e-3, left.codes, right.codes, gamma)


def test_tokens_and_mean() -> None:
    x = codes(2, 4, 3, limit=1000, scale=1e-3)
    prefix, position = torch.randn(1, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    found = OPS.tokens(x, prefix, position, grid(16, 2e-4))  # reaches 6.5: nothing is clipped
    real = torch.cat([prefix.expand(2, 1, 3), x.codes * 1e-3 + position], 1)
    assert_gradients_agree(found, real, x.codes, prefix, position)
    assert_gradients_agree(OPS.mean_tokens(x, 1, grid(8, 0.01)), (x.codes * 1e-3)[:, 1:].mean(1), x.codes)


@pytest.mark.parametrize(
    "make",
    [vit, FAMILIES["deit_distilled"], FAMILIES["deit3"], lambda: vit(global_pool="avg", pre_norm=True), swin],
    ids=["vit", "distilled", "layer scale", "mean", "swin"],
)
def test_gradients_reach_every_parameter_and_are_near_those_of_the_float_model(make: Callable[[], nn.Module]) -> None:
    model = make()
    network = ivit.quantize(model)
    ivit.calibrate(network, [images(model, 16, seed=7)])
    x = images(model, 8)
    gradients = []
    for module in (model, network):
        output = module(x)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        (output * weight).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    exact, mine = gradients
    assert exact.keys() == mine.keys()
    for name, gradient in mine.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert (gradient - exact[name]).norm() < 0.5 * exact[name].norm(), name  # an ignored branch would be at 1
