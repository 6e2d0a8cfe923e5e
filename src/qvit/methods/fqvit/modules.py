"""The modules of an FQ-ViT network: timm's own float parameters, quantizers, and integer arithmetic between them.

    IntegerLayerNorm        reads the stream on a grid with power-of-two factors, writes the codes of the layer behind it
    LinearOnCodes           that layer
    StreamBlock, ...        the block whose residual stream is on the grid of the LayerNorm that reads it
    ShiftAttention, ...     log2 attention maps, and their product with v by shifts

What is integer in the program is integer here, int64 or exact in float64, so that codes come out equal; quantized linear
layers and the scores q k^T are products of fake-quantized floats as everywhere in qvit. No gradient passes an integer op:
this is post-training quantization, and the LayerNorm refuses to take part in training.

Each integer module has a `float_forward`, what the float network computes in its place: calibration runs that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...network.attention import HeadQuantizers, QuantAttention, QuantWindowAttention
from ...network.layers import QuantLinear
from ...quantizers.fake_quantize import code_range
from ...quantizers.quantizer import Quantizer
from ..ivit.integers import layer_norm
from ..ivit.numbers import layer_norm_numbers
from .integer import SoftmaxNumbers, log_int_softmax, probabilities, shift_product

FACTORS = 4  # exponents 0..3: steps s, 2 s, 4 s, 8 s


class IntegerLayerNorm(nn.LayerNorm):
    """LayerNorm of codes with power-of-two factors, by an integer square root: values on one grid -> values on another.

        x_c = (code_c - zero) 2^exponent_c step                    the input grid: one step and one zero for all channels

    The factors turn into shifts, and the step drops out of a LayerNorm altogether, eps (which is ignored) with it.

    input_quantizer   (..., C) -> its grid: unsigned, one scale and offset per channel, filled by `set_input_grid`
    output_quantizer  the grid of the output: signed, one group; also that of the layer behind, where there is one
    exponent          buffer (C,) int64 in 0..3
    zero              buffer () int64, the code of 0
    """

    calibrated_by = "qvit.methods.fqvit.calibrate"
    frozen_by = "qvit.methods.fqvit.freeze"

    def __init__(self, source: nn.LayerNorm, input_quantizer: Quantizer, output_quantizer: Quantizer) -> None:
        shape = list(source.normalized_shape)
        super().__init__(shape, source.eps, source.elementwise_affine, source.bias is not None, device="meta")
        self.weight, self.bias = source.weight, source.bias
        self.input_quantizer, self.output_quantizer = input_quantizer, output_quantizer
        self.register_buffer("exponent", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int64))
        self.exponent: Tensor
        self.zero: Tensor
        self.train(source.training)

    @torch.no_grad()
    def set_input_grid(self, step: Tensor, zero: Tensor, exponent: Tensor) -> None:
        """The smallest step (), the code of 0 () and the exponent of each channel (C,)."""
        self.exponent.copy_(exponent)
        self.zero.copy_(zero)
        scale = step.double().cpu() * torch.exp2(exponent.double().cpu())[:, None]
        self.input_quantizer.set_bank(scale, -zero.double().cpu() * scale)

    def numbers(self) -> tuple[Tensor, Tensor, int]:
        """(multiplier (C,), bias (C,), shift) of the integer op; int64."""
        quantizer, width = self.output_quantizer, self.normalized_shape[0]
        scale = quantizer.scale_at(quantizer.bit_width).double()
        gamma = torch.ones(width, device=scale.device) if self.weight is None else self.weight
        beta = torch.zeros(width, device=scale.device) if self.bias is None else self.bias
        return layer_norm_numbers(gamma, beta, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        if self.training and x.requires_grad:
            raise RuntimeError(
                "an integer LayerNorm has no gradient, so only the classifier would learn: FQ-ViT is post-training quantization; "
                "train with method 'qvit', 'lsq' or 'ivit', or put the model into eval mode"
            )
        x_q = codes_of(self.input_quantizer(x), self.input_quantizer)
        quantizer = self.output_quantizer
        low, high = (int(bound) for bound in code_range(quantizer.bit_width.float(), signed=True))
        y_q = layer_norm((x_q - self.zero) << self.exponent, *self.numbers()).clamp(low, high)
        return (y_q.float() * quantizer.scale_at(quantizer.bit_width)).to(x.dtype)

    def float_forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C) as timm has it."""
        return self.output_quantizer(super().forward(self.input_quantizer(x)))


def codes_of(values: Tensor, quantizer: Quantizer) -> Tensor:
    """int64 codes of values that lie on the quantizer's grid already; several groups must be those of the last axis."""
    scale, offset = quantizer.scale_at(quantizer.bit_width), quantizer.offset_at(quantizer.bit_width)
    above = values.double() if offset is None else values.double() - offset.double()
    return (above / scale.double()).round().long()


