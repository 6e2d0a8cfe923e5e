"""What qvit does not quantize is refused by name, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn

from qvit.calibration.calibrate import float_forward
from qvit.methods import fqvit, ivit
from qvit.network.convert import quantize
from qvit.network.support import UnsupportedModelError, check_supported
from toy_models import images, swin, vit


def gated() -> nn.Module:
    model = vit()
    model.blocks[0].attn = Attention(16, 2, gated=True)  # type: ignore[union-attr, index, assignment]
    return model


def replaced(model: nn.Module, part: str, module: nn.Module) -> nn.Module:
    model.set_submodule(part, module)
    return model


def dropped(width: int) -> nn.Module:
    """The classifier that people write."""
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(width, 5))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (
        lambda: nn.Linear(3, 3),
        r"Linear is not supported; .* VisionTransformer, VisionTransformerDistilled, Swin",
    ),
    "cnn": (lambda: timm.create_model("resnet18"), r"ResNet is not supported"),
    "eva": (lambda: timm.create_model("eva02_tiny_patch14_224", depth=1), r"Eva is not supported"),
    "swiglu": (
        lambda: timm.create_model("vit_giant_patch14_dinov2", depth=1, embed_dim=48, num_heads=2, img_size=28),
        r"blocks\.0\.mlp is a (GluMlp|SwiGLU)",
    ),
    "attention_pooling": (lambda: vit(global_pool="map"), r"attn_pool is a AttentionPoolLatent"),
    "max_pooling": (lambda: vit(global_pool="max"), r"global_pool is 'max'; supported: 'token', 'avg'"),
    "quick_gelu": (lambda: vit(act_layer="quick_gelu"), r"blocks\.0\.mlp\.act is QuickGELU\(\); only the exact GELU"),
    "tanh_gelu": (lambda: vit(act_layer="gelu_tanh"), r"blocks\.0\.mlp\.act is GELUTanh"),
    "approximate_gelu": (
        lambda: vit(act_layer=partial(nn.GELU, approximate="tanh")),
        r"blocks\.0\.mlp\.act is GELU\(approximate='tanh'\)",
    ),
    "gate": (gated, r"blocks\.0\.attn has a gate"),
    "scale_norm": (lambda: vit(scale_attn_norm=True), r"blocks\.0\.attn normalises its output \(scale_norm\)"),
    "mlp_norm": (lambda: vit(scale_mlp_norm=True), r"blocks\.0\.mlp\.norm is a LayerNorm"),
    "rms_norm": (lambda: vit(norm_layer="rmsnorm"), r"^norm is a RmsNorm; it must be a LayerNorm or Identity"),
    "parallel_blocks": (lambda: vit(block_fn=ParallelScalingBlock), r"blocks\.0 is a ParallelScalingBlock"),
    "post_norm": (lambda: vit(block_fn=ResPostBlock, init_values=1.0), r"blocks\.0 is a ResPostBlock"),
    "swin_pool": (lambda: swin(global_pool="max"), r"global_pool is 'max'; supported for Swin: 'avg'"),
    "swin_window": (
        lambda: swin(img_size=16, window_size=8, always_partition=True),
        r"layers\.1\.blocks\.0 has windows of \(8, 8\) on a grid of \(4, 4\)",
    ),
    "padded_patches": (
        lambda: vit(img_size=18, dynamic_img_pad=True, dynamic_img_size=True),
        r"patch_embed pads images of \(18, 18\) to whole patches of 4",
    ),
    "classifier": (
        lambda: replaced(vit(), "head", dropped(16)),
        r"^head is a Sequential; it must be a Linear or Identity: unwrap it, or merge .* Dropout in front is timm's head_drop",
    ),
    "swin_classifier": (
        lambda: replaced(swin(), "head.fc", dropped(32)),
        r"^head\.fc is a Sequential; it must be a Linear or Identity: .* head\.drop in a Swin",
    ),
    "swin_head": (
        lambda: replaced(swin(), "head", nn.Linear(32, 5)),
        r"^head is a Linear; it must be a ClassifierHead",
    ),
    "patch_projection": (
        lambda: replaced(vit(), "patch_embed.proj", nn.Sequential(nn.Conv2d(3, 16, 4, 4))),
        r"^patch_embed\.proj is a Sequential; it must be a Conv2d: unwrap it",
    ),
    "patch_norm": (
        lambda: replaced(vit(), "patch_embed.norm", nn.Sequential(nn.LayerNorm(16))),
        r"^patch_embed\.norm is a Sequential; it must be a LayerNorm or Identity",
    ),
    "layer_scale": (
        lambda: replaced(vit(), "blocks.0.ls1", nn.Sequential(nn.Dropout(0.1))),
        r"^blocks\.0\.ls1 is a Sequential; it must be a LayerScale or Identity",
    ),
    "projection": (
        lambda: replaced(vit(), "blocks.0.attn.proj", nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1))),
        r"^blocks\.0\.attn\.proj is a Sequential; it must be a Linear: unwrap it",
    ),
    **{
        name: (
            lambda name=name: replaced(vit(), name, nn.Sequential(nn.LayerNorm(16))),
            rf"^{name} is a Sequential; it must be a LayerNorm or Identity: unwrap it",
        )
        for name in ("norm_pre", "norm", "fc_norm")
    },
    **{
        str(dtype): (
            lambda dtype=dtype: vit().to(dtype),
            rf"^cls_token is {dtype}; qvit quantizes float32 models only: give model\.float\(\)$",
        )
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=text):
        quantize(make())
    with pytest.raises(UnsupportedModelError, match=text):
        ivit.quantize(make())


@pytest.mark.parametrize("method", [ivit, fqvit])
@pytest.mark.parametrize(("make", "norm"), [(vit, "blocks.0.norm1"), (swin, "layers.1.downsample.norm")])
def test_a_branch_without_norm_has_no_integer_form(
    make: Callable[[], nn.Module], norm: str, method: ModuleType
) -> None:
    model = replaced(make(), norm, nn.Identity())
    check_supported(model)
    with pytest.raises(UnsupportedModelError, match=rf"^{norm} is a Identity; .*-ViT needs a LayerNorm in front of"):
        method.quantize(model)


def test_quantizing_twice_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"patch_embed\.proj is a QuantConv2d"):
        quantize(quantize(vit()))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"qk_norm": True},
        {"init_values": 1e-5},
        {"reg_tokens": 4, "no_embed_class": True},
        {"global_pool": "avg", "class_token": False},
        {"num_classes": 0},
        {"pos_embed": "none"},
        {"dynamic_img_size": True},
        {"pre_norm": True},
        {"img_size": (16, 24)},
        {"in_chans": 1},
        {"qkv_bias": False, "proj_bias": False},
        {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    ],
    ids=str,
)
def test_variations_are_supported(kwargs: dict) -> None:
    model = vit(**kwargs)
    check_supported(model)
    quantized = quantize(model)
    assert isinstance(quantized, type(model))
    assert not {name for name, layer in quantized.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    x = images(model)
    with torch.no_grad(), float_forward(quantized):
        torch.testing.assert_close(quantized(x), model(x))
