"""Fake quantization on a CPU: the same values and gradients as `fake_quantize`, in one native pass over memory each way.

Why. Written with torch, the forward pass of `fake_quantize` moves the tensor through memory 4 times and the backward pass
15 times, and the arithmetic on scales and bits around it is some 30 operations on a handful of numbers, each of which
costs microseconds whatever its size. A DeiT-Tiny has 148 quantizers. Together that was the larger part of what a step of
quantization-aware training costs more than a float step.

What is native. One call (`qvit_runtime`, native/fake_quantize.h) picks scale and offset of every group from the bank, and

    forward     writes x_hat
    backward    writes dL/dx, sums the three sums per group, and adds the gradients into those of bank and bits

Values are those of `fake_quantize` bit for bit: the same float32 operations in the same order. Gradients of x too; those of
scale, offset and bits are sums, here of double precision over chunks fixed by the shape: closer to the exact ones, and
equal bit for bit for every number of threads. NaN stays NaN.

bfloat16. Under autocast the consumer of x_hat, a matrix product, would turn float32 into bfloat16, and its gradient back;
x is often bfloat16 itself. Here x, x_hat and their gradients are each float32 or bfloat16 in memory and float32 in
arithmetic: what saves the copies changes no value.

Where it applies, `fused` says.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qvit_runtime.engine import native


class Grids(NamedTuple):
    """How a tensor divides into groups, and which grid each has.

    groups  that own a scale; `axis` divides into them as equal contiguous blocks
    signed  sign of the codes
    lowest  bit-width of the first slot of the bank
    """

    groups: int
    axis: int
    signed: bool
    lowest: int


def grouped_shape(x: Tensor, grids: Grids) -> tuple[int, int, int]:
    """(before, groups, rest); ValueError for an axis that does not divide."""
    if grids.groups == 1:
        return 1, 1, x.numel()
    shape, axis = x.shape, grids.axis % x.dim()
    if shape[axis] % grids.groups:
        raise ValueError(f"axis {grids.axis} of {tuple(shape)} does not divide into {grids.groups} equal groups")
    before = math.prod(shape[:axis])
    return before, grids.groups, math.prod(shape[axis:]) // grids.groups


def _bank(scale: Tensor, offset: Tensor | None, widths: Tensor, grids: Grids) -> tuple[int | bool, ...]:
    at = 0 if offset is None else offset.data_ptr()
    return scale.data_ptr(), at, *scale.shape, widths.data_ptr(), len(widths), grids.lowest, grids.signed


def _address(t: Tensor) -> tuple[int, bool]:
    return t.data_ptr(), t.dtype == torch.bfloat16


class _FakeQuantizeNative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, bits, widths, elements, grids, dtype):  # type: ignore[no-untyped-def]
        shape, x = grouped_shape(x, grids), x.contiguous()
        out = torch.empty(x.shape, dtype=dtype)
        bank = _bank(scale, offset, widths, grids)
        native().fake_quantize(shape, bank, _address(x), _address(out), torch.get_num_threads())
        ctx.save_for_backward(x, scale, offset, bits, widths)
        ctx.elements, ctx.grids, ctx.grouped = elements, grids, shape
        return out

    @staticmethod
    @once_differentiable  # kernels leave no trace that a second derivative could follow
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        x, scale, offset, bits, widths = ctx.saved_tensors
        d, grad_x = d.contiguous(), torch.empty_like(x)
        gradients = [
            torch.zeros_like(t) if needed else None
            for t, needed in zip((scale, offset, bits), ctx.needs_input_grad[1:4], strict=True)
        ]
        native().fake_quantize_gradient(
            ctx.grouped,
            _bank(scale, offset, widths, ctx.grids),
            _address(x),
            _address(d),
            grad_x.data_ptr(),
            ctx.elements,
            *(0 if t is None else t.data_ptr() for t in gradients),
            torch.get_num_threads(),
        )
        return grad_x, *gradients, None, None, None, None


def fake_quantize_native(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bits: Tensor,
    widths: Tensor,
    elements: float,
    grids: Grids,
    dtype: torch.dtype,
) -> Tensor:
    """x on the grid of each group, same shape, of type `dtype`. All tensors on the CPU.

    x         float32 or bfloat16, any shape and strides
    scale     (rows, slots), the bank: a row for every group or one for all, a slot for every width or one for all
    offset    the same shape, or None
    bits      (bit_groups,), takes the gradient dL/dn of the groups' widths; each serves groups / bit_groups of them
    widths    (bit_groups,) int64, in force
    elements  of one image in one group, for LSQ's factor g = 1 / sqrt(elements Qp)
    dtype     float32 or bfloat16

    Raises ValueError for an axis that does not divide, IndexError for a width that the bank has no slot for.
    """
    return _FakeQuantizeNative.apply(x, scale, offset, bits, widths, elements, grids, dtype)
