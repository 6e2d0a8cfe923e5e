"""The integer functions of FQ-ViT in torch, number for number those of `qvit_runtime.interpreter_integer`.

    i-exp       the integers that stand for a scale                        `SoftmaxNumbers`
    softmax     scores -> log2 codes                                       `log_int_softmax`
    product     attention of powers of two times v, exactly                `shift_product`
    LayerNorm   shared with I-ViT                                          `ivit.integers.layer_norm`

Integers are int64; `qvit_runtime.integer_ops` has the formulas (LogIntSoftmax, ShiftAttentionValue).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit_runtime.integer_ops import shift_fraction

LINEAR, CONSTANT = 0.96963238 / 0.35815147, 1 / 0.35815147  # e^r ~ (r^2 + LINEAR r + CONSTANT) / CONSTANT on (-ln 2, 0]
LARGEST_SHIFT = 30


@dataclass(frozen=True)
class SoftmaxNumbers:
    """The integers of i-exp (I-BERT, arXiv 2101.01321) for scores of a given scale: ln 2, LINEAR and CONSTANT in its units."""

    ln2: int
    linear: int
    constant: int

    @classmethod
    def of_scale(cls, scale: float) -> SoftmaxNumbers:
        """scale: what one code of the scores stands for."""
        return cls(math.ceil(math.log(2) / scale), math.floor(LINEAR / scale), math.floor(CONSTANT / scale**2))


def log_int_softmax(x: Tensor, numbers: SoftmaxNumbers, bits: int) -> Tensor:
    """Softmax over the last axis of integers (..., N) as log2 codes in [0, 2^bits - 1]; bias and mask already added."""
    d = (x.amax(-1, keepdim=True) - x).clamp(max=LARGEST_SHIFT * numbers.ln2)
    q = d // numbers.ln2
    r = q * numbers.ln2 - d
    e = (r * (r + numbers.linear) + numbers.constant) << (LARGEST_SHIFT - q)
    total = e.sum(-1, keepdim=True)
    rest = total % e
    ratio = total // e + (rest >= e - rest)
    f = floor_log2(ratio)
    return (f + (ratio >= 3 * (torch.ones_like(f) << f) - ratio)).clamp(max=2**bits - 1)


def floor_log2(n: Tensor) -> Tensor:
    """floor(log2(n)) of positive int64; where float64 rounds n up to a power of two, the power is above n, and that shows."""
    exponent = (torch.frexp(n.double())[1].long() - 1).clamp(max=62)
    return exponent - ((torch.ones_like(n) << exponent) > n).long()


def probabilities(codes: Tensor, bits: int) -> Tensor:
    """What log2 codes stand for in the product with v: 2^-code, and 0 from the first code on that the shifts drop. float32."""
    kept = codes <= shift_fraction(bits)
    return torch.where(kept, torch.exp2(-codes.float()), torch.zeros((), device=codes.device))


def shift_product(attention: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(..., H, N, N) of powers of two times integers v (..., H, N, d), times scale: float32, rounded once.

    Sums of v 2^-c are exact in float64 (20 digits behind the point, 8 before it, N terms), so this is the sum of shifts.
    """
    return ((attention.double() @ codes.double()) * scale.double()).float()
