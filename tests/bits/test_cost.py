"""Cost: the oracle numbers, a mixed head-wise case by hand, gradients, packed bytes."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qvit.bits.cost import bits_in_force, cost, costs
from qvit.freezing.freeze import freeze
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, PerTensor, Spec
from qvit_runtime.packing import packed_bytes
from toy_models import calibrated, mix_bits, swin, uniform, vit


@pytest.mark.parametrize(
    ("name", "bits", "gbitops"),
    [
        ("deit_tiny_patch16_224", 4, 21.455),
        ("deit_tiny_patch16_224", 3, 12.883),
        ("deit_small_patch16_224", 4, 76.375),
        ("deit_base_patch16_224", 4, 286.607),
        ("swin_tiny_patch4_window7_224", 4, 72.580),
    ],
)
@pytest.mark.parametrize("heads", [None, PerTensor()], ids=["head_wise", "layer_wise"])
def test_oracle(name: str, bits: int, gbitops: float, heads: PerTensor | None) -> None:
    """methods.md section 8 and 1.6; on the meta device, so that DeiT-Base costs nothing."""
    with torch.device("meta"):
        model = timm.create_model(name)
        spec = uniform(bits) if heads is None else uniform(bits, heads=heads)
        shapes = costs(quantize(model, spec, quiet=True))
    table = {name: torch.full((groups,), float(bits), dtype=torch.float64) for name, groups in shapes.groups.items()}
    for name in table:
        if name.startswith(("patch_embed", "head")):
            table[name].fill_(8.0)
    assert float(shapes.gbitops(table)) == pytest.approx(gbitops, abs=5e-4)


def test_mixed_case_by_hand() -> None:
    """vit toy: N = 17, C = 16, H = 2, d = 8, one block; every number below is written out."""
    model = quantize(vit(depth=1))
    widths = {
        "patch_embed.proj.weight": [8],
        "patch_embed.proj.input": [8],
        "blocks.0.attn.qkv.weight": [2, 3, 4, 5, 6, 7],  # q0 q1 k0 k1 v0 v1
        "blocks.0.attn.qkv.input": [4],
        "blocks.0.attn.q": [2, 8],
        "blocks.0.attn.k": [8, 3],
        "blocks.0.attn.v": [5, 7],
        "blocks.0.attn.attention": [6, 2],
        "blocks.0.attn.proj.input": [3, 7],
        "blocks.0.attn.proj.weight": [8, 2],
        "blocks.0.mlp.fc1.input": [5],
        "blocks.0.mlp.fc1.weight": [3],
        "blocks.0.mlp.fc2.input": [4],
        "blocks.0.mlp.fc2.weight": [6],
        "head.input": [8],
        "head.weight": [8],
    }
    quantizers = named_quantizers(model)
    assert set(quantizers) == set(widths)
    for name, bits in widths.items():
        quantizers[name].set_bits(torch.tensor([float(b) for b in bits]))
    bitops = {
        "patch_embed.proj": 16 * 48 * 16 * 8 * 8,
        "blocks.0.attn.qkv": 17 * 16 * 48 * 4.5 * 4,  # mean of 2..7 is 4.5
        "blocks.0.attn.query_key": 17 * 17 * 8 * (2 * 8 + 8 * 3),  # head by head
        "blocks.0.attn.attention_value": 17 * 17 * 8 * (6 * 5 + 2 * 7),
        "blocks.0.attn.proj": 17 * 16 * 16 * (3 * 8 + 7 * 2) / 2,  # 19, where the product of the means is 25
        "blocks.0.mlp.fc1": 17 * 16 * 64 * 5 * 3,
        "blocks.0.mlp.fc2": 17 * 64 * 16 * 4 * 6,
        "head": 16 * 5 * 8 * 8,
    }
    summary = cost(model)
    assert set(summary.products) == set(bitops)
    for name, value in bitops.items():
        assert summary.products[name] * 1e9 == pytest.approx(value, rel=1e-12), name
    assert summary.gbitops * 1e9 == pytest.approx(sum(bitops.values()), rel=1e-12)

    weight_bits = 768 * 8 + 768 * 4.5 + 256 * 5 + 1024 * 3 + 1024 * 6 + 80 * 8
    elements = 768 + 768 + 256 + 1024 + 1024 + 80
    assert summary.kib == pytest.approx(weight_bits / 8 / 1024, rel=1e-12)
    assert summary.average_weight_bits == pytest.approx(weight_bits / elements, rel=1e-12)

    per_image = 17 * 16
    activation_bits = (
        3 * 16 * 16 * 8  # image
        + per_image * (4 + 5 + 5.5 + 6 + 5 + 5)  # qkv input, q, k, v, proj input, fc1 input
        + 2 * 17 * 17 * 4  # attention map
        + 17 * 64 * 4
        + 16 * 8
    )
    activations = 3 * 16 * 16 + 6 * per_image + 2 * 17 * 17 + 17 * 64 + 16
    assert summary.average_activation_bits == pytest.approx(activation_bits / activations, rel=1e-12)


@pytest.mark.parametrize("unit", ["gbitops", "kib", "average_weight_bits", "average_activation_bits"])
@given(seed=st.integers(0, 1000))
def test_gradient_equals_finite_difference(unit: str, seed: int) -> None:
    shapes, generator = SHAPES, torch.Generator().manual_seed(seed)
    bits = {
        name: (2 + 6 * torch.rand(len(widths), generator=generator, dtype=torch.float64)).requires_grad_()
        for name, widths in WIDTHS.items()
    }
    value = getattr(shapes, unit)(bits)
    names = list(bits)
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    (gradient,) = torch.autograd.grad(value, bits[name], allow_unused=True)
    step = 1e-4
    for group in range(len(bits[name])):
        ends = []
        for sign in (-1, 1):
            moved = {n: t.detach().clone() for n, t in bits.items()}
            moved[name][group] += sign * step
            ends.append(float(getattr(shapes, unit)(moved)))
        slope = (ends[1] - ends[0]) / (2 * step)
        analytic = 0.0 if gradient is None else float(gradient[group])
        assert analytic == pytest.approx(slope, rel=1e-5, abs=1e-9)


SMALL = quantize(swin())
SHAPES, WIDTHS = costs(SMALL), bits_in_force(SMALL)


@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_kib_is_what_the_packed_weights_take(make) -> None:  # type: ignore[no-untyped-def]
    model = mix_bits(calibrated(make(), Spec()))
    program = freeze(model)
    sizes = [packed_bytes(weight.codes.shape, weight.bits) for weight in program.weights.values()]  # type: ignore[arg-type]
    exact = cost(model).kib * 1024
    packed = sum(int(size.sum()) for size in sizes)
    assert exact <= packed + 1e-6
    assert packed - exact < sum(size.size for size in sizes)  # at most a byte of fill per block


def test_cost_needs_quantizers() -> None:
    with pytest.raises(ValueError, match="has no quantizers"):
        costs(nn.Linear(2, 2))


def test_distilled_heads_both_count() -> None:
    with torch.device("meta"):
        model = quantize(
            timm.create_model("deit_tiny_distilled_patch16_224", depth=1), Spec(edge=FixedBits(8)), quiet=True
        )
    products = {product.name: product.macs for product in costs(model).products}
    assert products["head"] == products["head_dist"] == 192 * 1000
    assert products["blocks.0.attn.query_key"] == 198 * 198 * 192
