"""freeze(): a trained quantized module in, a Program of integers out. Bits are read, never changed.

`freeze_vit` and `freeze_swin` walk the two families; `emitter` translates the layers they meet, `integer_layers` makes the
integers. Prefix tokens (class, distillation, registers) are constants: their position embedding is added here.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import qvit_runtime.program as p

from ..bits.budget import Budget, resolve_budget
from ..bits.cost import bits_in_force, costs
from ..data import model_preprocess
from ..network.attention import QuantAttention, QuantWindowAttention
from ..network.layers import QuantConv2d
from ..quantizers.quantizer import freeze_of, require_calibrated
from .emitter import Emitter, FreezeError


@torch.no_grad()
def freeze(
    model: nn.Module,
    budget: Budget | None = None,
    preprocess: p.Preprocess | None = None,
    name: str = "",
    metadata: dict[str, str] | None = None,
) -> p.Program:
    """The integer program of a calibrated or trained quantized model.

    budget      refuse a model that costs more; bits are not changed here
    preprocess  how image files become inputs. The default is `data.model_preprocess`: mean, std, crop and interpolation of
                the model's `pretrained_cfg`, at the size of its patch embedding, without class names. A model that was
                trained on other values must say so here; `qvit.preprocess_of(config, splits.class_names)` says what
                a DataConfig opened
    name        free text stored in the program

    Raises FreezeError when the model is over budget, has layers that were kept float or is of a method with a freeze of its
    own, UncalibratedError when a quantizer has no scale.
    """
    if freeze_of(model) != "qvit.freeze":
        raise FreezeError(
            f"this {type(model).__name__} has operations that qvit.freeze does not know; call {freeze_of(model)}(model)"
        )
    require_calibrated(model)
    if budget is not None:
        budget = resolve_budget(budget, model)
        spent = float(budget.spent(costs(model), bits_in_force(model)))
        if spent > budget.limit * (1 + 1e-9):
            raise FreezeError(
                f"the model costs {spent:.4f} {budget.unit}, over the budget of {budget.limit:.4f}; "
                "qvit.fit lowers bits to the budget at its lock, freeze never changes a bit"
            )
    return assemble(Emitter(model), model, preprocess, name, metadata)


def assemble(
    emitter: Emitter, model: nn.Module, preprocess: p.Preprocess | None, name: str, metadata: dict[str, str] | None
) -> p.Program:
    """The program that an emitter makes of a model whose quantizers are all calibrated; arguments as in `freeze`."""
    output = freeze_swin(emitter, model) if isinstance(model, SwinTransformer) else freeze_vit(emitter, model)
    return p.Program(
        name=name or type(model).__name__,
        input="image",
        output=output,
        ops=tuple(emitter.ops),
        buffers=emitter.buffers,
        weights=emitter.weights,
        constants=emitter.constants,
        preprocess=preprocess or default_preprocess(model, emitter.buffers["image"].shape[0]),
        metadata=metadata or {},
        integers=emitter.integers,
    )


def default_preprocess(model: nn.Module, channels: int) -> p.Preprocess:
    """`model_preprocess`. Raises FreezeError when its mean and std are not those of so many channels."""
    known = model_preprocess(model)
    if len(known.mean) != channels:
        raise FreezeError(
            f"the model takes {channels} channels, and the mean and std that come with it are of {len(known.mean)}: give a "
            "Preprocess with those that it was trained with"
        )
    return known


def _patch_embed(emitter: Emitter, model: nn.Module, as_grid: bool) -> str:
    embed = model.patch_embed
    conv = embed.proj  # type: ignore[union-attr]
    if not isinstance(conv, QuantConv2d):
        raise FreezeError("patch_embed.proj was kept float; a Program has integer products only")
    height, width = embed.img_size  # type: ignore[union-attr, misc]
    patch = conv.kernel_size[0]
    rows, cols = height // patch, width // patch
    emitter.buffers["image"] = p.Buffer("image", (conv.in_channels, height, width))
    image = emitter.quantize("image", conv.input_quantizer)
    lead = (rows, cols) if as_grid else (rows * cols,)
    features = conv.in_channels * patch * patch
    codes = emitter.emit(
        p.Patchify(image, "patch_embed.patches", patch), (*lead, features), emitter.buffers[image].grid
    )
    return emitter.layer_norm(emitter.linear(codes, conv), embed.norm)  # type: ignore[arg-type]


def freeze_vit(emitter: Emitter, model: nn.Module) -> str:
    """Emit a VisionTransformer or its distilled form; returns the output buffer."""
    assert isinstance(model, VisionTransformer)
    stream = _tokens(emitter, model, _patch_embed(emitter, model, as_grid=False))
    stream = emitter.layer_norm(stream, model.norm_pre)
    for block in model.blocks:
        assert isinstance(block, Block)
        name = emitter.names[block]
        if not isinstance(block.attn, QuantAttention):
            raise FreezeError(f"{name}.attn was kept float; a Program has integer products only")
        normal = emitter.layer_norm(stream, block.norm1)
        codes = emitter.quantize(normal, block.attn.qkv.input_quantizer)
        stream = emitter.residual(stream, emitter.attention(codes, block.attn, None), block.ls1, f"{name}.attention")
        normal = emitter.layer_norm(stream, block.norm2)
        stream = emitter.residual(stream, emitter.mlp(normal, block.mlp), block.ls2, f"{name}.output")
    stream = emitter.layer_norm(stream, model.norm)
    if isinstance(model, VisionTransformerDistilled):
        tokens = [_select(emitter, stream, f"token{index}", index) for index in (0, 1)]
        outputs = [
            _head(emitter, token, head) for token, head in zip(tokens, (model.head, model.head_dist), strict=True)
        ]
        total = emitter.emit(p.Add(outputs[0], outputs[1], "heads.sum"), emitter.shape(outputs[0]))
        half = emitter.constant("heads.half", np.array([0.5]))
        return emitter.emit(p.Multiply(total, "output", half), emitter.shape(total))
    if model.global_pool == "token":
        pooled = _select(emitter, stream, "pooled", 0)
    else:
        start = 0 if model.pool_include_prefix else model.num_prefix_tokens
        pooled = emitter.emit(p.MeanTokens(emitter.values(stream), "pooled", start), emitter.shape(stream)[-1:])
    return _head(emitter, emitter.layer_norm(pooled, model.fc_norm), model.head)


def _select(emitter: Emitter, stream: str, name: str, index: int) -> str:
    """One token; a method whose last LayerNorm gives codes has them per tensor."""
    return emitter.emit(p.SelectToken(stream, name, index), emitter.shape(stream)[-1:], emitter.buffers[stream].grid)


def _head(emitter: Emitter, features: str, head: nn.Module) -> str:
    return emitter.values(features) if isinstance(head, nn.Identity) else emitter.quantized_linear(features, head)


def _tokens(emitter: Emitter, model: VisionTransformer, patches: str) -> str:
    """Prefix tokens and position embedding, both as constants."""
    count, width = emitter.shape(patches)
    prefix, position = prefix_and_position(model, count)
    op = p.Tokens(
        patches,
        "tokens",
        emitter.constant("tokens.prefix", prefix),
        emitter.constant("tokens.position", position),
    )
    return emitter.emit(op, (len(prefix) + count, width))


def prefix_and_position(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Of a ViT of `count` patches: constant rows (P, C) with their position embedding added, and that of the patches (N, C)."""
    weight: Tensor = model.patch_embed.proj.weight  # type: ignore[union-attr, assignment]
    nothing = weight.new_zeros(count, len(weight))
    tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    present = [token[0] for token in tokens if token is not None]
    prefix = torch.cat(present) if present else nothing[:0]
    position: Tensor = nothing if model.pos_embed is None else model.pos_embed[0]  # type: ignore[index]
    if len(position) > count:  # the embedding has entries for the prefix as well
        prefix, position = prefix + position[: len(prefix)], position[len(prefix) :]
    return prefix, position


