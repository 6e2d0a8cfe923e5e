"""The search: what importance estimates, that it never loses, that it finds what was planted."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qvit.methods.tsptq import TSPTQ, quantize
from qvit.methods.tsptq.samples import collect, hessian_direction
from qvit.methods.tsptq.search import Operand, Product, Setting, search
from qvit.quantizers.fake_quantize import fake_quantize
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.quantizers.region_quantizer import GELU_DEPTH, RegionQuantizer
from qvit.spec import FixedBits, SingleScale
from toy_models import images, swin, vit


def uniform(bits: int, groups: int = 1) -> Quantizer:
    return Quantizer(
        FixedBits(bits),
        bit_groups=1,
        scale_groups=groups,
        axis=0,
        signed=True,
        offset=False,
        bank=SingleScale(),
        batched=False,
    )


def operand(values: Tensor, quantizer: Quantizer, scale: float = 1.0) -> Operand:
    shift = 1 if isinstance(quantizer, RegionQuantizer) else 0
    return Operand(values, quantizer, Setting(torch.full((quantizer.scale_groups,), scale), shift))


# What importance is.


def test_direction_has_the_covariance_of_the_hessian() -> None:
    """The mean of v v^T over all sign vectors, which is the expectation, against the Hessian of KL from autograd."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    v = hessian_direction(logits.expand(16, 4), signs)

    def divergence(other: Tensor) -> Tensor:
        return nn.functional.kl_div(other.log_softmax(0), logits.log_softmax(0), reduction="sum", log_target=True)

    hessian = torch.autograd.functional.hessian(divergence, logits)
    assert torch.allclose(v.mT @ v / 16, hessian, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "product"), [(vit, "fc1"), (vit, "scores"), (vit, "mixed"), (swin, "scores")], ids=str
)
def test_importance_predicts_the_loss_of_noise(make, product: str) -> None:  # type: ignore[no-untyped-def]
    """Independent noise of variance s^2 on every output O raises KL by about 1/2 s^2 sum F."""
    model = quantize(make(), TSPTQ(), quiet=True)
    quantizers = named_quantizers(model)
    for quantizer in quantizers.values():
        quantizer.is_calibrated = True
        quantizer.forward = lambda x: x  # type: ignore[method-assign]
    block = model.blocks[1] if hasattr(model, "blocks") else model.layers[1].blocks[1]
    name = next(name for name, module in model.named_modules() if module is block)
    x, noise = images(model, 16), torch.Generator().manual_seed(0)
    deviation = 0.02

    def disturbed(o: Tensor) -> Tensor:
        return o + deviation * torch.randn(o.shape, generator=noise)

    with torch.no_grad():
        exact = model(x).log_softmax(1)
        if product == "fc1":
            block.mlp.fc1.register_forward_hook(lambda _, args, output: disturbed(output))
        elif product == "scores":
            scores = block.attn._scores
            block.attn._scores = lambda q, k: disturbed(scores(q, k))
        else:
            block.attn.proj.input_quantizer.forward = disturbed
        noisy = [model(x).log_softmax(1) for _ in range(40)]
    found = sum(nn.functional.kl_div(n, exact, reduction="sum", log_target=True) for n in noisy) / len(noisy)

    predicted = 0.0
    clean = quantize(make(), TSPTQ(), quiet=True)
    for seed in range(6):
        samples = collect(clean, x, seed)
        if product == "fc1":
            importance = samples.layers[f"{name}.mlp.fc1"].importance
            rows = len(x) * clean.get_submodule(f"{name}.mlp.fc1").positions
            predicted += float(importance.mean(0).sum()) * rows / 6
        else:
            importance = getattr(samples.attentions[f"{name}.attn"], product)
            entries = len(x) * clean.get_submodule(f"{name}.attn").windows
            predicted += float(importance.sum()) * entries / len(importance) / 6
    assert float(found) == pytest.approx(0.5 * deviation**2 * predicted, rel=0.25)


def test_collect_leaves_the_model_as_it_was() -> None:
    model = quantize(vit(), TSPTQ(), quiet=True).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # frozen weights must not cut the graph
    before = {name: t.clone() for name, t in model.state_dict().items()}
    collect(model, images(model, 3))
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(quantizer.is_calibrated for quantizer in named_quantizers(model).values())


def test_samples_are_those_of_the_float_products() -> None:
    """Each operand pair gives back what the float model computes: shapes, axes and order are right."""
    model = quantize(vit(), TSPTQ(), quiet=True)
    samples = collect(model, images(model, 2))
    for name, attention in samples.attentions.items():
        scale = model.get_submodule(name).scale
        assert torch.allclose((attention.q @ attention.k.mT * scale).softmax(-1), attention.attention, atol=1e-5)
        mixed = (attention.attention @ attention.v).transpose(1, 2).flatten(2)  # (E, N, C), as proj reads it
        rows = samples.layers[f"{name}.proj"].inputs
        assert (torch.cdist(rows.double(), mixed.flatten(0, 1).double()).amin(1) < 1e-4).all()
        assert attention.scores.shape == attention.attention.shape
        assert attention.mixed.shape == attention.v.shape
    assert samples.layers["patch_embed.proj"].inputs.shape == (2 * 16, 3 * 4 * 4)
    assert samples.layers["head"].importance.shape == (2, 5)


