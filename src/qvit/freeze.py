"""freeze(): a trained quantized module in, a Program of integers out. Bits are read, never changed.

`Emitter` holds the growing program: `emit` appends an op together with the buffer that it writes. The helpers below it
translate one quantized layer each; `freeze_vit` and `freeze_swin` walk the two families. Three things are decided here:

  Offsets fold into biases. x = s c + o gives W x = s W c + o (row sums of W), so a backend multiplies codes only and an
  offset need not be a multiple of its scale.

  q, k and v are quantized after the heads are split, (H, N, d) with groups on the first axis; the attention output is
  quantized as (H, N, d) too and only then merged, so that no backend meets a group on the last axis of a 4-D tensor.

  Prefix tokens (class, distillation, registers) are constants: their position embedding is added here.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn

import qvit_runtime.program as p
from qvit_runtime.integer_ops import Dequantize, QuantizeRegions

from .attention import QuantAttention, QuantWindowAttention
from .budget import Budget
from .cost import bits_in_force, costs
from .fake_quantize import code_range, grouped
from .layers import QuantConv2d, QuantLinear
from .quantizer import Quantizer, named_quantizers, require_calibrated
from .rectify import RectifiedLinear
from .region_quantizer import RegionQuantizer


class FreezeError(ValueError):
    """The module cannot become a Program as it stands; the text says what to do."""


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
    preprocess  how image files become inputs; the default takes the size from the model and timm's ImageNet statistics
    name        free text stored in the program

    Raises FreezeError when the model is over budget or has layers that were kept float, UncalibratedError when a
    quantizer has no scale.
    """
    require_calibrated(model, "qvit.calibrate")
    if budget is not None:
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
        preprocess=preprocess or default_preprocess(emitter.buffers["image"].shape),
        metadata=metadata or {},
        integers=emitter.integers,
    )


def default_preprocess(image: tuple[int, ...]) -> p.Preprocess:
    """timm's ImageNet statistics for an image (channels, height, width). Raises FreezeError unless it is RGB."""
    channels, height, width = image
    if channels != 3:
        raise FreezeError(
            f"the model takes {channels} channels and timm's ImageNet statistics are those of 3: give a Preprocess with "
            "mean and std"
        )
    return p.Preprocess(size=(height, width))


def _numpy(t: Tensor) -> np.ndarray:
    return t.detach().float().cpu().numpy().copy()  # a program shares no memory with the module: training may go on


