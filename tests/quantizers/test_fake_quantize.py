"""The fused fake quantization against its composed definition and against closed forms written here on their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qvit.quantizers.fake_quantize import code_range, composed, fake_quantize, grouped

LAYOUTS = {  # shape, groups, axis
    "tensor": ((5, 7), 1, 0),
    "tensor_any_axis": ((2, 3, 4), 1, 2),
    "rows": ((12, 5), 6, 0),
    "channel": ((8, 3), 8, 0),
    "columns": ((5, 12), 3, 1),
    "head": ((2, 4, 3, 5), 4, 1),
    "head_pairs": ((2, 6, 3, 5), 3, 1),
    "last_of_three": ((2, 3, 12), 4, 2),
    "third_of_four": ((2, 2, 6, 3), 3, 2),
    "negative_axis": ((2, 3, 12), 4, -1),
}
KINDS = {"signed": (True, False), "unsigned": (False, False), "offset": (False, True)}


def case(
    shape: tuple[int, ...], groups: int, signed: bool, offset: bool, bits: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """x, scale, offset, factor: about a third of the elements clip on either side of the grid that can clip there."""
    generator = torch.Generator().manual_seed(seed)
    high = code_range(bits, signed)[1]
    scale = 0.05 + torch.rand(groups, generator=generator)
    x = torch.randn(shape, generator=generator) * float((high * scale).mean())
    shift = torch.randn(groups, generator=generator) if offset else None
    return x, scale, shift, torch.rand(groups, generator=generator) + 0.1


def gradients(function, x, scale, offset, bits, factor, axis, signed):  # type: ignore[no-untyped-def]
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, scale, offset, bits)]
    values = function(*leaves, factor, axis, signed)
    upstream = torch.cos(torch.arange(values.numel())).view(values.shape)
    grads = torch.autograd.grad(values, [leaf for leaf in leaves if leaf is not None], upstream)
    return values.detach(), upstream, grads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_fused_equals_composed(bits: int, layout: str, kind: str) -> None:
    (shape, groups, axis), (signed, with_offset) = LAYOUTS[layout], KINDS[kind]
    widths = torch.full((groups,), float(bits))
    x, scale, offset, factor = case(shape, groups, signed, with_offset, widths)
    fused, _, fused_grads = gradients(fake_quantize, x, scale, offset, widths, factor, axis, signed)
    plain, _, plain_grads = gradients(composed, x, scale, offset, widths, factor, axis, signed)
    assert torch.equal(fused, plain)
    assert fused.shape == x.shape
    for ours, reference in zip(fused_grads, plain_grads, strict=True):
        assert ours.shape == reference.shape
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()) + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["tensor", "columns", "head", "channel"])
def test_gradients_equal_the_closed_forms(layout: str, kind: str) -> None:
    """methods.md 1.2, per group, in float64 numpy and with another bit-width for every group."""
    (shape, groups, axis), (signed, with_offset) = LAYOUTS[layout], KINDS[kind]
    bits = torch.arange(groups).float() % 7 + 2
    x, scale, offset, factor = case(shape, groups, signed, with_offset, bits, seed=3)
    values, upstream, grads = gradients(fake_quantize, x, scale, offset, bits, factor, axis, signed)
    grad_x, grad_scale, *grad_offset, grad_bits = (g.numpy() for g in grads)
    parts = [np.split(t.numpy().astype(np.float64), groups, axis) for t in (x, upstream, values)]
    blocks = np.split(grad_x, groups, axis)
    clipped = 0
    for g, (v, d, out) in enumerate(zip(*parts, strict=True)):
        n, s = int(bits[g]), float(scale[g])
        o = 0.0 if offset is None else float(offset[g])
        low, high = (-(2 ** (n - 1)), 2 ** (n - 1) - 1) if signed else (0, 2**n - 1)
        u = (v - o) / s
        inside, lower, upper = (u >= low) & (u <= high), u < low, u > high
        clipped += int(upper.sum() > 0) + int(lower.sum() > 0)
        np.testing.assert_allclose(out, s * np.rint(np.clip(u, low, high)) + o, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(blocks[g], d * inside, rtol=1e-6)
        by_scale = float(factor[g]) * (d * (inside * (np.rint(u) - u) + lower * low + upper * high)).sum()
        np.testing.assert_allclose(grad_scale[g], by_scale, rtol=1e-3, atol=1e-3)
        if grad_offset:
            np.testing.assert_allclose(grad_offset[0][g], (d * ~inside).sum(), rtol=1e-4, atol=1e-5)
        to_high, to_low = (d * s * upper).sum(), (d * s * lower).sum()
        by_bits = math.log(2) * (2 ** (n - 1) * (to_high - to_low) if signed else 2**n * to_high)
        np.testing.assert_allclose(grad_bits[g], by_bits, rtol=1e-3, atol=1e-3)
    assert clipped >= groups  # the data really exercises the clipped branches


@pytest.mark.parametrize(
    ("signed", "low", "high", "slope_low", "slope_high"),
    [(True, -8.0, 7.0, -5.545, 5.545), (False, 0.0, 15.0, 0.0, 11.090)],
    ids=["signed", "unsigned"],
)
def test_code_range_oracle(signed: bool, low: float, high: float, slope_low: float, slope_high: float) -> None:
    """methods.md section 8: four bits and their slopes."""
    for index, (value, slope) in enumerate(((low, slope_low), (high, slope_high))):
        bits = torch.tensor([4.0], requires_grad=True)
        bound = code_range(bits, signed)[index]
        assert bound.item() == value
        if bound.requires_grad:
            (gradient,) = torch.autograd.grad(bound, bits)
            assert float(gradient) == pytest.approx(slope, abs=6e-4)
        else:
            assert slope == 0


def test_one_clipped_element_by_hand() -> None:
    """Signed 4 bits, scale 0.5: 9 lies above 7 steps, so its code is 7 and every gradient is a number one can check."""
    x = torch.tensor([[9.0, 0.6]])
    args = (x, torch.tensor([0.5]), None, torch.tensor([4.0]), torch.tensor([0.25]), 0, True)
    values, upstream, (grad_x, grad_scale, grad_bits) = gradients(fake_quantize, *args)
    assert values.tolist() == [[3.5, 0.5]]
    assert grad_x.tolist() == [[0.0, float(upstream[0, 1])]]
    assert float(grad_scale) == pytest.approx(0.25 * (7.0 + math.cos(1.0) * (1 - 1.2)), rel=1e-5)
    assert float(grad_bits) == pytest.approx(math.log(2) * 8 * 0.5, rel=1e-5)


@pytest.mark.parametrize("function", [fake_quantize, composed])
def test_strides_do_not_matter(function) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 5, 4, 3).permute(0, 2, 1, 3)  # (B, H, N, d), as q comes out of the fused qkv
    assert not x.is_contiguous()
    args = (torch.rand(4) + 0.1, None, torch.tensor([2.0, 3.0, 4.0, 8.0]), torch.ones(4), 1, True)
    strided, _, strided_grads = gradients(function, x, *args)
    dense, _, dense_grads = gradients(function, x.contiguous(), *args)
    assert torch.equal(strided, dense)
    for left, right in zip(strided_grads, dense_grads, strict=True):
        assert torch.equal(left, right)


def test_expanded_gradient() -> None:
    """A sum's gradient is an expanded scalar: the backward pass must not write into it."""
    x, scale = torch.randn(4, 6).requires_grad_(), torch.tensor([0.1])
    fake_quantize(x, scale, None, torch.tensor([3.0]), torch.ones(1), 0, True).sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}  # type: ignore[union-attr]


