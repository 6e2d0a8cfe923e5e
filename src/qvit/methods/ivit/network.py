"""The integer-only ViT and Swin: timm's parameters under timm's names, a grid for every tensor, and `run`.

`run` calls the operations of I-ViT (arXiv 2207.01405, figure 2) in the order of a program; an `Arithmetic` does them:

    image codes -> patches -> linear -> tokens                                          16-bit residual stream
    per block   layer_norm -> linear -> split_heads -> query_key -> softmax -> attention_value -> linear -> add
                layer_norm -> linear -> requantize -> gelu -> requantize -> linear -> add
    layer_norm -> token or mean -> linear

The forward pass is `run` with the integer arithmetic, in training and in eval mode alike: dropout and drop path of the
float model are left out, since a randomly scaled branch would leave the integers.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn

from ...freezing.freeze import prefix_and_position
from ...quantizers.quantizer import UncalibratedError
from .arithmetic import Arithmetic, Factor, Pair, T
from .layers import EDGE_BITS, SHIFT_BITS, SIGMOID, STREAM_BITS, Grid, LayerNorm, Linear
from .simulation import Codes, Simulation, quantize_image


def _norm(source: nn.Module, bits: int) -> LayerNorm | None:
    return LayerNorm(source, bits) if isinstance(source, nn.LayerNorm) else None


def _head(source: nn.Module) -> Linear | None:
    return Linear(source, EDGE_BITS) if isinstance(source, nn.Linear) else None


def _scale(source: nn.Module) -> LayerScale | None:
    return source if isinstance(source, LayerScale) else None


def _gamma(scale: LayerScale | None) -> Factor:
    return 1.0 if scale is None else scale.gamma


class PatchEmbedding(nn.Module):
    """Image codes -> sums of the projection, or the 16-bit output of a patch norm."""

    def __init__(self, source: PatchEmbed) -> None:
        super().__init__()
        self.image = Grid(EDGE_BITS)
        self.proj = Linear(source.proj, EDGE_BITS)
        self.norm = _norm(source.norm, STREAM_BITS)
        self.output = Grid(STREAM_BITS) if self.norm is not None else None
        self.patch: int = source.patch_size[0]
        self.channels: int = source.proj.in_channels
        self.img_size: Pair = source.img_size  # as timm calls it

    @property
    def grid(self) -> Pair:
        """(rows, cols) of patches."""
        return self.img_size[0] // self.patch, self.img_size[1] // self.patch

    @property
    def count(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    def run(self, ops: Arithmetic[T], image: T, as_grid: bool) -> T:
        x = ops.linear(ops.patches(image, self.patch, as_grid), self.proj)
        if self.norm is None or self.output is None:
            return x
        return ops.layer_norm(ops.requantize(x, self.output), self.norm)


class SelfAttention(nn.Module):
    """Attention of a ViT block, or of Swin's windows with a position bias."""

    relative_position_bias_table: nn.Parameter | None
    position_index: Tensor

    def __init__(self, source: Attention | WindowAttention, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.heads: int = source.num_heads
        self.factor: float = source.scale
        self.qkv, self.proj = Linear(source.qkv, weight_bits), Linear(source.proj, weight_bits)
        self.q, self.k, self.v = Grid(bits), Grid(bits), Grid(bits)
        self.scores = Grid(SHIFT_BITS, exponent=1.0)
        self.attention = Grid(SHIFT_BITS, signed=False, scale=2.0**-SHIFT_BITS)
        self.output = Grid(bits)
        windows = source if isinstance(source, WindowAttention) else None
        table = None if windows is None else windows.relative_position_bias_table
        index = None if windows is None else windows.get_buffer("relative_position_index").clone()
        self.register_parameter("relative_position_bias_table", table)
        self.register_buffer("position_index", index, persistent=False)

    def position_bias(self) -> Tensor | None:
        """(H, T, T) from the learned table, None for a ViT."""
        if self.relative_position_bias_table is None:
            return None
        return self.relative_position_bias_table[self.position_index].permute(2, 0, 1)

    def run(self, ops: Arithmetic[T], x: T, mask: Tensor | None) -> T:
        """(..., N, C) -> sums of proj, (..., N, C)"""
        q, k, v = ops.split_heads(ops.linear(x, self.qkv), (self.q, self.k, self.v), self.heads)
        scores = ops.query_key(q, k, self.scores, self.factor)
        attention = ops.softmax(scores, self.scores, self.attention, self.position_bias(), mask)
        return ops.linear(ops.attention_value(attention, v, self.output), self.proj)


class FeedForward(nn.Module):
    """The MLP of a block."""

    def __init__(self, source: Mlp, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(source.fc1, weight_bits), Linear(source.fc2, weight_bits)
        self.hidden = Grid(SHIFT_BITS, exponent=SIGMOID)
        self.active = Grid(bits)

    def run(self, ops: Arithmetic[T], x: T) -> T:
        """(..., N, C) -> sums of fc2, (..., N, C)"""
        hidden = ops.requantize(ops.linear(x, self.fc1), self.hidden)
        return ops.linear(ops.requantize(ops.gelu(hidden, self.hidden), self.active), self.fc2)


class ViTBlock(nn.Module):
    """A block of a ViT; LayerScale goes into the multipliers of the residual additions."""

    def __init__(self, source: Block, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(source.norm1, bits), LayerNorm(source.norm2, bits)  # type: ignore[arg-type]
        self.attn = SelfAttention(source.attn, weight_bits, bits)  # type: ignore[arg-type]
        self.mlp = FeedForward(source.mlp, weight_bits, bits)  # type: ignore[arg-type]
        self.ls1, self.ls2 = _scale(source.ls1), _scale(source.ls2)
        self.attended, self.output = Grid(STREAM_BITS), Grid(STREAM_BITS)

    def run(self, ops: Arithmetic[T], x: T) -> T:
        branch = self.attn.run(ops, ops.layer_norm(x, self.norm1), None)
        x = ops.add(x, branch, self.attended, (1.0, _gamma(self.ls1)))
        branch = self.mlp.run(ops, ops.layer_norm(x, self.norm2))
        return ops.add(x, branch, self.output, (1.0, _gamma(self.ls2)))


class SwinBlock(nn.Module):
    """A block of a Swin: attention inside windows, every second one shifted."""

    mask: Tensor | None

    def __init__(self, source: SwinTransformerBlock, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(source.norm1, bits), LayerNorm(source.norm2, bits)  # type: ignore[arg-type]
        self.attn = SelfAttention(source.attn, weight_bits, bits)
        self.mlp = FeedForward(source.mlp, weight_bits, bits)
        self.attended, self.output = Grid(STREAM_BITS), Grid(STREAM_BITS)
        self.window: Pair = tuple(source.window_size)  # type: ignore[assignment]
        self.shift: Pair = tuple(source.shift_size)  # type: ignore[assignment]
        self.size: Pair = tuple(source.input_resolution)  # type: ignore[assignment, arg-type]
        mask = source.get_attn_mask(device=source.attn.proj.weight.device, dtype=torch.float32)
        self.register_buffer("mask", mask, persistent=False)

    def run(self, ops: Arithmetic[T], x: T) -> T:
        windows = ops.window_partition(ops.layer_norm(x, self.norm1), self.window, self.shift)
        branch = self.attn.run(ops, windows, self.mask)
        branch = ops.window_merge(branch, self.window, self.shift, self.size)
        x = ops.add(x, branch, self.attended, (1.0, 1.0))
        branch = self.mlp.run(ops, ops.layer_norm(x, self.norm2))
        return ops.add(x, branch, self.output, (1.0, 1.0))


class Merging(nn.Module):
    """Between the stages of a Swin: four neighbours become one token of twice the channels."""

    def __init__(self, source: PatchMerging, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.norm, self.reduction = LayerNorm(source.norm, bits), Linear(source.reduction, weight_bits)  # type: ignore[arg-type]
        self.output = Grid(STREAM_BITS)

    def run(self, ops: Arithmetic[T], x: T) -> T:
        x = ops.layer_norm(ops.patch_merge(x), self.norm)
        return ops.requantize(ops.linear(x, self.reduction), self.output)


class Stage(nn.Module):
    """A stage of a Swin: merging (but in the first), then blocks."""

    def __init__(self, source: nn.Module, weight_bits: int, bits: int) -> None:
        super().__init__()
        down = source.downsample
        self.downsample = Merging(down, weight_bits, bits) if isinstance(down, PatchMerging) else None
        self.blocks = nn.ModuleList(SwinBlock(block, weight_bits, bits) for block in source.blocks)  # type: ignore[union-attr]

    def run(self, ops: Arithmetic[T], x: T) -> T:
        if self.downsample is not None:
            x = self.downsample.run(ops, x)
        for block in self.blocks:
            x = block.run(ops, x)  # type: ignore[operator]
        return x


# Networks.


class IntegerTransformer(nn.Module):
    """What ViT and Swin share: the forward pass, and what timm says of the model it came from.

    pretrained_cfg  how that wants its images, or None
    """

    calibrated_by = "qvit.methods.ivit.calibrate"
    frozen_by = "qvit.methods.ivit.freeze"
    patch_embed: PatchEmbedding

    def __init__(self, source: VisionTransformer | SwinTransformer) -> None:
        super().__init__()
        self._no_decay = frozenset(source.no_weight_decay())
        self.pretrained_cfg = getattr(source, "pretrained_cfg", None)

    def no_weight_decay(self) -> set[str]:
        """timm's own list, for the optimizer."""
        return set(self._no_decay)

    def grids(self) -> dict[str, Grid]:
        """Tensor name -> grid, in the order of the model."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Grid)}

    def require_calibrated(self) -> None:
        """Raise UncalibratedError naming a grid without a scale."""
        grids = self.grids()
        empty = torch.stack([grid.scale for grid in grids.values()]) == 0
        if empty.any():
            name = list(grids)[int(empty.nonzero()[0])]
            raise UncalibratedError(
                f"{name} has no scale yet: run {self.calibrated_by}(model, loader), or load a calibrated checkpoint"
            )

    def run(self, ops: Arithmetic[T], image: T) -> T:
        """Image codes -> sums of the head, or features where the model has none."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, channels, height, width) -> logits (B, classes), float32, those of the program.

        Autocast is off inside: integers do not survive bfloat16.
        """
        self.require_calibrated()
        with torch.autocast(images.device.type, enabled=False):
            output: Codes = self.run(Simulation(), quantize_image(images, self.patch_embed.image))
            return output.values()


class IntegerViT(IntegerTransformer):
    """A VisionTransformer or its distilled form, from a copy whose parameters it takes over.

    pos_embed, cls_token, dist_token and reg_token are timm's; with two heads, `logits` is the grid of their mean. A classifier
    reads 8 bits: where no norm stands between the stream and it, `features` is the grid in front of it.
    """

    pos_embed: Tensor | None
    cls_token: Tensor | None
    dist_token: Tensor | None
    reg_token: Tensor | None

    def __init__(self, source: VisionTransformer, weight_bits: int, bits: int) -> None:
        super().__init__(source)
        self.patch_embed = PatchEmbedding(source.patch_embed)
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            self.register_parameter(name, getattr(source, name, None))
        self.tokens = Grid(STREAM_BITS)
        self.norm_pre = _norm(source.norm_pre, STREAM_BITS)
        self.blocks = nn.ModuleList(ViTBlock(block, weight_bits, bits) for block in source.blocks)  # type: ignore[arg-type]
        self.norm, self.fc_norm = _norm(source.norm, EDGE_BITS), _norm(source.fc_norm, EDGE_BITS)
        self.first_pooled: int | None = None  # the class token alone
        self.pooled: Grid | None = None
        if source.global_pool == "avg":
            self.first_pooled = 0 if source.pool_include_prefix else source.num_prefix_tokens
            self.pooled = Grid(EDGE_BITS if self.fc_norm is None else STREAM_BITS)
        self.head = _head(source.head)
        bare = self.norm is None and self.fc_norm is None and self.pooled is None and self.head is not None
        self.features = Grid(EDGE_BITS) if bare else None
        self.head_dist: Linear | None = None
        self.logits: Grid | None = None
        if isinstance(source, VisionTransformerDistilled):
            self.head_dist = _head(source.head_dist)
            self.logits = Grid(STREAM_BITS)

    def run(self, ops: Arithmetic[T], image: T) -> T:
        x = self.patch_embed.run(ops, image, as_grid=False)
        x = ops.tokens(x, *prefix_and_position(self, self.patch_embed.count), self.tokens)
        if self.norm_pre is not None:
            x = ops.layer_norm(x, self.norm_pre)
        for block in self.blocks:
            x = block.run(ops, x)  # type: ignore[operator]
        if self.norm is not None:
            x = ops.layer_norm(x, self.norm)
        if self.features is not None:
            x = ops.requantize(x, self.features)
        if self.logits is not None:
            return self._two_heads(ops, x, self.logits)
        if self.pooled is None or self.first_pooled is None:
            x = ops.select_token(x, 0)
        else:
            x = ops.mean_tokens(x, self.first_pooled, self.pooled)
        if self.fc_norm is not None:
            x = ops.layer_norm(x, self.fc_norm)
        return x if self.head is None else ops.linear(x, self.head)

    def _two_heads(self, ops: Arithmetic[T], x: T, grid: Grid) -> T:
        """The mean of what the class token's and the distillation token's heads say."""
        outputs = []
        for index, head in enumerate((self.head, self.head_dist)):
            token = ops.select_token(x, index)
            outputs.append(token if head is None else ops.linear(token, head))
        return ops.add(outputs[0], outputs[1], grid, (0.5, 0.5))


class IntegerSwin(IntegerTransformer):
    """A SwinTransformer, from a copy whose parameters it takes over."""

    def __init__(self, source: SwinTransformer, weight_bits: int, bits: int) -> None:
        super().__init__(source)
        self.patch_embed = PatchEmbedding(source.patch_embed)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(Stage(stage, weight_bits, bits) for stage in source.layers)
        self.norm = _norm(source.norm, EDGE_BITS)
        self.pooled = Grid(EDGE_BITS)
        head = _head(source.head.fc)
        self.head = nn.ModuleDict({} if head is None else {"fc": head})

    def run(self, ops: Arithmetic[T], image: T) -> T:
        x = self.patch_embed.run(ops, image, as_grid=True)
        for stage in self.layers:
            x = stage.run(ops, x)  # type: ignore[operator]
        if self.norm is not None:
            x = ops.layer_norm(x, self.norm)
        x = ops.mean_tokens(x, 0, self.pooled)
        return ops.linear(x, self.head["fc"]) if "fc" in self.head else x  # type: ignore[arg-type]
