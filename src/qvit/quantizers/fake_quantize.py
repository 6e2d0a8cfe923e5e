"""Fake quantization: x -> x_hat on the integer grid of every group, with the gradients of Q-ViT (arXiv 2201.07703).

Per group with scale s, offset o and n bits (signed: Qn = -2^(n-1), Qp = 2^(n-1) - 1; unsigned: Qn = 0, Qp = 2^n - 1):

    u = (x - o) / s        x_hat = s * round(clamp(u, Qn, Qp)) + o

With d = dL/dx_hat, I = [Qn <= u <= Qp], L = [u < Qn], U = [u > Qp]:

    dL/dx = d I
    dL/ds = g sum d (I (round(u) - u) + L Qn + U Qp)          g = 1 / sqrt(elements per group and image * Qp)   (LSQ)
    dL/do = sum d (L + U)
    dL/dn = ln2 2^(n-1) s (sum d U - sum d L)                signed:   dQp/dn = -dQn/dn = ln2 2^(n-1)
            ln2 2^n s sum d U                                 unsigned: dQp/dn = ln2 2^n

The bits see the loss only through clipped elements; `allocate` explains why qvit does not rely on this gradient alone.

`composed` writes the definition with straight-through functions and lets autograd differentiate: the reference.
`fake_quantize` is one autograd function with the closed forms, in torch: it saves x alone, and works in place on one or two
temporaries. The clipped set is the sign of u - clamp(u), because comparing and selecting costs about six times an arithmetic
pass on a CPU. Quantizers use it where there is no fused pass (`fused`): those are tested against it.

Groups divide one axis of x into equal contiguous blocks, so x is viewed as (before, groups, rest) and everything per
group broadcasts as (1, groups, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ste import clamp_ste, round_ste, scale_grad


def code_range(bits: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(qmin, qmax) of each bit-width, differentiable in the bits."""
    if signed:
        half = torch.exp2(bits - 1)
        return -half, half - 1
    return torch.zeros_like(bits), torch.exp2(bits) - 1


def grouped(x: Tensor, groups: int, axis: int) -> Tensor:
    """View (or copy, when x is not contiguous) of x as (before, groups, rest)."""
    if groups == 1:
        return x.reshape(1, 1, -1)
    if x.shape[axis] % groups:
        raise ValueError(f"axis {axis} of {tuple(x.shape)} does not divide into {groups} equal groups")
    before = math.prod(x.shape[:axis])
    return x.reshape(before, groups, -1)


def _column(t: Tensor) -> Tensor:
    return t if t.numel() == 1 else t.view(1, -1, 1)


def composed(
    x: Tensor, scale: Tensor, offset: Tensor | None, bits: Tensor, factor: Tensor, axis: int, signed: bool
) -> Tensor:
    """The definition, differentiated by autograd. Same arguments as `fake_quantize`."""
    view = grouped(x, scale.numel(), axis)
    low, high = code_range(bits, signed)
    s = _column(scale_grad(scale, factor))
    o = 0.0 if offset is None else _column(offset)
    codes = round_ste(clamp_ste((view - o) / s, _column(low), _column(high)))
    return (codes * s + o).view(x.shape)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, bits, factor, axis, signed):  # type: ignore[no-untyped-def]
        bounds = code_range(bits, signed)
        low, high = (_column(bound) for bound in bounds)
        view, s = grouped(x, scale.numel(), axis), _column(scale)
        ctx.save_for_backward(view, scale, offset, factor, *bounds)
        ctx.axis, ctx.signed, ctx.shape = axis, signed, x.shape
        codes = _steps(view, s, offset)
        torch.minimum(codes, high, out=codes)
        torch.maximum(codes, low, out=codes)
        codes.round_().mul_(s)
        if offset is not None:
            codes.add_(_column(offset))
        return codes.view(x.shape)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        view, scale, offset, factor, low, high = ctx.saved_tensors
        d = grad.reshape(view.shape)
        u = _steps(view, _column(scale), offset)
        inside = torch.minimum(u, _column(high))
        torch.maximum(inside, _column(low), out=inside)
        side = u.sub_(inside).sign_()  # +1 above the range, -1 below, 0 inside
        error = torch.round(inside).sub_(inside)  # round(u) - u inside, 0 outside
        scale_inside = _per_group(error.mul_(d), scale)
        upper_minus_lower = _per_group(torch.mul(d, side, out=error), scale)
        clipped = side.abs_().mul_(d)
        upper_plus_lower = _per_group(clipped, scale)
        upper, lower = (upper_plus_lower + upper_minus_lower) / 2, (upper_plus_lower - upper_minus_lower) / 2
        grad_x = torch.sub(d, clipped, out=clipped).view(ctx.shape)
        grad_scale = (scale_inside + upper * high + lower * low) * factor
        grad_offset = None if offset is None else upper_plus_lower
        slope = (high + 1) * math.log(2)  # ln2 2^(n-1) signed, ln2 2^n unsigned
        grad_bits = slope * scale * (upper - lower if ctx.signed else upper)
        return grad_x, grad_scale, grad_offset, grad_bits, None, None, None


def _steps(view: Tensor, s: Tensor, offset: Tensor | None) -> Tensor:
    return view / s if offset is None else (view - _column(offset)).div_(s)


def _per_group(t: Tensor, scale: Tensor) -> Tensor:
    return t.sum().view(1) if scale.numel() == 1 else t.sum((0, 2))


def fake_quantize(
    x: Tensor, scale: Tensor, offset: Tensor | None, bits: Tensor, factor: Tensor, axis: int, signed: bool
) -> Tensor:
    """x on the integer grid of each group, same shape and dtype float32.

    x       any shape; `axis` divides into len(scale) equal contiguous blocks
    scale   (groups,) positive
    offset  (groups,) or None
    bits    (groups,) whole numbers as floats; their gradient is dL/dn above
    factor  (groups,) the LSQ factor g, no gradient
    """
    return _FakeQuantize.apply(x, scale, offset, bits, factor, axis, signed)
