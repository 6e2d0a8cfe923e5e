"""From float parameters and scales to the integers of a program. Training and freezing both get their numbers here.

    rescaling   a ratio of scales r becomes m / 2^e, m of 31 bits and a sign                        `dyadic`
    linear      weight codes per output channel, scale max|w| / qmax; bias in units of the sums     `linear_numbers`
    LayerNorm   gamma sqrt(C) / s_out as m / 2^(shift - 30), beta / s_out in 1 / 256                `layer_norm_numbers`
    constants   position embedding, prefix tokens, position bias, mask in codes of their sum        `constant_codes`
    softmax     how many bits below the point an exponential keeps                                  `shiftmax_fraction`

Codes come as float tensors that hold integers, with the straight-through gradient where their source is a parameter; they
are exact below 2^24 in float32 and below 2^53 in float64. Scales are float64: they enter multipliers only, and both sides
derive them from the same float32 buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit_runtime.check_data import MIN_SCALE

from ...quantizers.ste import round_ste

LARGEST = 2**31 - 1
TINIEST = 4 * MIN_SCALE  # of a row of zeros, and of its sums; a program takes a quarter, and float32 rounds
SHIFT_GELU_FRACTION = 14  # as `qvit_runtime.integer_ops` recommends
BIAS_RANGE = 2.0**30  # a bias takes at most half of the 32 bits of a sum


def dyadic(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(multiplier, shift), int64, with ratio ~ multiplier / 2^shift to 31 bits; 1 <= shift <= 62.

    ratio  float64, any shape and sign

    Ratios below 2^-31 lose bits, and ratios above 2^30, with which every code but 0 leaves any grid, saturate.
    """
    _, exponent = torch.frexp(ratio)
    shift = (31 - exponent.long()).clamp(1, 62)
    multiplier = (ratio * (torch.ones_like(shift) << shift)).round()
    return multiplier.clamp(-LARGEST, LARGEST).long(), shift


@dataclass(frozen=True)
class LinearNumbers:
    """The integers of a linear layer.

    weight  codes (out, in), float32
    scale   of a weight code, float64 (out,)
    bias    codes in units of scale * input scale, float64 (out,), or None
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    @property
    def accumulator(self) -> torch.dtype:
        """float32 where no partial sum of weight * 8-bit input + bias can reach 2^24, else float64."""
        with torch.no_grad():
            reach = self.weight.abs().sum(1) * 128
            if self.bias is not None:
                reach = reach + self.bias.abs()
            return torch.float32 if float(reach.max()) < 2**24 else torch.float64


def linear_numbers(weight: Tensor, bias: Tensor | None, bits: int, input_scale: Tensor) -> LinearNumbers:
    """Codes of W (out, in) and b (out,), gradients straight through.

    A row's scale is max|w| / qmax, and more where its bias would not fit into 30 bits otherwise, or where a program could not
    hold it or that of the sums.
    """
    with torch.no_grad():
        scale = weight.abs().amax(1).double() / ((1 << (bits - 1)) - 1)
        if bias is not None:
            scale = torch.maximum(scale, bias.abs().double() / (input_scale * BIAS_RANGE))
        scale = torch.maximum(scale, TINIEST / input_scale.clamp(max=1)).float()
    codes = round_ste(weight / scale[:, None])
    scale = scale.double()
    return LinearNumbers(codes, scale, None if bias is None else round_ste(bias.double() / (scale * input_scale)))


@torch.no_grad()
def layer_norm_numbers(gamma: Tensor, beta: Tensor, output_scale: Tensor) -> tuple[Tensor, Tensor, int]:
    """(multiplier, bias, shift) of IntegerLayerNorm: int64 (C,), int64 (C,), and one shift for all channels."""
    ratio = gamma.double() * math.sqrt(len(gamma)) / output_scale
    _, exponent = math.frexp(float(ratio.abs().max()))
    shift = min(max(61 - exponent, 9), 62)
    multiplier = (ratio * 2.0 ** (shift - 30)).round().clamp(-LARGEST, LARGEST)
    bias = (beta.double() * 256 / output_scale).round().clamp(-LARGEST, LARGEST)
    return multiplier.long(), bias.long(), shift


def constant_codes(values: Tensor, scale: Tensor) -> Tensor:
    """Float constants in codes of a tensor that they are added to: float32, gradients straight through."""
    return round_ste(values / scale.float())


def shiftmax_fraction(unit: int, tokens: int) -> int:
    """Bits below the point of Shiftmax's exponentials.

    With n of them an exponential below 2^-n counts as 2^-n, and the reciprocal of their sum, up to N unit 2^n over N tokens,
    is rounded by N unit 2^n / 2^31 of itself: the two errors are equal at 2^(2 n) = 2^31 / unit. The sum stays below 2^29.
    """
    return max(1, min(round((31 - math.log2(unit)) / 2), 29 - math.ceil(math.log2(unit * tokens))))