def test_inputs_are_not_written() -> None:
    x, upstream = torch.randn(4, 6), torch.randn(4, 6)
    before, before_upstream = x.clone(), upstream.clone()
    leaf = x.requires_grad_()
    fake_quantize(leaf, torch.tensor([0.1]), None, torch.tensor([3.0]), torch.ones(1), 0, True).backward(upstream)
    assert torch.equal(x, before)
    assert torch.equal(upstream, before_upstream)


@given(
    groups=st.integers(1, 4),
    block=st.integers(1, 5),
    before=st.integers(1, 3),
    after=st.integers(1, 5),
    signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_changing_one_group_changes_only_that_group(
    groups: int, block: int, before: int, after: int, signed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(before, groups * block, after, generator=generator)
    bits = torch.randint(2, 9, (groups,), generator=generator).float()
    scale = torch.rand(groups, generator=generator) + 0.01
    target = int(torch.randint(groups, (1,), generator=generator))
    first = fake_quantize(x, scale, None, bits, torch.ones(groups), 1, signed)
    scale[target] *= 1.37
    second = fake_quantize(x, scale, None, bits, torch.ones(groups), 1, signed)
    moved = (first != second).any(2).any(0).view(groups, block).any(1)
    assert not moved[torch.arange(groups) != target].any()


def test_indivisible_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"axis 1 of \(2, 3, 4\) does not divide into 2 equal groups"):
        grouped(torch.zeros(2, 3, 4), 2, 1)
