"""Toy networks for every test: small timm models with random weights, one builder per supported family.

`vit` and `swin` are the two smallest (2 blocks, 2 heads, dim 16). `FAMILIES` are the real architectures of timm, cut down
in depth and image size by their own constructor arguments, so that what is tested is what a user gets from timm.

Random weights as timm draws them (std 0.02) make every branch of the network almost zero; `lively` draws them so that
every layer matters, sets LayerScale to 1 and gives norms, biases, tokens and tables something to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from qvit.calibration.calibrate import calibrate
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, PerHead, Spec


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of the size that a trained network has; LayerScale 1. Returns the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif "token" in name or "pos_embed" in name or "table" in name:
                parameter.copy_(0.5 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
    return model.eval()


def vit(seed: int = 0, **kwargs: object) -> nn.Module:
    """2 blocks, 2 heads, dim 16, image 16, patch 4: 17 tokens, 5 classes."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return lively(VisionTransformer(**{**sizes, **kwargs}), seed)  # type: ignore[arg-type]


def swin(seed: int = 0, **kwargs: object) -> nn.Module:
    """2 stages of 2 blocks, 2 heads, dim 16, image 18, patch 2, window 4: padded, shifted, merged from an odd grid (9 to 5)."""
    sizes = {"img_size": 18, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
    return lively(SwinTransformer(**{**sizes, "num_classes": 5, **kwargs}), seed)  # type: ignore[arg-type]


def _timm(name: str, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: lively(timm.create_model(name, pretrained=False, **kwargs))


SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": _timm("vit_tiny_patch16_224", img_size=64, num_classes=10, **SMALL),
    "vit_qk_norm_avg": lambda: vit(qk_norm=True, global_pool="avg", init_values=1.0, pre_norm=True),
    "deit": _timm("deit_tiny_patch16_224", img_size=64, num_classes=10, **SMALL),
    "deit_distilled": _timm("deit_tiny_distilled_patch16_224", img_size=64, num_classes=10, **SMALL),
    "deit3": _timm("deit3_small_patch16_224", img_size=64, num_classes=10, **SMALL),
    "dinov2": _timm("vit_small_patch14_dinov2", img_size=56, **SMALL),
    "dinov2_registers": _timm("vit_small_patch14_reg4_dinov2", img_size=56, **SMALL),
    "swin": _timm(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2), num_heads=(3, 6), num_classes=10
    ),
    "swin_padded": swin,
}


def images(model: nn.Module, count: int = 4, seed: int = 1) -> Tensor:
    """Normalised random images of the model's size: blobs and not white noise, so that images differ from each other."""
    embed = model.patch_embed
    height, width = embed.img_size  # type: ignore[union-attr, misc]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, embed.proj.in_channels, 4, 4, generator=generator)  # type: ignore[union-attr]
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return smooth + 0.3 * torch.randn(smooth.shape, generator=generator)


def uniform(bits: int, **kwargs: object) -> Spec:
    """Fixed bits everywhere, head-wise groups."""
    return Spec(**{"weights": FixedBits(bits), "activations": FixedBits(bits), "heads": PerHead(), **kwargs})  # type: ignore[arg-type]


def calibrated(model: nn.Module, spec: Spec, count: int = 64) -> nn.Module:
    """Quantized, calibrated on `count` random images, in eval mode."""
    quantized = quantize(model, spec)
    calibrate(quantized, [images(model, count, seed=7)])
    return quantized.eval()


def mix_bits(model: nn.Module, seed: int = 0, low: int = 2, high: int = 8) -> nn.Module:
    """Draw a different bit-width for every group of a quantized model with learned bits; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for quantizer in named_quantizers(model).values():
        if quantizer.is_learned:
            quantizer.set_bits(torch.randint(low, high + 1, (quantizer.bit_groups,), generator=generator).float())
    return model


@lru_cache
def _learned(family: str) -> nn.Module:
    return calibrated(FAMILIES[family](), Spec())


def learned(family: str) -> nn.Module:
    """A family with learned head-wise bits, calibrated once per run; a copy of its own for every caller."""
    return copy.deepcopy(_learned(family))
