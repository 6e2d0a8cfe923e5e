"""What I-ViT's network is made of: grids of activations, linear layers and LayerNorms; no arithmetic.

A grid is symmetric and per tensor: value = scale * code. Its width depends on the role (I-ViT, arXiv 2207.01405, section 3.1
and its code):

    weight and activation bits   operands of the integer products
    8 bits                       image and final features; what goes into and comes out of the shift exponentials, the
                                 attention map included: Shiftmax fixes its scale at 2^-bits, so that fewer bits would lose
                                 every probability below 2^-bits
    16 bits                      the residual stream

Its scale is a buffer that calibration fills and that training leaves alone; 0 means that nothing has filled it yet.

Whole units. Shiftmax and ShiftGELU know their scale only as the integer `unit`, which stands for 1 / (exponent * scale):
exponent is 1 for e^x and 1.702 for the sigmoid of GELU. The authors round 1 / scale, which at 8 bits changes the
temperature of a softmax by up to 1 / unit, some percent. Here the scale itself is widened to the next value whose unit is
whole, so that the unit is exact.

A scale coarser than 1 / exponent (GELU inputs beyond 74, scores beyond 127) has a unit below 1, and there is none: it is kept,
and its unit is 1. GELU loses nothing, the sigmoid is 0 or 1 but for two or three codes around zero (rms error 1.3 % of the
output's spread for normal inputs of std 40 to 300, 15 to 99 % if the grid is cut to a unit of 1 instead). A softmax becomes
flatter, by the factor of the scale: calibration warns, and still it is nearer than one of cut scores (normal scores of std 60,
197 tokens: total variation from the float softmax 0.04 against 0.59; of std 40: 0.04 against 0.02).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STREAM_BITS, EDGE_BITS, SHIFT_BITS = 16, 8, 8
LARGEST_UNIT = 1024  # a finer scale than 1 / 1024 adds nothing to an exponential
SIGMOID = 1.702  # GELU(x) ~ x sigmoid(1.702 x)


class Grid(nn.Module):
    """How the codes of one activation stand for values.

    bits      width of the codes
    signed    codes in [-2^(bits-1), 2^(bits-1) - 1], else in [0, 2^bits - 1]
    scale     fixed from the start, or 0 for calibration to fill
    exponent  the tensor goes into e^(exponent * x) by shifts, so its unit is whole; 0 if it does not
    """

    scale: Tensor

    def __init__(self, bits: int, *, signed: bool = True, scale: float = 0.0, exponent: float = 0.0) -> None:
        super().__init__()
        self.bits, self.signed, self.exponent = bits, signed, exponent
        self.register_buffer("scale", torch.tensor(scale))

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def unit(self) -> int:
        """Codes that stand for one power of e, at least 1."""
        return max(1, round(1 / (self.exponent * float(self.scale))))

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Fill the scale; widened to a whole unit where the tensor goes into an exponential and the unit is 1 or more."""
        if 0 < self.exponent * scale <= 1:
            scale = 1 / (self.exponent * min(int(1 / (self.exponent * scale)), LARGEST_UNIT))
        self.scale.fill_(scale)

    def extra_repr(self) -> str:
        return f"{self.bits} bits, {'signed' if self.signed else 'unsigned'}"


class Linear(nn.Module):
    """A Linear, or the convolution of a patch embedding; weight (out, in) after flattening, of `bits` bits."""

    def __init__(self, source: nn.Linear | nn.Conv2d, bits: int) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        self.bits = bits

    @property
    def matrix(self) -> Tensor:
        """The weight as (out, in)."""
        return self.weight.flatten(1)


class LayerNorm(nn.Module):
    """gamma and beta (C,), and the grid of the output."""

    def __init__(self, source: nn.LayerNorm, bits: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps
        (self.channels,) = source.normalized_shape
        self.output = Grid(bits)

    def parameters_or_defaults(self) -> tuple[Tensor, Tensor]:
        """(gamma, beta), ones and zeros where the norm has none."""
        device = self.output.scale.device
        gamma = torch.ones(self.channels, device=device) if self.weight is None else self.weight
        return gamma, torch.zeros(self.channels, device=device) if self.bias is None else self.bias
