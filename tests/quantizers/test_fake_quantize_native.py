"""The native pass against the torch formulas: values and gradients of x bit for bit, sums to rounding."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quantizers.fake_quantize import composed, fake_quantize
from qvit.quantizers.fake_quantize_native import fake_quantize_native
from toy_fake_quantize import TYPES, Case, cases, check, same_bits


@settings(max_examples=60)
@given(cases(st.one_of(st.integers(1, 70), st.sampled_from([0, 255, 1024]))))
def test_equals_the_torch_formulas(case: Case) -> None:
    check(case, fake_quantize_native)


@pytest.mark.parametrize("signed", [True, False])
def test_equals_the_definition(signed: bool) -> None:
    case = Case((3, 8, 40), 4, 1, signed=signed, offset=not signed)
    for ours, reference in zip(case.fused(fake_quantize_native), case.torch(composed), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("offset", [False, True])
def test_ties_zeros_and_extremes(x_type: torch.dtype, offset: bool) -> None:
    """Exact ties, both zeros, denormals, infinities and NaN, in whole vectors and past their end."""
    case = Case((5, 7), 1, 0, signed=not offset, offset=offset, x_type=x_type)
    case.scale.fill_(0.5)
    if case.offset is not None:
        case.offset.fill_(-0.25)
    inf, nan = float("inf"), float("nan")
    row = [0.25, -0.25, 0.75, -0.75, 0.0, -0.0, 1e-41, -1e-41, 3e38, -3e38, inf, -inf, nan, 1.0, 63.75, -64.25, -0.125]
    case.x = torch.tensor(row * 2 + [0.25]).to(x_type).view(5, 7)
    assert same_bits(case.fused(fake_quantize_native)[0], case.torch(fake_quantize)[0])
    assert case.fused(fake_quantize_native)[0].isnan().sum() == 2
    assert case.fused(fake_quantize_native)[2].isnan().any()  # training sees it in the gradient of the scale too


def test_a_gradient_passes_inside_and_ends_outside() -> None:
    case = Case((64,), 1, 0)
    case.widths.fill_(4)
    case.scale.fill_(1.0)
    case.x = torch.linspace(-12, 12, 64)
    case.d.fill_(float("inf"))
    grad_x = case.fused(fake_quantize_native)[1]
    inside = (case.x >= -8) & (case.x <= 7)
    assert torch.equal(grad_x, torch.where(inside, case.d, 0.0))


@pytest.mark.parametrize(("shape", "groups", "axis"), [((70001,), 1, 0), ((5, 6, 20011), 3, 1), ((4096, 12), 4, 1)])
def test_threads_change_nothing(shape: tuple[int, ...], groups: int, axis: int) -> None:
    """One block of several tasks, several such blocks, several blocks in one task: bit for bit, and again."""
    case, found = Case(shape, groups, axis), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(case.fused(fake_quantize_native))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    check(case, fake_quantize_native)


def test_strides_do_not_matter() -> None:
    case = Case((2, 4, 5, 6), 4, 1)
    dense = case.fused(fake_quantize_native)
    case.x = case.x.transpose(1, 2).contiguous().transpose(1, 2)
    case.d = case.d.transpose(2, 3).contiguous().transpose(2, 3)
    assert not case.x.is_contiguous()
    assert not case.d.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(dense, case.fused(fake_quantize_native), strict=True))
    case.d = torch.ones(()).expand(case.x.shape)
    check(case, fake_quantize_native)


def test_a_child_of_a_fork_can_call_it() -> None:
    """As the workers of a DataLoader, which run with one thread; the parent's threads have run before."""
    threads = torch.get_num_threads()
    case = Case((3, 30000), 3, 0)
    try:
        torch.set_num_threads(2)
        expected = case.fused(fake_quantize_native)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            same = all(torch.equal(a, b) for a, b in zip(expected, case.fused(fake_quantize_native), strict=True))
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)


def test_no_gradient_where_none_is_asked() -> None:
    case = Case((4, 6), 2, 0)
    x, scale = case.x.requires_grad_(), case.scale
    fake_quantize_native(x, scale, None, case.bits, case.widths, 3.0, case.grids, torch.float32).sum().backward()
    assert x.grad is not None
    assert scale.grad is None
    assert case.bits.grad is None


def test_a_second_derivative_is_refused() -> None:
    """It would be wrong in silence: the kernel that makes the first one is not recorded."""
    case = Case((4, 6), 2, 0)
    x = case.x.requires_grad_()
    y = fake_quantize_native(x, case.scale, None, case.bits, case.widths, 3.0, case.grids, torch.float32)
    (slope,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_a_width_without_a_slot_is_refused() -> None:
    case = Case((4, 6), 2, 0)
    case.widths[1] = 9
    with pytest.raises(IndexError, match="bit-width 9 of group 1 has no slot in a bank of 7 from 2 on"):
        case.fused(fake_quantize_native)


def test_an_axis_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"axis -1 of \(4, 5\) does not divide into 2 equal groups"):
        Case((4, 5), 2, -1).fused(fake_quantize_native)
