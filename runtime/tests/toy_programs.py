"""Random, well-formed Programs in the layout that `qvit.freeze` emits: `vit_program` and `swin_program`.

The defaults are toys (16 channels, two blocks) with every width drawn per group from 2..8. The true sizes:

  deit_tiny(bits=4)       vit_program(dim=192, depth=12, heads=3, patch=16, size=224, classes=1000, bits=4)
  swin_tiny(bits=4)       swin_program(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, size=224, ...)

  bits          widths of weights and activations in the blocks: an int, or a tuple to draw from per group
  head_bits     the same for what has one group per head (qkv and proj weights; q, k, v, attention, its output)
  weight_bits   the same for the weights of the blocks alone, where they differ from the activations (W4A8)
  midrise       the share of the weights' groups that are mid-rise, drawn at random

The patch embedding and the classifier are 8-bit, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qvit_runtime import program as p
from toy_draft import MIXED, Draft, Widths

EDGE_BITS = 8


@dataclass(frozen=True)
class Style:
    """The choices that all blocks of one network share."""

    bits: Widths
    head_bits: Widths
    weight_bits: Widths
    head_weight_bits: Widths
    per_channel: bool
    layer_scale: bool = False
    qk_norm: bool = False
    mlp_ratio: int = 4


def make_style(bits: Widths, head_bits: Widths | None, weight_bits: Widths | None, per_channel: bool) -> Style:
    heads = bits if head_bits is None else head_bits
    weights, head_weights = (bits, heads) if weight_bits is None else (weight_bits, weight_bits)
    return Style(bits, heads, weights, head_weights, per_channel)


def vit_program(
    dim: int = 16,
    depth: int = 2,
    heads: int = 2,
    patch: int = 4,
    size: int = 16,
    classes: int = 5,
    bits: Widths = MIXED,
    head_bits: Widths | None = None,
    weight_bits: Widths | None = None,
    distilled: bool = False,
    registers: int = 0,
    layer_scale: bool = False,
    qk_norm: bool = False,
    mean_pool: bool = False,
    per_channel: bool = False,
    mlp_ratio: int = 4,
    midrise: float = 0.0,
    seed: int = 0,
) -> p.Program:
    """A VisionTransformer; `classes=0` ends in features, `distilled` has two tokens and two heads."""
    style = replace(make_style(bits, head_bits, weight_bits, per_channel), layer_scale=layer_scale, qk_norm=qk_norm)
    style = replace(style, mlp_ratio=mlp_ratio)
    draft = Draft("toy_vit", (3, size, size), seed, 2 if size < 100 else 1, midrise)
    side = size // patch
    embedded = embed(draft, (side * side,), patch, dim)
    prefix_tokens = (2 if distilled else 1) + registers
    prefix = draft.constant("prefix", draft.rng.standard_normal((prefix_tokens, dim)))
    position = draft.constant("position", 0.5 * draft.rng.standard_normal((side * side, dim)))
    x = draft.emit(p.Tokens(embedded, "tokens", prefix, position), (prefix_tokens + side * side, dim))
    for index in range(depth):
        x = vit_block(draft, f"blocks.{index}", x, heads, style)
    x = draft.layer_norm("norm", x)
    if mean_pool:
        pooled = draft.emit(p.MeanTokens(x, "pool", prefix_tokens), (dim,))
    else:
        pooled = draft.emit(p.SelectToken(x, "class_token", 0), (dim,))
    if classes == 0:
        return draft.finish(pooled)
    logits = classifier(draft, "head", pooled, classes, style)
    if distilled:
        token = draft.emit(p.SelectToken(x, "distillation_token", 1), (dim,))
        other = classifier(draft, "head_dist", token, classes, style)
        logits = draft.multiply("mean", draft.add("sum", logits, other), np.array([0.5]))
    return draft.finish(logits)


def swin_program(
    dim: int = 16,
    depths: tuple[int, ...] = (2, 2),
    heads: tuple[int, ...] = (2, 4),
    patch: int = 4,
    size: int = 20,
    window: int = 4,
    classes: int = 5,
    bits: Widths = MIXED,
    head_bits: Widths | None = None,
    weight_bits: Widths | None = None,
    per_channel: bool = False,
    midrise: float = 0.0,
    seed: int = 0,
) -> p.Program:
    """A SwinTransformer; at the default size windows are padded (5 -> 8) and the merge pads an odd side (5 -> 6)."""
    style = make_style(bits, head_bits, weight_bits, per_channel)
    draft = Draft("toy_swin", (3, size, size), seed, 2 if size < 100 else 1, midrise)
    x = draft.layer_norm("patch_embed.norm", embed(draft, (size // patch, size // patch), patch, dim))
    for stage, (blocks, stage_heads) in enumerate(zip(depths, heads, strict=True)):
        if stage:
            x = merge_patches(draft, f"layers.{stage}.downsample", x, style)
        rows = draft.shape(x)[0]
        side = min(window, rows)  # as timm: a window is at most the image, and then it does not shift
        for index in range(blocks):
            shift = window // 2 if index % 2 and rows > window else 0
            x = swin_block(draft, f"layers.{stage}.blocks.{index}", x, stage_heads, side, shift, style)
    x = draft.layer_norm("norm", x)
    pooled = draft.emit(p.MeanTokens(x, "pool", 0), (draft.shape(x)[-1],))
    return draft.finish(classifier(draft, "head", pooled, classes, style) if classes else pooled)


def deit_tiny(bits: Widths = 4, head_bits: Widths | None = None, weight_bits: Widths | None = None) -> p.Program:
    """The shapes of deit_tiny_patch16_224 with random weights."""
    return vit_program(192, 12, 3, 16, 224, 1000, bits=bits, head_bits=head_bits, weight_bits=weight_bits)


def swin_tiny(bits: Widths = 4, head_bits: Widths | None = None, weight_bits: Widths | None = None) -> p.Program:
    """The shapes of swin_tiny_patch4_window7_224 with random weights."""
    depths, heads = (2, 2, 6, 2), (3, 6, 12, 24)
    return swin_program(96, depths, heads, 4, 224, 7, 1000, bits, head_bits, weight_bits)


# The parts.


def embed(draft: Draft, tokens: tuple[int, ...], patch: int, dim: int) -> str:
    """image -> values (*tokens, dim)."""
    codes = draft.quantize("image_codes", "image", (EDGE_BITS,))
    grid = draft.program.buffers[codes].grid
    patches = draft.emit(p.Patchify(codes, "patches", patch), (*tokens, 3 * patch * patch), grid)
    return draft.linear("patch_embed.proj", patches, np.full((1, 1), EDGE_BITS), dim)


def classifier(draft: Draft, name: str, pooled: str, classes: int, style: Style) -> str:
    codes = draft.quantize(f"{name}.codes", pooled, (EDGE_BITS,))
    return draft.linear(name, codes, np.full((classes if style.per_channel else 1, 1), EDGE_BITS), classes)


def plain_bits(draft: Draft, style: Style, out_features: int) -> np.ndarray:
    """Weight bits without heads: (1, 1), or (out, 1) when per channel."""
    rows = out_features if style.per_channel else 1
    return np.array(draft.widths(style.weight_bits, rows)).reshape(rows, 1)


def attention(draft: Draft, name: str, codes: str, heads: int, style: Style, bias: str = "", mask: str = "") -> str:
    """codes (..., N, C) -> values (..., N, C)."""
    *lead, tokens, dim = draft.shape(codes)
    axis = len(lead)  # the head axis of (..., H, N, d)
    per_head = (*lead, heads, tokens, dim // heads)
    qkv_bits = np.array(draft.widths(style.head_weight_bits, 3 * heads)).reshape(3 * heads, 1)
    qkv = draft.linear(f"{name}.qkv", codes, qkv_bits, 3 * dim, gain=1.3)
    parts = []
    for part, letter in enumerate("qkv"):
        values = draft.emit(p.SplitHeads(qkv, f"{name}.{letter}", part, 3), per_head)
        if style.qk_norm and letter != "v":
            values = draft.layer_norm(f"{name}.{letter}_norm", values)
        parts.append(draft.quantize(f"{name}.{letter}_codes", values, draft.widths(style.head_bits, heads), axis))
    query, key, value = parts
    square = (*lead, heads, tokens, tokens)
    scores = draft.emit(p.QueryKey(query, key, f"{name}.scores", (dim // heads) ** -0.5), square)
    soft = draft.emit(p.Softmax(scores, f"{name}.softmax", bias, mask), square)
    soft_codes = draft.quantize_attention(f"{name}.map", soft, draft.widths(style.head_bits, heads), axis)
    mixed = draft.emit(p.AttentionValue(soft_codes, value, f"{name}.mixed"), per_head)
    mixed_codes = draft.quantize(f"{name}.mixed_codes", mixed, draft.widths(style.head_bits, heads), axis)
    grid = draft.program.buffers[mixed_codes].grid
    assert grid is not None
    flat = p.Grid(grid.bits, grid.signed, grid.scale, grid.offset, len(lead) + 1)
    merged = draft.emit(p.MergeHeads(mixed_codes, f"{name}.merged"), (*lead, tokens, dim), flat)
    proj_bits = np.array(draft.widths(style.head_weight_bits, heads)).reshape(1, heads)
    return draft.linear(f"{name}.proj", merged, proj_bits, dim)


def mlp(draft: Draft, name: str, x: str, style: Style) -> str:
    """values -> values: LayerNorm, fc1, GELU, fc2."""
    dim = draft.shape(x)[-1]
    (in_bits, gelu_bits) = draft.widths(style.bits, 2)
    codes = draft.quantize(f"{name}.codes", draft.layer_norm(f"{name}.norm", x), (in_bits,))
    hidden = draft.linear(f"{name}.fc1", codes, plain_bits(draft, style, style.mlp_ratio * dim), style.mlp_ratio * dim)
    active = draft.emit(p.Gelu(hidden, f"{name}.gelu"), draft.shape(hidden))
    active_codes = draft.quantize_gelu(f"{name}.gelu_codes", active, gelu_bits)
    return draft.linear(f"{name}.fc2", active_codes, plain_bits(draft, style, dim), dim)


def residual(draft: Draft, name: str, x: str, branch: str, style: Style) -> str:
    if style.layer_scale:
        factor = draft.rng.uniform(0.2, 1.0, draft.shape(x)[-1])
        branch = draft.multiply(f"{name}.layer_scale", branch, factor)
    return draft.add(f"{name}.sum", x, branch)


def vit_block(draft: Draft, name: str, x: str, heads: int, style: Style) -> str:
    normal = draft.layer_norm(f"{name}.norm1", x)
    codes = draft.quantize(f"{name}.attn.codes", normal, draft.widths(style.bits, 1))
    x = residual(draft, f"{name}.attn", x, attention(draft, f"{name}.attn", codes, heads, style), style)
    return residual(draft, f"{name}.mlp", x, mlp(draft, f"{name}.mlp", x, style), style)


def swin_block(draft: Draft, name: str, x: str, heads: int, side: int, shift: int, style: Style) -> str:
    rows, cols, dim = draft.shape(x)
    window, shifts = (side, side), (shift, shift)
    count, tokens = -(-rows // side) * -(-cols // side), side * side
    normal = draft.layer_norm(f"{name}.norm1", x)
    codes = draft.quantize(f"{name}.attn.codes", normal, draft.widths(style.bits, 1))
    grid = draft.program.buffers[codes].grid
    windows = draft.emit(p.WindowPartition(codes, f"{name}.windows", window, shifts), (count, tokens, dim), grid)
    bias = draft.constant(f"{name}.position_bias", 0.3 * draft.rng.standard_normal((heads, tokens, tokens)))
    mask = draft.constant(f"{name}.mask", shift_mask(rows, cols, side, shift)) if shift else ""
    attended = attention(draft, f"{name}.attn", windows, heads, style, bias, mask)
    merged = draft.emit(p.WindowMerge(attended, f"{name}.attn.image", window, shifts), (rows, cols, dim))
    x = residual(draft, f"{name}.attn", x, merged, style)
    return residual(draft, f"{name}.mlp", x, mlp(draft, f"{name}.mlp", x, style), style)


def merge_patches(draft: Draft, name: str, x: str, style: Style) -> str:
    rows, cols, dim = draft.shape(x)
    merged = draft.emit(p.PatchMerge(x, f"{name}.merged"), ((rows + 1) // 2, (cols + 1) // 2, 4 * dim))
    normal = draft.layer_norm(f"{name}.norm", merged)
    codes = draft.quantize(f"{name}.codes", normal, draft.widths(style.bits, 1))
    return draft.linear(f"{name}.reduction", codes, plain_bits(draft, style, 2 * dim), 2 * dim)


def shift_mask(rows: int, cols: int, side: int, shift: int) -> np.ndarray:
    """(windows, T, T): -100 between tokens that the roll made neighbours, 0 elsewhere."""

    def regions(length: int) -> np.ndarray:
        padded = -(-length // side) * side
        index = np.arange(padded)
        return (index >= padded - side).astype(int) + (index >= padded - shift)

    down, across = -(-rows // side), -(-cols // side)
    region = 3 * regions(rows)[:, None] + regions(cols)[None, :]
    windows = region.reshape(down, side, across, side).swapaxes(1, 2).reshape(down * across, side * side)
    return np.where(windows[:, :, None] == windows[:, None, :], 0.0, -100.0)
