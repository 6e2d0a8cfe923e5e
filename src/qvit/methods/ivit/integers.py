"""The integer functions of I-ViT in torch, number for number those of `qvit_runtime.integer_shift` and `integer_ops`.

No gradients and no scales here: int64 (or int32 where stated) in and out, `>>` is floor, `integer_ops` has the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 2**31 - 1


def requantize(x: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """R(x; m, e) = (x m + 2^(e-1)) >> e, float64; x integers of at most 32 bits in any dtype, broadcasting.

    While |x| < 2^21 the product has at most 52 bits, so floor(x (m / 2^e) + 1/2) in float64 is the same number and takes a
    third of the time of 64-bit integers: the sum has at most 53 bits up to e = 53, and beyond it is between 1/4 and 3/4.
    """
    low, high = x.aminmax()
    if max(-low.item(), high.item()) < 2**21:
        ratio = multiplier.double() / (torch.ones_like(shift) << shift).double()
        return (x.double() * ratio).add_(0.5).floor_()
    half = torch.ones_like(shift) << (shift - 1)
    return ((x.long() * multiplier + half) >> shift).double()


def shift_exp(t: Tensor, unit: int, fraction: int) -> Tensor:
    """E(t; unit, n) ~ unit 2^n e^(t / unit) for t <= 0, in t's dtype; int32 is enough where 2 unit 2^n < 2^31."""
    t = (t + (t >> 1) - (t >> 4)).clamp(min=-fraction * unit)
    q = torch.div(-t, unit, rounding_mode="trunc")
    return ((t + (q + 2) * unit) << (fraction - q)) >> 1


def integer_sqrt(n: Tensor) -> Tensor:
    """floor(sqrt(n)), int64 in 0..2^62."""
    root = n.double().sqrt().long()
    root = root - (root * root > n).long()
    return root + ((root + 1) * (root + 1) <= n).long()


def layer_norm(x: Tensor, multiplier: Tensor, bias: Tensor, shift: int) -> Tensor:
    """IntegerLayerNorm over the last axis, not clipped yet; int64."""
    channels = x.shape[-1]
    mean = torch.div(2 * x.sum(-1, keepdim=True) + channels, 2 * channels, rounding_mode="floor")
    y = x - mean
    norm = integer_sqrt((y * y).sum(-1, keepdim=True)).clamp_(min=1)
    z = y.mul_(LARGEST // norm) >> 1
    return ((z.mul_(multiplier) >> (shift - 8)) + (bias + 128)) >> 8


def shiftmax(t: Tensor, unit: int, fraction: int, bits: int) -> Tensor:
    """Softmax over the last axis in codes of 2^-bits; t int32, bias and mask already added."""
    e = shift_exp(t - t.amax(-1, keepdim=True), unit, fraction)
    halves = (e * (LARGEST // e.sum(-1, keepdim=True)).int()) >> (30 - bits)
    return ((halves + 1) >> 1).clamp_(max=2**bits - 1)


def shift_gelu(x: Tensor, unit: int, fraction: int) -> Tensor:
    """x sigmoid(1.702 x) in 1 / 256 of x's scale, int64."""
    pivot = x.clamp(min=0)
    e1, e2 = shift_exp(x - pivot, unit, fraction), shift_exp(-pivot, unit, fraction)
    return x * ((e1 * (LARGEST // (e1 + e2))) >> 23)