class LinearOnCodes(QuantLinear):
    """A quantized linear layer whose input an IntegerLayerNorm has put on the grid of `input_quantizer`, which both hold."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class StreamBlock(Block):
    """timm's Block with both residual additions on a quantized stream: the grid of the LayerNorm that reads it."""

    norm1: IntegerLayerNorm
    norm2: IntegerLayerNorm

    def __init__(self, source: Block) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(source.__dict__)  # the same modules under the same names; only `forward` differs

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)"""
        x = self.norm1.input_quantizer(x)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask, is_causal)))
        x = self.norm2.input_quantizer(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class StreamSwinBlock(SwinTransformerBlock):
    """The same for Swin; windows, shift, padding and mask stay in timm's hands."""

    norm1: IntegerLayerNorm
    norm2: IntegerLayerNorm

    def __init__(self, source: SwinTransformerBlock) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(source.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, cols, C) -> (B, rows, cols, C)"""
        x = self.norm1.input_quantizer(x)
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        x = self.norm2.input_quantizer(x)
        return x + self.drop_path2(self.mlp(self.norm2(x).flatten(1, 2))).view(x.shape)


class LogIntSoftmax(nn.Module):
    """Scores on a grid -> attention of powers of two (..., H, N, N), float32: 2^-code, or 0. `bits` of a code."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, scores: Tensor, scale: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """scores (B, H, N, N) multiples of scale apart; bias (H, N, N) and mask (windows, N, N) are rounded to its codes."""
        step = scale.double()
        codes = score_codes(scores - scores.amax(-1, keepdim=True), step)
        added = [None if constant is None else score_codes(constant, step) for constant in (bias, mask)]
        x = _add(codes, *added).long()
        return probabilities(log_int_softmax(x, SoftmaxNumbers.of_scale(float(scale)), self.bits), self.bits)

    def float_forward(self, scores: Tensor, scale: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """The float softmax; `scale` is not known yet."""
        return _add(scores, bias, mask).softmax(-1)


def score_codes(values: Tensor, scale: Tensor) -> Tensor:
    """Differences of scores, a position bias or a mask in steps of the scores: whole numbers in float64."""
    return (values.double() / scale.double()).round()


def _add(scores: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """(B windows, H, N, N) plus bias (H, N, N) plus mask (windows, N, N), each if there is one."""
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = (scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]).view(scores.shape)
    return scores


class ShiftProduct(nn.Module):
    """Attention of powers of two times v: shifts and additions of integers."""

    def forward(self, attention: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        """(B, H, N, N), v (B, H, N, d) on a grid of one scale -> (B, H, N, d) in v's dtype"""
        return shift_product(attention, (v.double() / scale.double()).round(), scale).to(v.dtype)

    def float_forward(self, attention: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        """The float product; `scale` is not known yet."""
        return attention @ v


class ShiftAttention(QuantAttention):
    """ViT attention: scores on 8 bits, log2 attention, shifts. The attention map has codes and no scale, so no quantizer."""

    scores_quantizer: Quantizer
    softmax: LogIntSoftmax
    product: ShiftProduct

    def __init__(self, source: QuantAttention, qkv: LinearOnCodes, scores: Quantizer, bits: int) -> None:
        super().__init__(source, qkv, source.proj, _heads(source), source.tokens)  # type: ignore[arg-type]
        _share_shifts(self, scores, bits)

    def _mix(self, scores: Tensor, v: Tensor) -> Tensor:
        return _shift_mix(self, scores, v)


class ShiftWindowAttention(QuantWindowAttention):
    """Swin attention likewise. Position bias and mask are added to the codes of the scores, not to their values."""

    scores_quantizer: Quantizer
    softmax: LogIntSoftmax
    product: ShiftProduct

    def __init__(self, source: QuantWindowAttention, qkv: LinearOnCodes, scores: Quantizer, bits: int) -> None:
        super().__init__(source, qkv, source.proj, _heads(source), source.tokens, source.windows)  # type: ignore[arg-type]
        _share_shifts(self, scores, bits)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B windows, T, C) -> same; mask (windows, T, T) of 0 and -100, or None."""
        q, k, v = self._split(x)
        return _shift_mix(self, self._scores(q, k), v, self.position_bias(), mask)


def _heads(source: QuantAttention | QuantWindowAttention) -> HeadQuantizers:
    return HeadQuantizers(source.q_quantizer, source.k_quantizer, source.v_quantizer, source.attention_quantizer)


def _share_shifts(module: ShiftAttention | ShiftWindowAttention, scores: Quantizer, bits: int) -> None:
    del module.attention_quantizer
    module.scores_quantizer = scores
    module.softmax, module.product = LogIntSoftmax(bits), ShiftProduct()


def _shift_mix(
    module: ShiftAttention | ShiftWindowAttention,
    scores: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(B, H, N, N), (B, H, N, d) -> (B, N, C)"""
    scores_quantizer, v_quantizer = module.scores_quantizer, module.v_quantizer
    scores_scale, v_scale = (q.scale_at(q.bit_width).detach() for q in (scores_quantizer, v_quantizer))
    attention = module.attn_drop(module.softmax(scores_quantizer(scores), scores_scale, bias, mask))
    output = module.product(attention, v_quantizer(v), v_scale).transpose(1, 2).flatten(2)
    return module.proj_drop(module.proj(output))
