"""Every supported family at 8 bits: the fake-quantized module and the frozen program stay within 2 % of the float range."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import qvit_runtime.interpreter as interpreter
from qvit.calibration.calibrate import calibrate
from qvit.freezing.freeze import freeze
from qvit.network.convert import quantize
from qvit.spec import LearnedBits, PerChannel, PerTensor, SharedScale, SingleRange, SingleScale, Spec
from qvit_runtime.check import check
from toy_models import FAMILIES, calibrated, images, learned, mix_bits, swin, uniform, vit

VARIANTS = {
    "avg_pool": lambda: vit(global_pool="avg", class_token=False),
    "pool_with_prefix": lambda: vit(global_pool="avg", pool_include_prefix=True, reg_tokens=2),
    "no_head": lambda: vit(num_classes=0),
    "no_position": lambda: vit(pos_embed="none"),
    "dynamic": lambda: vit(dynamic_img_size=True),
    "wide_image": lambda: vit(img_size=(16, 24)),
    "no_biases": lambda: vit(qkv_bias=False, proj_bias=False),
    "plain_norms": lambda: vit(norm_layer=lambda width, **_: nn.LayerNorm(width, elementwise_affine=False)),
    "swin_dynamic": lambda: swin(strict_img_size=False),
    "swin_unpadded": lambda: swin(img_size=16, window_size=4),
    "swin_wide": lambda: swin(img_size=(18, 26), window_size=4),
    "swin_head_dim": lambda: swin(head_dim=4),
    "swin_no_head": lambda: swin(num_classes=0),
}


def run(model: nn.Module, x: Tensor) -> Tensor:
    program = freeze(model)
    check(program)
    return torch.from_numpy(interpreter.run(program, x.numpy()))


# 5 classes of a network of dim 16 have a small range against the noise of 30 quantizers: its variants get 4 %.
@pytest.mark.parametrize(
    ("name", "tolerance"), [*((name, 0.02) for name in FAMILIES), *((name, 0.04) for name in VARIANTS)]
)
def test_eight_bits_stay_within_two_percent(name: str, tolerance: float) -> None:
    model = {**FAMILIES, **VARIANTS}[name]()
    x = images(model, 8)
    quantized = quantize(model, uniform(8))
    calibrate(quantized, [images(model, 48, seed=7), x])
    quantized.eval()
    with torch.no_grad():
        exact, fake = model(x), quantized(x)
    assert exact.std() > 0.1  # the network says something
    spread = exact.max() - exact.min()
    assert (fake - exact).abs().max() <= tolerance * spread
    assert (run(quantized, x) - exact).abs().max() <= tolerance * spread


@pytest.mark.parametrize("scale", [SharedScale(), SingleScale(), SingleRange()], ids=["shared", "single", "range"])
@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_scale_banks_freeze(make, scale) -> None:  # type: ignore[no-untyped-def]
    spec = Spec(weights=LearnedBits(2, 8, 8.0), activations=LearnedBits(2, 8, 8.0), scale=scale)
    assert_same_classes(calibrated(make(), spec))


@pytest.mark.parametrize("heads", [PerTensor(), None], ids=["layer_wise", "head_wise"])
@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_per_channel_weights_of_mixed_bits(make, heads) -> None:  # type: ignore[no-untyped-def]
    """Per channel, a bit-width belongs to a head and a scale to a row."""
    spec = Spec(weight_scale=PerChannel(), **({} if heads is None else {"heads": heads}))
    assert_same_classes(mix_bits(calibrated(make(), spec), low=5))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_bits_give_the_same_class(family: str) -> None:
    assert_same_classes(mix_bits(learned(family), low=3))


def assert_same_classes(quantized: nn.Module) -> None:
    x = images(quantized, 24, seed=3)
    with torch.no_grad():
        fake = quantized(x)
    integer = run(quantized, x)
    # A tie between two classes may fall either way; everything else must agree.
    top = fake.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > 0.02 * (fake.max() - fake.min())
    assert clear.float().mean() > 0.5
    assert (integer.argmax(1) == fake.argmax(1))[clear].all()


def test_swin_toy_is_padded_shifted_and_odd() -> None:
    """The toy Swin means what its docstring says; without this the Swin tests would test less than they claim."""
    model = swin()
    assert isinstance(model, SwinTransformer)
    first, second = (stage.blocks for stage in model.layers)  # type: ignore[union-attr]
    assert first[0].input_resolution == (9, 9)
    assert first[0].window_size == (4, 4)  # 9 is padded to 12
    assert first[1].shift_size == (2, 2)
    assert second[0].input_resolution == (5, 5)  # 9 is padded to 10 and halved
