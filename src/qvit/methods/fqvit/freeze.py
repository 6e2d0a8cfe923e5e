"""From a calibrated FQ-ViT network to its Program: the walk of `qvit.freeze`, with other ops where FQ-ViT has other modules.

    LayerNorm        Quantize on the grid with power-of-two factors, then IntegerLayerNorm
    residual add     Dequantize of those codes, then Add: the skip connection takes the quantized stream
    softmax, product Quantize of the scores, LogIntSoftmax, ShiftAttentionValue

The codes of a LayerNorm lie on the grid of the layer behind it already, so nothing quantizes them again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import qvit_runtime.program as p
from qvit_runtime.integer_ops import IntegerLayerNorm as IntegerLayerNormOp
from qvit_runtime.integer_ops import LogIntSoftmax as LogIntSoftmaxOp
from qvit_runtime.integer_ops import ShiftAttentionValue

from ...freezing.emitter import Emitter
from ...freezing.freeze import assemble
from ...freezing.integer_layers import activation_grid
from ...network.attention import QuantAttention, QuantWindowAttention
from ...quantizers.quantizer import Quantizer, require_calibrated
from .integer import SoftmaxNumbers
from .modules import IntegerLayerNorm, ShiftAttention, ShiftWindowAttention, score_codes


@torch.no_grad()
def freeze(
    model: nn.Module,
    preprocess: p.Preprocess | None = None,
    name: str = "",
    metadata: dict[str, str] | None = None,
) -> p.Program:
    """The integer program of a calibrated FQ-ViT network; arguments as in `qvit.freeze`.

    Raises UncalibratedError when a quantizer has no scale, ValueError when the model is not FQ-ViT's.
    """
    if not any(isinstance(module, IntegerLayerNorm) for module in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} is not an FQ-ViT network; call qvit.methods.fqvit.quantize first"
        )
    require_calibrated(model)
    return assemble(_FQEmitter(model), model, preprocess, name, metadata)


class _FQEmitter(Emitter):
    """An Emitter that remembers on which codes each stream buffer has been read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.stream_codes: dict[str, str] = {}

    def quantize(self, source: str, quantizer: Quantizer, axis: int = 0) -> str:
        """values -> codes; codes of a LayerNorm are on this grid already."""
        return super().quantize(source, quantizer, axis) if self.buffers[source].grid is None else source

    def layer_norm(self, source: str, norm: nn.Module) -> str:
        """values or codes -> codes on the output grid of the norm; nothing for an Identity"""
        if isinstance(norm, nn.Identity):
            return source
        assert isinstance(norm, IntegerLayerNorm)
        name, shape = self.names[norm], self.shape(source)
        codes = self.quantize(self.values(source), norm.input_quantizer, len(shape) - 1)
        self.stream_codes[source] = codes
        multiplier, bias, shift = norm.numbers()
        op = IntegerLayerNormOp(
            codes,
            self.tensor_names[norm.output_quantizer],
            self.integer(f"{name}.multiplier", multiplier),
            self.integer(f"{name}.bias", bias),
            shift,
            self.integer(f"{name}.exponent", norm.exponent),
            int(norm.zero),
        )
        return self.emit(op, shape, activation_grid(norm.output_quantizer))

    def residual(self, stream: str, branch: str, scale: nn.Module | None, name: str) -> str:
        """the quantized stream + LayerScale(branch)"""
        return super().residual(self.values(self.stream_codes[stream]), branch, scale, name)

    def attend(self, q: str, k: str, v: str, module: QuantAttention | QuantWindowAttention, mask: Tensor | None) -> str:
        """codes (..., H, N, d) -> values (..., H, N, d) by a log2 softmax and shifts, or as `qvit.freeze` does"""
        if not isinstance(module, (ShiftAttention, ShiftWindowAttention)):
            return super().attend(q, k, v, module, mask)
        name, per_head = self.names[module], self.shape(v)
        square = (*per_head[:-1], per_head[-2])
        quantizer, bits = module.scores_quantizer, module.softmax.bits
        scores = self.emit(p.QueryKey(q, k, f"{name}.scores.values", float(module.scale)), square)
        codes = self.quantize(scores, quantizer)
        scale = quantizer.scale_at(quantizer.bit_width)
        numbers = SoftmaxNumbers.of_scale(float(scale))
        bias = masked = ""
        if isinstance(module, QuantWindowAttention):
            bias = self.integer(f"{name}.position_bias", score_codes(module.position_bias(), scale))
            masked = "" if mask is None else self.integer(f"{name}.mask", score_codes(mask, scale))
        op = LogIntSoftmaxOp(codes, f"{name}.attention", numbers.ln2, numbers.linear, numbers.constant, bias, masked)
        log2 = p.Grid((bits,), False, torch.ones(1).numpy(), torch.zeros(1).numpy())
        attention = self.emit(op, square, log2)
        return self.emit(ShiftAttentionValue(attention, v, f"{name}.mixed"), per_head)