def freeze_swin(emitter: Emitter, model: SwinTransformer) -> str:
    """Emit a SwinTransformer; returns the output buffer."""
    stream = _patch_embed(emitter, model, as_grid=True)
    for stage in model.layers:
        downsample = stage.downsample
        if isinstance(downsample, PatchMerging):
            rows, cols, channels = emitter.shape(stream)
            merged = ((rows + 1) // 2, (cols + 1) // 2, 4 * channels)
            stream = emitter.emit(p.PatchMerge(stream, f"{emitter.names[downsample]}.merged"), merged)
            stream = emitter.quantized_linear(emitter.layer_norm(stream, downsample.norm), downsample.reduction)
        for block in stage.blocks:  # type: ignore[union-attr]
            assert isinstance(block, SwinTransformerBlock)
            stream = _swin_block(emitter, stream, block)
    stream = emitter.layer_norm(stream, model.norm)
    pooled = emitter.emit(p.MeanTokens(emitter.values(stream), "pooled", 0), emitter.shape(stream)[-1:])
    return _head(emitter, pooled, model.head.fc)


def _swin_block(emitter: Emitter, stream: str, block: SwinTransformerBlock) -> str:
    name, attention = emitter.names[block], block.attn
    if not isinstance(attention, QuantWindowAttention):
        raise FreezeError(f"{name}.attn was kept float; a Program has integer products only")
    rows, cols, channels = emitter.shape(stream)
    window, shift = tuple(block.window_size), tuple(block.shift_size)
    codes = emitter.quantize(emitter.layer_norm(stream, block.norm1), attention.qkv.input_quantizer)
    count = -(-rows // window[0]) * -(-cols // window[1])
    windows = emitter.emit(
        p.WindowPartition(codes, f"{name}.windows", window, shift),
        (count, window[0] * window[1], channels),
        emitter.buffers[codes].grid,
    )
    mixed = emitter.attention(windows, attention, _attention_mask(block))
    merged = emitter.emit(p.WindowMerge(mixed, f"{name}.merged", window, shift), (rows, cols, channels))
    stream = emitter.residual(stream, merged, None, f"{name}.attention")
    branch = emitter.mlp(emitter.layer_norm(stream, block.norm2), block.mlp)
    return emitter.residual(stream, branch, None, f"{name}.output")


def _attention_mask(block: SwinTransformerBlock) -> Tensor | None:
    """The mask of shifted windows; a model of dynamic image size keeps none and makes it in every forward pass."""
    if not block.dynamic_mask:
        return block.attn_mask  # type: ignore[return-value]
    return block.get_attn_mask(device=block.attn.proj.weight.device, dtype=torch.float32)
