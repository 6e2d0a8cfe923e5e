"""Which timm models qvit takes apart, and what it refuses, by name.

Supported: VisionTransformer and its distilled form made of Block, Attention (fused qkv, optional QK-norm; no gate, no
scale norm), Mlp with exact GELU, PatchEmbed, LayerScale, register tokens; SwinTransformer. That covers vit_*, deit_*,
deit3_*, dinov2_* and swin_*. Everything with parameters must be of a type listed here, so that no layer is silently
left in float: an unknown one is refused with its name, its type and what is allowed. And every part must be what timm
makes it (PARTS): a Sequential has a known type, but where a Linear belongs nobody would look inside.

Only float32 is read: codes are defined by float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import timm.layers as timm_layers
import torch
from timm.layers.attention import Attention
from timm.models import swin_transformer as swin
from timm.models import vision_transformer as vit
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MODELS: tuple[type[nn.Module], ...] = (VisionTransformer, VisionTransformerDistilled, SwinTransformer)

# Types that own parameters and are understood, as a container or as a float operation.
KNOWN: tuple[type[nn.Module], ...] = (
    *MODELS,
    nn.Sequential,
    nn.Linear,
    nn.Conv2d,
    nn.LayerNorm,
    timm_layers.LayerNorm,
    timm_layers.PatchEmbed,
    timm_layers.Mlp,
    timm_layers.ClassifierHead,
    vit.Block,
    vit.LayerScale,
    Attention,
    swin.SwinTransformerStage,
    swin.SwinTransformerBlock,
    swin.PatchMerging,
    WindowAttention,
)

NORM = (nn.LayerNorm, nn.Identity)
SCALE = (vit.LayerScale, nn.Identity)
CLASSIFIER = (nn.Linear, nn.Identity)

# What the parts of a module may be; a part that is absent (None) is passed over.
PARTS: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    VisionTransformer: {
        "patch_embed": (timm_layers.PatchEmbed,),
        "norm_pre": NORM,
        "norm": NORM,
        "fc_norm": NORM,
        "head": CLASSIFIER,
        "head_dist": CLASSIFIER,
    },
    SwinTransformer: {"patch_embed": (timm_layers.PatchEmbed,), "norm": NORM, "head": (timm_layers.ClassifierHead,)},
    timm_layers.PatchEmbed: {"proj": (nn.Conv2d,), "norm": NORM},
    timm_layers.ClassifierHead: {"fc": CLASSIFIER},
    vit.Block: {
        "attn": (Attention,),
        "mlp": (timm_layers.Mlp,),
        "norm1": NORM,
        "norm2": NORM,
        "ls1": SCALE,
        "ls2": SCALE,
    },
    swin.SwinTransformerBlock: {
        "attn": (WindowAttention,),
        "mlp": (timm_layers.Mlp,),
        "norm1": NORM,
        "norm2": NORM,
    },
    swin.SwinTransformerStage: {"downsample": (swin.PatchMerging, nn.Identity)},
    swin.PatchMerging: {"norm": NORM, "reduction": (nn.Linear,)},
    Attention: {"qkv": (nn.Linear,), "q_norm": NORM, "k_norm": NORM, "proj": (nn.Linear,)},
    WindowAttention: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    timm_layers.Mlp: {"fc1": (nn.Linear,), "fc2": (nn.Linear,)},
}


class UnsupportedModelError(TypeError):
    """The model, or one module in it, cannot be quantized; the text names it."""


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModelError naming the first thing that qvit does not know how to quantize."""
    if type(model) not in MODELS:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported; qvit quantizes timm models of the classes "
            f"{', '.join(cls.__name__ for cls in MODELS)}"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UnsupportedModelError(
                f"{name} is {parameter.dtype}; qvit quantizes float32 models only: give model.float()"
            )
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=True)) and type(module) not in KNOWN:
            raise UnsupportedModelError(
                f"{name} is a {type(module).__name__}, which qvit does not quantize; it knows Block, Attention, Mlp, "
                "PatchEmbed, LayerScale, PatchMerging and WindowAttention of timm"
            )
        for reason in chain(_wrong_parts(name, module), _refusals(name, module)):
            raise UnsupportedModelError(reason)


def check_norms(model: nn.Module, method: str) -> None:
    """For a method whose products read the codes of a LayerNorm: UnsupportedModelError where none stands in front of a branch."""
    for name, module in model.named_modules():
        if isinstance(module, (vit.Block, swin.SwinTransformerBlock, swin.PatchMerging)):
            for part in ("norm1", "norm2", "norm"):
                norm = getattr(module, part, None)
                if norm is not None and not isinstance(norm, nn.LayerNorm):
                    raise UnsupportedModelError(
                        f"{name}.{part} is a {type(norm).__name__}; {method} needs a LayerNorm in front of every branch"
                    )


def _wrong_parts(name: str, module: nn.Module) -> Iterator[str]:
    allowed = next((parts for owner, parts in PARTS.items() if isinstance(module, owner)), {})
    for part, types in allowed.items():
        given = getattr(module, part, None)
        if given is None or isinstance(given, types):
            continue
        what = f"{name}.{part}" if name else part
        advice = "unwrap it, or merge what it does into one"
        if types is CLASSIFIER:
            advice += " (a Dropout in front is timm's head_drop, and head.drop in a Swin)"
        yield f"{what} is a {type(given).__name__}; it must be a {' or '.join(t.__name__ for t in types)}: {advice}"


def _refusals(name: str, module: nn.Module) -> Iterator[str]:
    if isinstance(module, Attention):
        if module.gate is not None:
            yield f"{name} has a gate; gated attention is not supported"
        if not isinstance(module.norm, nn.Identity):
            yield f"{name} normalises its output (scale_norm); that is not supported"
    if isinstance(module, timm_layers.Mlp):
        if type(module.act) is not nn.GELU or module.act.approximate != "none":
            yield f"{name}.act is {module.act}; only the exact GELU is supported"
        if not isinstance(module.norm, nn.Identity):
            yield f"{name}.norm is a {type(module.norm).__name__}; a norm inside the MLP is not supported"
    if isinstance(module, timm_layers.PatchEmbed) and module.proj.kernel_size != module.proj.stride:
        yield f"{name}.proj has kernel {module.proj.kernel_size} and stride {module.proj.stride}; they must be equal"
    if isinstance(module, timm_layers.PatchEmbed) and module.patch_size[0] != module.patch_size[1]:
        yield f"{name} has patches of {module.patch_size}; they must be square"
    if isinstance(module, timm_layers.PatchEmbed) and module.dynamic_img_pad and module.img_size:
        patch = module.patch_size[0]
        if any(side % patch for side in module.img_size):
            yield f"{name} pads images of {module.img_size} to whole patches of {patch}; give it a multiple of {patch}"
    if isinstance(module, VisionTransformer):
        if module.attn_pool is not None:
            yield f"attn_pool is a {type(module.attn_pool).__name__}; attention pooling is not supported"
        if module.global_pool not in ("token", "avg"):
            yield f"global_pool is {module.global_pool!r}; supported: 'token', 'avg'"
    if isinstance(module, swin.SwinTransformerBlock):
        grid, window = module.input_resolution, module.window_size
        if any(side < reach for side, reach in zip(grid, window, strict=True)):  # type: ignore[arg-type]
            yield f"{name} has windows of {window} on a grid of {grid} (always_partition); they must fit"
    if isinstance(module, SwinTransformer) and module.global_pool != "avg":
        yield f"global_pool is {module.global_pool!r}; supported for Swin: 'avg'"
