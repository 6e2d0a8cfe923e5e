"""The head axes of qkv rows and proj columns, by magnitude: square matrices hide a swapped axis from every shape check.

Heads differ 10 times in size, for q, k and v each in its own order. With one scale per head the quantization error of a
head is relative to that head; with an axis swapped every group holds all magnitudes, and the small ones drown.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import qvit_runtime.interpreter as interpreter
from qvit.calibration.calibrate import calibrate, float_forward
from qvit.freezing.freeze import freeze
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, LearnedBits, Spec
from toy_models import images, lively, mix_bits, swin, uniform

HEADS, DIM = 4, 32
WIDTH = DIM // HEADS
ORDERS = {"q": (0, 1, 2, 3), "k": (2, 0, 3, 1), "v": (3, 2, 1, 0)}


def magnitude(part: str, head: int) -> float:
    return 10.0 ** (ORDERS[part][head] - 2)


def model_with_uneven_heads() -> nn.Module:
    """The output of v's head h is 10^k, and the columns of proj that read it are 10^-k: each head matters equally."""
    model = lively(VisionTransformer(img_size=16, patch_size=4, embed_dim=DIM, depth=1, num_heads=HEADS, num_classes=5))
    attention = model.blocks[0].attn  # type: ignore[union-attr, index]
    with torch.no_grad():
        for index, part in enumerate("qkv"):
            for head in range(HEADS):
                rows = slice(index * DIM + head * WIDTH, index * DIM + (head + 1) * WIDTH)
                factor = magnitude(part, head)
                attention.qkv.weight[rows] *= factor
                attention.qkv.bias[rows] *= factor
                if part == "v":
                    attention.proj.weight[:, head * WIDTH : (head + 1) * WIDTH] /= factor
    return model


def calibrated(spec: Spec) -> nn.Module:
    model = model_with_uneven_heads()
    quantized = quantize(model, spec)
    calibrate(quantized, [images(model, 32)])
    return quantized.eval()


def blocks(weight: Tensor, name: str) -> list[Tensor]:
    """The head blocks, written without qvit: rows for q, k and v, columns for proj."""
    if name == "proj":
        return [weight[:, h * WIDTH : (h + 1) * WIDTH] for h in range(HEADS)]
    start = "qkv".index(name) * DIM
    return [weight[start + h * WIDTH : start + (h + 1) * WIDTH] for h in range(HEADS)]


@pytest.mark.parametrize("name", ["q", "k", "v", "proj"])
def test_every_head_block_of_a_weight_keeps_its_relative_error(name: str) -> None:
    attention = calibrated(uniform(6)).blocks[0].attn  # type: ignore[union-attr, index]
    layer = attention.proj if name == "proj" else attention.qkv
    with torch.no_grad():
        fake = layer.weight_quantizer(layer.weight)
    for exact, approximate in zip(blocks(layer.weight, name), blocks(fake, name), strict=True):
        assert (exact - approximate).norm() / exact.norm() < 0.04


@pytest.mark.parametrize("part", ["q", "k", "v", "output"])
def test_every_head_of_an_activation_keeps_its_relative_error(part: str) -> None:
    quantized = calibrated(uniform(6))
    attention = quantized.blocks[0].attn  # type: ignore[union-attr, index]
    quantizer = attention.proj.input_quantizer if part == "output" else getattr(attention, f"{part}_quantizer")
    seen: list[Tensor] = []
    handle = quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), float_forward(quantized):
        quantized(images(quantized))
    handle.remove()
    (values,) = seen
    with torch.no_grad():
        fake = quantizer(values)
    if part == "output":  # (B, N, H d) -> (B, H, N, d)
        values, fake = (t.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for t in (values, fake))
    for head in range(HEADS):
        assert (values[:, head] - fake[:, head]).norm() / values[:, head].norm() < 0.05


@pytest.mark.parametrize("head", range(HEADS))
@pytest.mark.parametrize("part", ["q", "k", "v", "proj"])
def test_bits_of_a_head_reach_the_rows_or_columns_of_that_head(part: str, head: int) -> None:
    quantized = calibrated(Spec(weights=LearnedBits(2, 8, 8.0), activations=FixedBits(8)))
    attention = quantized.blocks[0].attn  # type: ignore[union-attr, index]
    layer = attention.proj if part == "proj" else attention.qkv
    quantizer = layer.weight_quantizer
    group = head if part == "proj" else "qkv".index(part) * HEADS + head
    widths = torch.full((quantizer.bit_groups,), 8.0)
    widths[group] = 2
    quantizer.set_bits(widths)
    with torch.no_grad():
        fake = quantizer(layer.weight)
    for h, block in enumerate(blocks(fake, part)):
        assert (len(block.unique()) <= 4) == (h == head)


@pytest.mark.parametrize("bits", [8, 6])
def test_network_with_uneven_heads(bits: int) -> None:
    """Fake quantization and the integer program both stay near float; one scale for all heads could not."""
    model, x = model_with_uneven_heads(), None
    quantized = calibrated(uniform(bits))
    x = images(model)
    with torch.no_grad():
        exact, fake = model(x), quantized(x)
    spread = exact.max() - exact.min()
    limit = {8: 0.03, 6: 0.12}[bits]
    assert (fake - exact).abs().max() < limit * spread
    integer = torch.from_numpy(interpreter.run(freeze(quantized), x.numpy()))
    assert (integer - exact).abs().max() < limit * spread


@lru_cache
def swin_of_four_heads() -> tuple[nn.Module, nn.Module]:
    """Float and quantized at 8 bits, calibrated."""
    model = swin(num_heads=(4, 4), embed_dim=32)
    quantized = quantize(model, Spec(weights=LearnedBits(2, 8, 8.0), activations=LearnedBits(2, 8, 8.0)))
    calibrate(quantized, [images(model, 8)])
    return model, quantized.eval()


@pytest.mark.parametrize("part", ["q", "k", "v", "attention", "proj.weight", "proj.input", "qkv.weight"])
def test_swin_heads_of_different_bits_mean_the_same_in_the_program(part: str) -> None:
    """4 heads and 9 windows of 16 tokens: a group on a wrong axis either does not divide or changes the result."""
    model, quantized = copy.deepcopy(swin_of_four_heads())
    named = {n: q for n, q in named_quantizers(quantized).items() if n.endswith(f"attn.{part}")}
    assert len(named) == 4
    for quantizer in named.values():
        quantizer.set_bits(torch.arange(quantizer.bit_groups) % 4 * 2.0 + 2)
    x = images(model)
    with torch.no_grad():
        fake = quantized(x)
        exact = model(x)
    integer = torch.from_numpy(interpreter.run(freeze(quantized), x.numpy()))
    spread = exact.max() - exact.min()
    assert (fake - exact).abs().max() > 0.005 * spread  # two bits are felt
    assert (integer - fake).abs().max() < 0.03 * spread


def test_mixed_bits_everywhere_in_a_vit() -> None:
    quantized = mix_bits(quantize(model_with_uneven_heads()), low=4)
    x = images(quantized, 32)
    calibrate(quantized, [x])
    quantized.eval()
    with torch.no_grad():
        fake = quantized(x)
    integer = torch.from_numpy(interpreter.run(freeze(quantized), x.numpy()))
    assert (integer.argmax(1) == fake.argmax(1)).all()