# What the search does with it.


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 8), st.integers(2, 8), st.sampled_from(["uniform", "softmax", "gelu"]))
def test_it_never_ends_worse_than_its_start(seed: int, bits: int, other: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(20, 6, generator=generator)
    left = {
        "uniform": operand(noise, uniform(bits), 0.5),
        "softmax": operand((3 * noise).softmax(-1), RegionQuantizer(bits, axis=1), 0.1),
        "gelu": operand(nn.functional.gelu(noise), RegionQuantizer(bits, axis=1, depth=GELU_DEPTH), 0.2),
    }[kind]
    right = operand(torch.randn(4, 6, generator=generator), uniform(other, groups=4), 0.3)
    product = Product(left, right, torch.rand(20, 4, generator=generator))
    found = search(product, rounds=2, candidates=6)

    def objective(left_setting: Setting, right_setting: Setting) -> float:
        hat = left.quantized(left_setting) @ right.quantized(right_setting).T
        return float((product.importance * (left.values @ right.values.T - hat) ** 2).sum())

    assert found.end <= found.start * (1 + 1e-6)
    assert found.start == pytest.approx(objective(left.setting, right.setting), rel=1e-4)
    assert found.end == pytest.approx(objective(found.left, found.right), rel=1e-4)
    again = search(Product(*(o for o in (left, right)), product.importance), rounds=3, candidates=6)
    assert again.end <= found.end * (1 + 1e-6)


def test_it_finds_planted_grids() -> None:
    """Operands that lie on a grid which is among the candidates: the objective falls to nothing, channel by channel."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (64, 8), generator=generator).float()
    codes[:, 0] = 7  # the largest code occurs, but not the one below -7: |codes| reaches 8 only where the grid does
    weights = torch.randint(-7, 8, (5, 8), generator=generator).float()
    weights[:, 0] = 7
    scales = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    left, right = (
        operand(codes.clamp(min=-7) * 0.3, uniform(4)),
        operand(weights * scales[:, None], uniform(4, groups=5)),
    )
    found = search(Product(left, right, torch.ones(64, 5)), rounds=3, candidates=12)  # 10 / 12 of 1.2 is 1
    assert found.end < 1e-8 * found.start
    assert torch.allclose(found.right.scale, scales)
    assert torch.allclose(found.left.scale, torch.tensor([0.3]))


def test_two_scales_are_found_where_one_would_not_do() -> None:
    """Many values on a fine grid and a few on one 8 times coarser, as behind a softmax."""
    quantizer = RegionQuantizer(5, axis=1)
    values = torch.cat([torch.arange(16.0), 8 * torch.arange(2.0, 16.0)]).repeat(4)[:, None] / 64
    left, right = operand(values, quantizer, 0.01), operand(torch.ones(1, 1), uniform(8))
    found = search(Product(left, right, torch.ones(len(values), 1)), rounds=2, candidates=12)
    assert found.left.shift == 3
    assert found.left.scale.item() == pytest.approx(1 / 64)
    assert found.end < 1e-6 * found.start


def test_importance_decides_which_rows_count() -> None:
    """One row reaches ten times further: the scale covers it when it counts, and forgets it when it does not."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 4, generator=generator)
    values[0] *= 10
    covered = {}
    for weight in (0.0, 100.0):
        importance = torch.ones(50, 3)
        importance[0] = weight
        left, right = operand(values, uniform(3)), operand(torch.randn(3, 4, generator=generator), uniform(8, groups=3))
        covered[weight] = (
            float(search(Product(left, right, importance), 1, 24).left.scale) * 3 / float(values.abs().max())
        )
    assert covered[0.0] < 0.35
    assert covered[100.0] > 0.6


def test_a_candidate_is_what_the_quantizer_will_compute() -> None:
    values = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 0.6, 6)
    quantizer = uniform(4, groups=6)
    quantizer.set_bank(scale[:, None], None)
    ones = torch.ones(6)
    expected = fake_quantize(values, quantizer.scale_at(quantizer.bit_width), None, 4 * ones, ones, 0, True)
    assert torch.allclose(operand(values, quantizer).quantized(Setting(scale, 0)), expected, atol=1e-6)
    assert torch.equal(quantizer(values), expected)


def test_zeros_keep_their_scale() -> None:
    values = torch.zeros(3, 4)
    values[1] = 1.0
    found = search(
        Product(operand(torch.ones(5, 4), uniform(4)), operand(values, uniform(4, groups=3)), torch.ones(5, 3)), 2, 5
    )
    assert found.right.scale[[0, 2]].tolist() == [1.0, 1.0]
    assert torch.isfinite(found.right.scale).all()
