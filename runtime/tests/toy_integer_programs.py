"""Random, well-formed Programs of the integer-only and log2 methods, as their `freeze` would emit them.

  integer_vit_program    I-ViT: integers from the first Quantize to the final Dequantize, 16-bit stream, 32-bit sums
  integer_swin_program   the same for Swin: windows, relative position bias, mask, patch merging on wide codes, pooling
  log2_program           FQ-ViT: power-of-two factors into an integer LayerNorm, log2 attention, shifts instead of products
  regions_program        TSPTQ-ViT: two-scaled codes behind Softmax and GELU

The sizes are toys; `integer_vit_program(192, 12, 3, 16, 224, 1000)` is deit_tiny.
"""

from __future__ import annotations

import numpy as np

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from toy_integer_draft import IntegerDraft, make_grid
from toy_programs import shift_mask

NORM_GRID = make_grid(8, True, 4 / 127)  # what a LayerNorm gives is within four standard deviations


def integer_vit_program(
    dim: int = 16,
    depth: int = 2,
    heads: int = 2,
    patch: int = 4,
    size: int = 16,
    classes: int = 5,
    weight_bits: int = 8,
    midrise: float = 0.0,
    seed: int = 0,
) -> p.Program:
    draft = IntegerDraft("toy_integer_vit", (3, size, size), seed, 2 if size < 100 else 1, midrise)
    side = size // patch
    embedded = embed(draft, (side * side,), patch, dim)
    x = draft.tokens(
        "tokens", embedded, draft.rng.standard_normal((1, dim)), 0.5 * draft.rng.standard_normal((side * side, dim))
    )
    for index in range(depth):
        name = f"blocks.{index}"
        normal = draft.integer_norm(f"{name}.norm1", x, NORM_GRID)
        x = draft.add_requantize(f"{name}.attn.sum", x, attention(draft, f"{name}.attn", normal, heads, weight_bits))
        x = draft.add_requantize(f"{name}.mlp.sum", x, mlp(draft, f"{name}.mlp", x, weight_bits))
    normal = draft.integer_norm("norm", x, NORM_GRID)
    token = draft.emit(p.SelectToken(normal, "class_token", 0), (dim,), NORM_GRID)
    return draft.finish(draft.dequantize("logits", draft.accumulate("head", token, channels(classes, 8), classes)))


def integer_swin_program(
    dim: int = 16,
    depths: tuple[int, ...] = (2, 1),
    heads: tuple[int, ...] = (2, 4),
    patch: int = 4,
    size: int = 20,
    window: int = 4,
    classes: int = 5,
    weight_bits: int = 8,
    seed: int = 0,
) -> p.Program:
    """At the default size windows are padded (5 -> 8) and the merge pads an odd side (5 -> 6)."""
    draft = IntegerDraft("toy_integer_swin", (3, size, size), seed, images=2 if size < 100 else 1)
    side = size // patch
    embedded = draft.requantize("embedded", embed(draft, (side, side), patch, dim), 16)
    x = draft.integer_norm("patch_embed.norm", embedded, make_grid(16, True, 6 / 2.0**15))
    for stage, (blocks, stage_heads) in enumerate(zip(depths, heads, strict=True)):
        if stage:
            x = merge_patches(draft, f"layers.{stage}.downsample", x, weight_bits)
        rows = draft.shape(x)[0]
        side = min(window, rows)
        for index in range(blocks):
            shift = window // 2 if index % 2 and rows > window else 0
            x = swin_block(draft, f"layers.{stage}.blocks.{index}", x, stage_heads, side, shift, weight_bits)
    normal = draft.integer_norm("norm", x, NORM_GRID)
    rows, cols, width = draft.shape(normal)
    mean = make_grid(32, True, NORM_GRID.scale / (rows * cols))  # the sum over the tokens stands for their mean
    pooled = draft.requantize("pooled", draft.emit(i.SumTokens(normal, "sum", 0), (width,), mean), 8)
    return draft.finish(draft.dequantize("logits", draft.accumulate("head", pooled, channels(classes, 8), classes)))