class Emitter:
    """A program under construction."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.tensor_names = {quantizer: name for name, quantizer in named_quantizers(model).items()}
        self.ops: list[p.Op] = []
        self.buffers: dict[str, p.Buffer] = {}
        self.weights: dict[str, p.Weight] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.integers: dict[str, np.ndarray] = {}

    def emit(self, op: p.Op, shape: tuple[int, ...], grid: p.Grid | None = None) -> str:
        """Append an op and the buffer it writes; returns the buffer's name."""
        self.ops.append(op)
        self.buffers[op.output] = p.Buffer(op.output, shape, grid)
        return op.output

    def shape(self, buffer: str) -> tuple[int, ...]:
        """Shape of a buffer, without the batch axis."""
        return self.buffers[buffer].shape

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """Store a float32 constant."""
        self.constants[name] = _numpy(value) if isinstance(value, Tensor) else value.astype(np.float32)
        return name

    def integer(self, name: str, value: Tensor) -> str:
        """Store an int32 array: whole numbers of any dtype below 2^31."""
        self.integers[name] = value.detach().long().cpu().numpy().astype(np.int32)
        return name

    def values(self, source: str) -> str:
        """The buffer itself where it holds values, else its codes as values."""
        if self.buffers[source].grid is None:
            return source
        return self.emit(Dequantize(source, f"{source}.values"), self.shape(source))

    def quantize(self, source: str, quantizer: Quantizer, axis: int = 0) -> str:
        """values -> codes, groups on `axis` of the buffer; the buffer is called like the tensor."""
        if isinstance(quantizer, RegionQuantizer):
            *lead, width = self.shape(source)
            regions = QuantizeRegions(source, self.tensor_names[quantizer])
            return self.emit(regions, (*lead, 2 * width), regions_grid(quantizer, len(lead)))
        grid = activation_grid(quantizer, axis)
        return self.emit(p.Quantize(source, self.tensor_names[quantizer]), self.shape(source), grid)

    def linear(self, codes: str, layer: QuantLinear | QuantConv2d) -> str:
        """codes -> values through an integer weight; the input must be on the grid of the layer's input quantizer."""
        name = self.names[layer]
        weight = integer_weight(layer)
        offset = folded_bias(layer, weight)
        if isinstance(layer, RectifiedLinear):
            weight, offset = layer.folded(weight, offset)
        self.weights[f"{name}.weight"] = weight
        bias = self.constant(f"{name}.bias", offset)
        shape = (*self.shape(codes)[:-1], weight.codes.shape[0])
        return self.emit(p.Linear(codes, f"{name}.output", f"{name}.weight", bias), shape)

    def quantized_linear(self, source: str, layer: nn.Module) -> str:
        """values -> values: Quantize, then Linear. Raises FreezeError for a layer that was kept float."""
        if not isinstance(layer, QuantLinear):
            raise FreezeError(
                f"{self.names[layer]} was kept float; a Program has integer products only: quantize it, at 8 bits if need be"
            )
        return self.linear(self.quantize(source, layer.input_quantizer), layer)

    def layer_norm(self, source: str, norm: nn.Module) -> str:
        """LayerNorm, or nothing for an Identity."""
        if isinstance(norm, nn.Identity):
            return source
        assert isinstance(norm, nn.LayerNorm)
        name, width = self.names[norm], norm.normalized_shape[0]
        weight = norm.weight if norm.weight is not None else torch.ones(width)
        bias = norm.bias if norm.bias is not None else torch.zeros(width)
        op = p.LayerNorm(
            source,
            f"{name}.output",
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
            norm.eps,
        )
        return self.emit(op, self.shape(source))

    def residual(self, stream: str, branch: str, scale: nn.Module | None, name: str) -> str:
        """stream + LayerScale(branch)"""
        if isinstance(scale, LayerScale):
            gamma = self.constant(f"{self.names[scale]}.gamma", scale.gamma)
            branch = self.emit(p.Multiply(branch, f"{self.names[scale]}.output", gamma), self.shape(branch))
        return self.emit(p.Add(stream, branch, name), self.shape(stream))

    def mlp(self, source: str, mlp: nn.Module) -> str:
        """fc1, GELU, fc2"""
        hidden = self.quantized_linear(source, mlp.fc1)  # type: ignore[arg-type]
        active = self.emit(p.Gelu(hidden, f"{self.names[mlp]}.act.output"), self.shape(hidden))
        return self.quantized_linear(active, mlp.fc2)  # type: ignore[arg-type]

    def attention(self, codes: str, module: QuantAttention | QuantWindowAttention, mask: Tensor | None) -> str:
        """codes (..., N, C) of the qkv input -> values (..., N, C)"""
        name = self.names[module]
        *lead, tokens, _ = self.shape(codes)
        qkv = self.linear(codes, module.qkv)
        per_head = (*lead, module.num_heads, tokens, module.head_dim)
        parts = {}
        for index, part in enumerate(("q", "k", "v")):
            split = self.emit(p.SplitHeads(qkv, f"{name}.{part}.values", index, 3), per_head)
            if isinstance(module, QuantAttention) and part != "v":
                split = self.layer_norm(split, getattr(module, f"{part}_norm"))
            parts[part] = self.quantize(split, getattr(module, f"{part}_quantizer"), len(lead))
        mixed = self.attend(parts["q"], parts["k"], parts["v"], module, mask)
        return self.linear(self._merge(mixed, module), module.proj)

    def attend(self, q: str, k: str, v: str, module: QuantAttention | QuantWindowAttention, mask: Tensor | None) -> str:
        """codes (..., H, N, d) -> values (..., H, N, d): both products, and the softmax between them"""
        name, per_head = self.names[module], self.shape(v)
        square = (*per_head[:-1], per_head[-2])
        scores = self.emit(p.QueryKey(q, k, f"{name}.scores", float(module.scale)), square)
        bias = masked = ""
        if isinstance(module, QuantWindowAttention):
            bias = self.constant(f"{name}.position_bias", module.position_bias())
            masked = "" if mask is None else self.constant(f"{name}.mask", mask)
        softmax = self.emit(p.Softmax(scores, f"{name}.softmax", bias, masked), square)
        attention = self.quantize(softmax, module.attention_quantizer, len(per_head) - 3)
        return self.emit(p.AttentionValue(attention, v, f"{name}.mixed"), per_head)

    def _merge(self, mixed: str, module: QuantAttention | QuantWindowAttention) -> str:
        *lead, heads, tokens, dim = self.shape(mixed)
        quantizer = module.proj.input_quantizer
        codes = self.emit(
            p.Quantize(mixed, f"{self.tensor_names[quantizer]}.heads"),
            self.shape(mixed),
            activation_grid(quantizer, len(lead)),
        )
        merged = (*lead, tokens, heads * dim)
        grid = activation_grid(quantizer, len(merged) - 1)
        return self.emit(p.MergeHeads(codes, self.tensor_names[quantizer]), merged, grid)


