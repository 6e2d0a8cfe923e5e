"""Emitter: a Program under construction, one quantized layer after another.

`emit` appends an op together with the buffer that it writes; the other methods translate one kind of layer each, from the
name of the buffer that it reads to the name of the one that it writes. `freeze` walks a model with it; a method whose
modules are others overrides the methods that differ (`methods`).

q, k and v are quantized after the heads are split, (H, N, d) with groups on the first axis; the attention output is quantized
as (H, N, d) too and only then merged, so that no backend meets a group on the last axis of a 4-D tensor.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.models.vision_transformer import LayerScale
from torch import Tensor, nn

import qvit_runtime.program as p
from qvit_runtime.integer_ops import Dequantize, QuantizeRegions

from ..network.attention import QuantAttention, QuantWindowAttention
from ..network.layers import QuantConv2d, QuantLinear
from ..network.rectify import RectifiedLinear
from ..quantizers.quantizer import Quantizer, named_quantizers
from ..quantizers.region_quantizer import RegionQuantizer
from .integer_layers import activation_grid, as_numpy, folded_bias, integer_weight, regions_grid


class FreezeError(ValueError):
    """The module cannot become a Program as it stands; the text says what to do."""


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
        self.constants[name] = as_numpy(value) if isinstance(value, Tensor) else value.astype(np.float32)
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
        return self.linear(self.quantize(source, layer.input_quantizer, len(self.shape(source)) - 1), layer)

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