def log2_program(
    dim: int = 16,
    depth: int = 2,
    heads: int = 2,
    patch: int = 4,
    size: int = 16,
    classes: int = 5,
    map_bits: int = 4,
    seed: int = 0,
) -> p.Program:
    draft = IntegerDraft("toy_log2", (3, size, size), seed, images=2 if size < 100 else 1)
    x = float_tokens(draft, patch, dim)
    for index in range(depth):
        name = f"blocks.{index}"
        x, normal = factored_norm(draft, f"{name}.norm1", x)
        query, key, value = float_heads(draft, f"{name}.attn", normal, heads)
        tokens = draft.shape(query)[1]
        scores = draft.emit(p.QueryKey(query, key, f"{name}.scores", (dim // heads) ** -0.5), (heads, tokens, tokens))
        codes = draft.quantize(f"{name}.scores_codes", scores, (8,))
        bias = draft.integers(f"{name}.position_bias", draft.rng.integers(-20, 21, (heads, tokens, tokens)))
        soft = draft.log_softmax(f"{name}.map", codes, map_bits, bias)
        mixed = draft.emit(i.ShiftAttentionValue(soft, value, f"{name}.mixed"), draft.shape(value))
        merged = draft.merge_heads(f"{name}.merged", draft.quantize(f"{name}.mixed_codes", mixed, (8,) * heads, 0))
        x = draft.add(f"{name}.attn.sum", x, draft.linear(f"{name}.proj", merged, channels(dim, 8), dim))
        x, normal = factored_norm(draft, f"{name}.norm2", x)
        active = float_gelu(draft, name, normal)
        codes = draft.quantize_gelu(f"{name}.gelu_codes", active, 8)
        x = draft.add(f"{name}.mlp.sum", x, draft.linear(f"{name}.fc2", codes, channels(dim, 8), dim))
    _, normal = factored_norm(draft, "norm", x)
    token = draft.emit(p.SelectToken(normal, "class_token", 0), (dim,), draft.grid(normal))
    return draft.finish(draft.linear("head", token, channels(classes, 8), classes))


def regions_program(
    dim: int = 16,
    depth: int = 2,
    heads: int = 2,
    patch: int = 4,
    size: int = 16,
    classes: int = 5,
    bits: int = 6,
    seed: int = 0,
) -> p.Program:
    """`bits` counts the region flag: both halves have one bit less."""
    draft = IntegerDraft("toy_regions", (3, size, size), seed, images=2 if size < 100 else 1)
    x = float_tokens(draft, patch, dim)
    for index in range(depth):
        name = f"blocks.{index}"
        normal = draft.quantize(f"{name}.attn.codes", draft.layer_norm(f"{name}.norm1", x), (bits,))
        query, key, value = float_heads(draft, f"{name}.attn", normal, heads)
        square = (*draft.shape(query)[:-1], draft.shape(query)[1])
        scores = draft.emit(p.QueryKey(query, key, f"{name}.scores", (dim // heads) ** -0.5), square)
        soft = quantize_regions(
            draft, f"{name}.map", draft.emit(p.Softmax(scores, f"{name}.softmax"), square), bits, 0.0
        )
        mixed = draft.emit(p.AttentionValue(soft, value, f"{name}.mixed"), draft.shape(value))
        merged = draft.merge_heads(f"{name}.merged", draft.quantize(f"{name}.mixed_codes", mixed, (bits,) * heads, 0))
        x = draft.add(f"{name}.attn.sum", x, draft.linear(f"{name}.proj", merged, channels(dim, bits), dim))
        normal = draft.quantize(f"{name}.mlp.codes", draft.layer_norm(f"{name}.norm2", x), (bits,))
        codes = quantize_regions(draft, f"{name}.gelu_codes", float_gelu(draft, name, normal), bits, -0.17)
        x = draft.add(f"{name}.mlp.sum", x, regions_linear(draft, f"{name}.fc2", codes, channels(dim, bits), dim))
    token = draft.emit(p.SelectToken(draft.layer_norm("norm", x), "class_token", 0), (dim,))
    return draft.finish(draft.linear("head", draft.quantize("head.codes", token, (8,)), channels(classes, 8), classes))


# The parts.


def channels(out_features: int, bits: int) -> np.ndarray:
    """Weight bits (out, 1): one scale per output channel."""
    return np.full((out_features, 1), bits)


def patches(draft: IntegerDraft, tokens: tuple[int, ...], patch: int) -> str:
    codes = draft.quantize("image_codes", "image", (8,))
    return draft.emit(p.Patchify(codes, "patches", patch), (*tokens, 3 * patch * patch), draft.grid(codes))


def embed(draft: IntegerDraft, tokens: tuple[int, ...], patch: int, dim: int) -> str:
    """image -> 32-bit codes (*tokens, dim)."""
    return draft.accumulate("patch_embed.proj", patches(draft, tokens, patch), channels(dim, 8), dim)


def attention(
    draft: IntegerDraft,
    name: str,
    codes: str,
    heads: int,
    bits: int,
    windows: bool = False,
    mask: np.ndarray | None = None,
) -> str:
    """8-bit codes (..., N, C) -> 32-bit codes (..., N, C).

    Plain attention has one scale for each of q, k and v. Window attention has one per head, scores of 16 bits, a relative
    position bias, and a mask (windows, N, N), in values, where the windows are shifted.
    """
    dim = draft.shape(codes)[-1]
    sums = draft.accumulate(f"{name}.qkv", codes, channels(3 * dim, bits), 3 * dim, gain=1.3)
    qkv = draft.requantize(f"{name}.qkv_codes", sums, 8, groups=3 * heads if windows else 3)
    query, key, value = (
        draft.split_heads(f"{name}.{letter}", qkv, part, 3, heads) for part, letter in enumerate("qkv")
    )
    scores = draft.requantize(
        f"{name}.scores_codes", draft.query_key(f"{name}.scores", query, key), 16 if windows else 8
    )
    step, square = draft.grid(scores).scale[0], (heads, *draft.shape(scores)[-2:])
    position, masked = "", ""
    if windows:
        position = draft.integers(f"{name}.position_bias", np.rint(0.3 / step * draft.rng.standard_normal(square)))
    if mask is not None:
        masked = draft.integers(f"{name}.mask", np.rint(mask / step))
    soft = draft.shiftmax(f"{name}.map", scores, 8, position, masked)
    mixed = draft.requantize(f"{name}.mixed_codes", draft.attention_value(f"{name}.mixed", soft, value), 8)
    return draft.accumulate(f"{name}.proj", draft.merge_heads(f"{name}.merged", mixed), channels(dim, bits), dim)


def mlp(draft: IntegerDraft, name: str, x: str, bits: int) -> str:
    """16-bit codes -> 32-bit codes."""
    dim = draft.shape(x)[-1]
    sums = draft.accumulate(
        f"{name}.fc1", draft.integer_norm(f"{name}.norm", x, NORM_GRID), channels(4 * dim, bits), 4 * dim
    )
    active = draft.shift_gelu(f"{name}.gelu", draft.requantize(f"{name}.fc1_codes", sums, 8))
    return draft.accumulate(f"{name}.fc2", draft.requantize(f"{name}.gelu_codes", active, 8), channels(dim, bits), dim)


def swin_block(draft: IntegerDraft, name: str, x: str, heads: int, side: int, shift: int, bits: int) -> str:
    rows, cols, dim = draft.shape(x)
    window, shifts = (side, side), (shift, shift)
    count, tokens = -(-rows // side) * -(-cols // side), side * side
    normal = draft.integer_norm(f"{name}.norm1", x, NORM_GRID)
    windows = draft.emit(p.WindowPartition(normal, f"{name}.windows", window, shifts), (count, tokens, dim), NORM_GRID)
    mask = shift_mask(rows, cols, side, shift) if shift else None
    sums = attention(draft, f"{name}.attn", windows, heads, bits, windows=True, mask=mask)
    scale = draft.grid(sums).scale
    merged = draft.emit(
        p.WindowMerge(sums, f"{name}.attn.image", window, shifts), (rows, cols, dim), make_grid(32, True, scale, 2)
    )
    x = draft.add_requantize(f"{name}.attn.sum", x, merged)
    return draft.add_requantize(f"{name}.mlp.sum", x, mlp(draft, f"{name}.mlp", x, bits))


def merge_patches(draft: IntegerDraft, name: str, x: str, bits: int) -> str:
    """16-bit codes (rows, cols, C) -> 16-bit codes (rows / 2, cols / 2, 2 C)."""
    rows, cols, dim = draft.shape(x)
    merged = draft.emit(p.PatchMerge(x, f"{name}.merged"), ((rows + 1) // 2, (cols + 1) // 2, 4 * dim), draft.grid(x))
    normal = draft.integer_norm(f"{name}.norm", merged, NORM_GRID)
    return draft.requantize(
        f"{name}.codes", draft.accumulate(f"{name}.reduction", normal, channels(2 * dim, bits), 2 * dim), 16
    )


def float_tokens(draft: IntegerDraft, patch: int, dim: int) -> str:
    """image -> values (1 + N, C): patch embedding and class token in float, as in the log2 and two-scaled methods."""
    side = draft.shape("image")[1] // patch
    embedded = draft.linear("patch_embed.proj", patches(draft, (side * side,), patch), channels(dim, 8), dim)
    prefix = draft.constant("prefix", draft.rng.standard_normal((1, dim)))
    position = draft.constant("position", 0.5 * draft.rng.standard_normal((side * side, dim)))
    return draft.emit(p.Tokens(embedded, "tokens", prefix, position), (1 + side * side, dim))


def float_heads(draft: IntegerDraft, name: str, codes: str, heads: int) -> tuple[str, str, str]:
    """codes (N, C) -> 8-bit codes q, k, v (H, N, d)."""
    tokens, dim = draft.shape(codes)
    qkv = draft.linear(f"{name}.qkv", codes, channels(3 * dim, 8), 3 * dim, gain=1.3)
    shape = (heads, tokens, dim // heads)
    parts = [draft.emit(p.SplitHeads(qkv, f"{name}.{letter}", part, 3), shape) for part, letter in enumerate("qkv")]
    query, key, value = (draft.quantize(f"{part}_codes", part, (8,) * heads, 0) for part in parts)
    return query, key, value


def float_gelu(draft: IntegerDraft, name: str, codes: str) -> str:
    dim = draft.shape(codes)[-1]
    hidden = draft.linear(f"{name}.fc1", codes, channels(4 * dim, 8), 4 * dim)
    return draft.emit(p.Gelu(hidden, f"{name}.gelu"), draft.shape(hidden))


def factored_norm(draft: IntegerDraft, name: str, x: str) -> tuple[str, str]:
    """values -> (the quantized stream as values, its LayerNorm as unsigned 8-bit codes with an offset).

    FQ-ViT's power-of-two factors: channel c has the scale s 2^exponent_c, and one zero point serves all of them.
    """
    channel_count = draft.shape(x)[-1]
    live = draft.live[x].reshape(-1, channel_count)
    low, high = float(live.min()), float(live.max())
    step = (high - low) / 255
    zero = round(-low / step)
    spread = np.abs(live).max(axis=0)
    exponent = np.clip(np.ceil(np.log2(8 * spread / spread.max())), 0, 3).astype(int)
    scale = (step / 8 * 2.0**exponent).astype(np.float32)
    grid = p.Grid((8,) * channel_count, False, scale, (-zero * scale).astype(np.float32), len(draft.shape(x)) - 1)
    codes = draft.emit(p.Quantize(x, f"{name}.stream"), draft.shape(x), grid)
    normal_grid = make_grid(8, False, 8 / 255, 0, -4.0)
    exponents = draft.integers(f"{name}.exponent", exponent)
    return draft.dequantize(f"{name}.values", codes), draft.integer_norm(name, codes, normal_grid, exponents, zero)


def quantize_regions(draft: IntegerDraft, name: str, source: str, bits: int, offset: float) -> str:
    """Two-scaled codes that reach the largest value in front; m = 2 for a map, 3 behind GELU."""
    ratio = 8 if offset else 4
    *lead, width = draft.shape(source)
    high = (float(draft.live[source].max()) - offset) / (2 ** (bits - 1) - 1)
    low = np.float32(high / ratio)
    grid = p.Grid((bits - 1,) * 2, False, np.array([low, low * ratio]), np.array([offset, 0], np.float32), len(lead))
    return draft.emit(i.QuantizeRegions(source, name), (*lead, 2 * width), grid)


def regions_linear(draft: IntegerDraft, name: str, source: str, bits: np.ndarray, out_features: int) -> str:
    """Linear behind QuantizeRegions; the low half's offset is folded into the bias."""
    *lead, width = draft.shape(source)
    draft.weight(f"{name}.weight", bits, out_features, width // 2)
    weight = draft.program.weights[f"{name}.weight"]
    fold = float(draft.grid(source).offset[0]) * (weight.codes * weight.scale).sum(axis=1)
    bias = draft.constant(f"{name}.bias", 0.1 * draft.rng.standard_normal(out_features) + fold)
    return draft.emit(p.Linear(source, name, f"{name}.weight", bias), (*lead, out_features))