def activation_grid(quantizer: Quantizer, axis: int = 0) -> p.Grid:
    """The grid in force; `axis` is where a buffer, which has no batch axis, has the groups (0 when there is one group)."""
    scale = quantizer.scale_at(quantizer.bit_width)
    offset = quantizer.offset_at(quantizer.bit_width)
    bits = quantizer.per_scale(quantizer.bit_width).tolist()
    offsets = np.zeros(len(bits), np.float32) if offset is None else _numpy(offset)
    return p.Grid(tuple(bits), quantizer.signed, _numpy(scale), offsets, axis if len(bits) > 1 else 0)


def regions_grid(quantizer: RegionQuantizer, axis: int) -> p.Grid:
    """The grid of two-scaled codes: the low region, then the high one, along the last axis of the buffer."""
    low = activation_grid(quantizer)
    scale = np.concatenate([low.scale, np.ldexp(low.scale, int(quantizer.shift))])
    offset = np.concatenate([low.offset, np.zeros(1, np.float32)])
    return p.Grid((quantizer.magnitude_bits,) * 2, False, scale, offset, axis)


def integer_weight(layer: QuantLinear | QuantConv2d) -> p.Weight:
    """Codes, bits and scales of a layer's weight, flattened to (out, in)."""
    quantizer = layer.weight_quantizer
    scale, bits = quantizer.scale_at(quantizer.bit_width), quantizer.per_scale(quantizer.bit_width)
    low, high = code_range(bits.float(), signed=True)
    view = grouped(layer.weight.detach().float(), quantizer.scale_groups, quantizer.axis)
    column = (1, -1, 1)
    codes = torch.minimum(view / scale.view(column), high.view(column)).maximum(low.view(column)).round()
    grid = (-1, 1) if quantizer.axis == 0 else (1, -1)
    return p.Weight(
        codes=codes.reshape(layer.weight.shape[0], -1).to(torch.int8).cpu().numpy(),
        bits=bits.view(grid).cpu().numpy().astype(np.int64),
        scale=_numpy(scale.view(grid)),
    )


def folded_bias(layer: QuantLinear | QuantConv2d, weight: p.Weight) -> np.ndarray:
    """Bias plus the contribution of the input's offset, float32 (out,)."""
    out_features = weight.codes.shape[0]
    bias = np.zeros(out_features) if layer.bias is None else _numpy(layer.bias).astype(np.float64)
    offset = activation_grid(layer.input_quantizer).offset
    if offset.any():
        sums = weight.codes.sum(1, dtype=np.int64) * np.repeat(
            weight.scale[:, 0].astype(np.float64), out_features // weight.scale.shape[0]
        )
        bias = bias + float(offset[0]) * sums
    return bias.astype(np.float32)


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
    prefix = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    present = [token[0] for token in prefix if token is not None]
    tokens = torch.cat(present) if present else torch.zeros(0, width)
    position = torch.zeros(count, width) if model.pos_embed is None else model.pos_embed[0]
    if len(position) > count:  # the embedding has entries for the prefix as well
        tokens, position = tokens + position[: len(tokens)], position[len(tokens) :]
    op = p.Tokens(
        patches,
        "tokens",
        emitter.constant("tokens.prefix", tokens),
        emitter.constant("tokens.position", position),
    )
    return emitter.emit(op, (len(tokens) + count, width))


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
