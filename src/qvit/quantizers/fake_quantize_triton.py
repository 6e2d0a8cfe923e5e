"""Fake quantization on a GPU: the same values and gradients as `fake_quantize`, in one kernel forward and two backward.

Why. A micro model's step on a GPU is not arithmetic but kernel launches, a few microseconds each, and written with torch a
quantizer launches some 60 of them, most on a handful of numbers; a large model's step reads and writes every tensor 19 times.
Here scale and offset of a group are picked from the bank inside the kernel that uses them, so nothing waits for the CPU.

    _values       x_hat, as much as a block of threads takes of one group at a time
    _gradients    dL/dx, and of each block the three sums that the gradients of the bank are made of
    _bank         one program per group adds its blocks' sums in a fixed order: dL/ds, dL/do, dL/dn

Values are those of `fake_quantize` bit for bit but for the sign of zeros: correctly rounded division, no fused
multiply-add. Rounding to even is adding and taking away 1.5 x 2^23, which float32 rounds to whole numbers; codes are far
smaller. Sums have a fixed order, so a repetition gives the same bits. NaN stays NaN. Types are as in `fake_quantize_native`.

Triton comes with torch where torch has a GPU on Linux. Written for NVIDIA's GPUs and tested on one (docs/training.md); Triton's
interpreter computes the same on a CPU, very slowly, and tests use it where there is no GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fake_quantize_native import Grids, grouped_shape

BLOCK = 1024  # elements of a tile; and chunks of a group, whose sums are added at once
ROUNDER = tl.constexpr(1.5 * 2**23)
LN2 = tl.constexpr(0.6931471805599453)
_SAME = ["groups", "bit_groups", "rows", "slots", "lowest", "chunks"]  # one compiled kernel for all their values


@triton.jit
def _place(group, widths, groups, bit_groups, rows, slots, lowest):
    """Width of a group, its slot, and where in the bank its scale is."""
    width = tl.load(widths + group * bit_groups // groups).to(tl.int32)
    slot = tl.where(slots == 1, 0, width - lowest)
    return width, slot, tl.where(rows == 1, 0, group) * slots + slot


@triton.jit
def _range(width, signed: tl.constexpr):
    """Lowest and highest code, float32."""
    if signed:
        half = (1 << (width - 1)).to(tl.float32)
        low, high = -half, half - 1
    else:
        low, high = 0.0, (1 << width).to(tl.float32) - 1
    return low, high


@triton.jit
def _grid(
    group, scale, offset, widths, groups, bit_groups, rows, slots, lowest,
    signed: tl.constexpr, has_offset: tl.constexpr,
):  # fmt: skip
    """Scale, offset, lowest and highest code of a group."""
    width, _slot, entry = _place(group, widths, groups, bit_groups, rows, slots, lowest)
    low, high = _range(width, signed)
    o = 0.0
    if has_offset:
        o = tl.load(offset + entry)
    return tl.load(scale + entry), o, low, high


@triton.jit
def _elements(group, tile, count, rest, groups, one_group: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """Where in x the elements of one tile of a group are, and which of them exist."""
    if wide:
        tile, group = tile.to(tl.int64), group.to(tl.int64)
    k = tile * block + tl.arange(0, block)
    if one_group:
        index = k
    else:
        index = (k // rest) * groups * rest + group * rest + k % rest
    return index, k < count


@triton.jit
def _steps(x, index, mask, s, o, low, high, has_offset: tl.constexpr):
    """(x - o) / s, and the same inside the range of codes."""
    v = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    if has_offset:
        v = v - o
    u = tl.div_rn(v, s)
    inside = tl.minimum(u, high, propagate_nan=tl.PropagateNan.ALL)
    return u, tl.maximum(inside, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=_SAME)
def _values(
    x, out, scale, offset, widths, count, rest, groups, bit_groups, rows, slots, lowest, chunks,
    signed: tl.constexpr, has_offset: tl.constexpr, one_group: tl.constexpr, wide: tl.constexpr, tiles: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    group, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    s, o, low, high = _grid(group, scale, offset, widths, groups, bit_groups, rows, slots, lowest, signed, has_offset)
    for tile in range(tiles):
        index, mask = _elements(group, chunk * tiles + tile, count, rest, groups, one_group, wide, block)
        _u, inside = _steps(x, index, mask, s, o, low, high, has_offset)
        hat = (inside + ROUNDER - ROUNDER) * s
        if has_offset:
            hat = hat + o
        tl.store(out + index, hat.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SAME)
def _gradients(
    x, d, grad_x, sums, scale, offset, widths, count, rest, groups, bit_groups, rows, slots, lowest, chunks,
    signed: tl.constexpr, has_offset: tl.constexpr, one_group: tl.constexpr, wide: tl.constexpr, tiles: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """sums: (3, groups, chunks) of d over elements inside (times the rounding error), above and below the range."""
    group, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    s, o, low, high = _grid(group, scale, offset, widths, groups, bit_groups, rows, slots, lowest, signed, has_offset)
    errors = tl.zeros((block,), tl.float32)
    above, below = errors, errors
    for tile in range(tiles):
        index, mask = _elements(group, chunk * tiles + tile, count, rest, groups, one_group, wide, block)
        u, inside = _steps(x, index, mask, s, o, low, high, has_offset)
        upstream = tl.load(d + index, mask=mask, other=0.0).to(tl.float32)
        is_above, is_below = u > high, u < low
        through = tl.where(is_above | is_below, 0.0, upstream)
        tl.store(grad_x + index, through.to(grad_x.dtype.element_ty), mask=mask)
        errors += (inside + ROUNDER - ROUNDER - inside) * upstream
        above += tl.where(is_above, upstream, 0.0)
        below += tl.where(is_below, upstream, 0.0)
    at = sums + group * chunks + chunk
    tl.store(at, tl.sum(errors))
    tl.store(at + groups * chunks, tl.sum(above))
    tl.store(at + 2 * groups * chunks, tl.sum(below))


@triton.jit(do_not_specialize=_SAME)
def _bank(
    sums, grad_scale, grad_offset, grad_bits, scale, widths, elements, groups, bit_groups, rows, slots, lowest, chunks,
    signed: tl.constexpr, has_offset: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """grad_scale and grad_offset: (groups, slots), zero but in the slot in force; grad_bits: (groups,)."""
    group = tl.program_id(0)
    width, slot, entry = _place(group, widths, groups, bit_groups, rows, slots, lowest)
    low, high = _range(width, signed)
    chunk = tl.arange(0, block)
    at, mask = sums + group * chunks + chunk, chunk < chunks
    error = tl.sum(tl.load(at, mask=mask, other=0.0))
    upper = tl.sum(tl.load(at + groups * chunks, mask=mask, other=0.0))
    lower = tl.sum(tl.load(at + 2 * groups * chunks, mask=mask, other=0.0))
    of_scale = (error + upper * high + lower * low) / tl.sqrt_rn(elements * high)
    of_bits = LN2 * (high + 1) * tl.load(scale + entry)
    if signed:
        of_bits = of_bits * (upper - lower)
    else:
        of_bits = of_bits * upper
    slot_of = tl.arange(0, padded)
    row = group * slots + slot_of
    tl.store(grad_scale + row, tl.where(slot_of == slot, of_scale, 0.0), mask=slot_of < slots)
    if has_offset:
        tl.store(grad_offset + row, tl.where(slot_of == slot, upper + lower, 0.0), mask=slot_of < slots)
    tl.store(grad_bits + group, of_bits)


class _Launch(NamedTuple):
    """How the kernels go over a tensor. A block of threads takes `tiles` tiles of BLOCK elements of one group: a chunk."""

    sizes: tuple[int, ...]  # count, rest, groups, bit_groups, rows, slots, lowest, chunks
    kinds: tuple[int, ...]  # signed, has_offset, one_group, wide, tiles

    @property
    def programs(self) -> tuple[int]:
        """Of the kernels over elements: one for every chunk of every group."""
        return (self.sizes[2] * self.sizes[7],)


def _launch(x: Tensor, scale: Tensor, offset: Tensor | None, widths: Tensor, grids: Grids) -> _Launch:
    before, groups, rest = grouped_shape(x, grids)
    tiles = triton.next_power_of_2(max(1, triton.cdiv(before * rest, BLOCK * BLOCK)))  # few values: each compiles anew
    chunks = triton.cdiv(before * rest, tiles * BLOCK)
    sizes = before * rest, rest, groups, len(widths), *scale.shape, grids.lowest, chunks
    return _Launch(sizes, (grids.signed, offset is not None, groups == 1, x.numel() >= 2**31, tiles))


class _FakeQuantizeTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, bits, widths, elements, grids, dtype):
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        launch = _launch(x, scale, offset, widths, grids)
        if x.numel():
            # Of a CPU, in the interpreter, get_device() is -1, which leaves the current device as it is.
            with torch.cuda.device(x.get_device()):
                arguments = x, out, scale, offset, widths, *launch.sizes, *launch.kinds, BLOCK
                _values[launch.programs](*arguments, enable_fp_fusion=False)  # codes s + o is rounded twice
        ctx.save_for_backward(x, scale, offset, bits, widths)
        ctx.elements, ctx.launch = elements, launch
        return out

    @staticmethod
    @once_differentiable  # kernels leave no trace that a second derivative could follow
    def backward(ctx, d):
        x, scale, offset, bits, widths = ctx.saved_tensors
        sizes, kinds = ctx.launch
        _count, _rest, groups, _bit_groups, rows, slots, _lowest, chunks = sizes
        d, grad_x = d.contiguous(), torch.empty_like(x)
        sums = scale.new_empty(3, groups, chunks)
        of_scale, of_bits = scale.new_empty(groups, slots), scale.new_empty(groups)
        of_offset = None if offset is None else torch.empty_like(of_scale)
        with torch.cuda.device(x.get_device()):
            if x.numel():
                programs = ctx.launch.programs  # only sums are of products here: fused they are more exact
                _gradients[programs](x, d, grad_x, sums, scale, offset, widths, *sizes, *kinds, BLOCK)
            _bank[(groups,)](
                *(sums, of_scale, of_offset, of_bits, scale, widths, ctx.elements, *sizes[2:]),
                *(*kinds[:2], triton.next_power_of_2(slots), BLOCK),
            )
        if rows == 1:
            of_scale = of_scale.sum(0, keepdim=True)
            of_offset = None if of_offset is None else of_offset.sum(0, keepdim=True)
        needs = ctx.needs_input_grad
        of_bits = of_bits.view(len(bits), -1).sum(1) if needs[3] else None
        return grad_x, of_scale, of_offset, of_bits, None, None, None, None


def fake_quantize_triton(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bits: Tensor,
    widths: Tensor,
    elements: float,
    grids: Grids,
    dtype: torch.dtype,
) -> Tensor:
    """x on the grid of each group: the arguments of `fake_quantize_native`, all tensors on one GPU.

    Raises ValueError for an axis that does not divide. That the bank has a slot for every width is not checked: it would
    wait for the GPU.
    """
    return _FakeQuantizeTriton.apply(x, scale, offset, bits, widths, elements, grids, dtype)
