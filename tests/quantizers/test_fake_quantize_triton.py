"""The kernels for a GPU against the torch formulas: on a GPU, or on a CPU in Triton's interpreter.

The interpreter cuts off what bfloat16 cannot hold where a GPU rounds, so bfloat16 is compared on a GPU alone.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qvit.quantizers.fake_quantize import composed, fake_quantize
from qvit.quantizers.fused import Fused, fused_pass, try_out
from toy_fake_quantize import TYPES, Case, cases, check_sums

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter, which is numpy

pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for NVIDIA's GPUs)")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(scope="module")
def triton_pass() -> Fused:
    """Imported here, for the import makes the kernels: for a GPU or, as conftest.py asks, for the interpreter."""
    from qvit.quantizers.fake_quantize_triton import fake_quantize_triton

    return fake_quantize_triton


def same(case: Case, function: Fused) -> bool:
    """x_hat and the gradient of x as the formulas have them, NaN in the same places."""
    pairs = zip(case.fused(function)[:2], case.torch(fake_quantize)[:2], strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.nan_to_num(7e9), b.nan_to_num(7e9)) for a, b in pairs)


@settings(max_examples=200 if GPU else 12, phases=list(Phase) if GPU else [Phase.generate])
@given(
    case=cases(
        st.sampled_from([0, 1, 7, 1024, 1500] if GPU else [0, 7, 600]), TYPES if GPU else (torch.float32,), DEVICE
    )
)
def test_equals_the_torch_formulas(triton_pass: Fused, case: Case) -> None:
    assert same(case, triton_pass)
    check_sums(case.fused(triton_pass)[2:], case.torch(fake_quantize)[2:])


@pytest.mark.parametrize("shape", [(3, 12), (12,)])
def test_a_group_is_a_channel_of_the_last_axis(triton_pass: Fused, shape: tuple[int, ...]) -> None:
    case = Case(shape, 12, -1, signed=False, offset=True, per_width=3, device=DEVICE)
    assert same(case, triton_pass)
    check_sums(case.fused(triton_pass)[2:], case.torch(fake_quantize)[2:])


@pytest.mark.parametrize("signed", [True, False])
def test_equals_the_definition(triton_pass: Fused, signed: bool) -> None:
    case = Case((3, 8, 40), 4, 1, signed=signed, offset=not signed, device=DEVICE)
    for ours, reference in zip(case.fused(triton_pass), case.torch(composed), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [False, True])
def test_ties_zeros_and_extremes(triton_pass: Fused, offset: bool) -> None:
    """Exact ties, both zeros, denormals, infinities and NaN."""
    case = Case((17,), 1, 0, signed=not offset, offset=offset)
    case.scale.fill_(0.5)
    if case.offset is not None:
        case.offset.fill_(-0.25)
    inf, nan = float("inf"), float("nan")
    case.x = torch.tensor(
        [0.25, -0.25, 0.75, -0.75, 0.0, -0.0, 1e-41, -1e-41, 3e38, -3e38, inf, -inf, nan, 1.0, 63.75, -64.25, -0.125]
    )
    case.move(DEVICE)
    values, _, of_scale = case.fused(triton_pass)[:3]
    expected = case.torch(fake_quantize)[0]
    assert torch.equal(values.nan_to_num(7e9), expected.nan_to_num(7e9))
    assert values.isnan().nonzero().tolist() == [[12]]
    assert of_scale.isnan().any()  # training sees it in the gradient of the scale too


@pytest.mark.parametrize(("shape", "groups", "axis"), [((601,), 1, 0), ((2, 2, 300), 2, 1)])
def test_several_tiles_of_a_program(
    triton_pass: Fused, shape: tuple[int, ...], groups: int, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of more tiles than a group has chunks, the last ones beyond the end."""
    monkeypatch.setattr("qvit.quantizers.fake_quantize_triton.BLOCK", 16)
    case = Case(shape, groups, axis, device=DEVICE)
    assert same(case, triton_pass)
    check_sums(case.fused(triton_pass)[2:], case.torch(fake_quantize)[2:])


def test_a_repetition_gives_the_same_bits(triton_pass: Fused) -> None:
    case = Case((2, 6, 411), 3, 1, device=DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(case.fused(triton_pass), case.fused(triton_pass), strict=True))


def test_strides_do_not_matter(triton_pass: Fused) -> None:
    case = Case((2, 4, 5, 6), 4, 1, device=DEVICE)
    dense = case.fused(triton_pass)
    case.x = case.x.transpose(1, 2).contiguous().transpose(1, 2)
    case.d = case.d.transpose(2, 3).contiguous().transpose(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(dense, case.fused(triton_pass), strict=True))


def test_no_gradient_where_none_is_asked(triton_pass: Fused) -> None:
    case = Case((4, 6), 2, 0, device=DEVICE)
    x, scale = case.x.requires_grad_(), case.scale
    triton_pass(x, scale, None, case.bits, case.widths, 3.0, case.grids, torch.float32).sum().backward()
    expected = Case((4, 6), 2, 0, device=DEVICE)
    expected.d.fill_(1.0)
    assert torch.equal(x.grad, expected.torch(fake_quantize)[1])  # type: ignore[arg-type]
    assert scale.grad is None
    assert case.bits.grad is None


def test_a_second_derivative_is_refused(triton_pass: Fused) -> None:
    """It would be wrong in silence: the kernel that makes the first one is not recorded."""
    case = Case((4, 6), 2, 0, device=DEVICE)
    x = case.x.requires_grad_()
    y = triton_pass(x, case.scale, None, case.bits, case.widths, 3.0, case.grids, torch.float32)
    (slope,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_an_axis_that_does_not_divide_is_refused(triton_pass: Fused) -> None:
    with pytest.raises(ValueError, match=r"axis -1 of \(4, 5\) does not divide into 2 equal groups"):
        Case((4, 5), 2, -1, device=DEVICE).fused(triton_pass)


def test_it_can_be_tried_out(triton_pass: Fused) -> None:
    values = []

    def watched(*arguments: object) -> Tensor:
        values.append(triton_pass(*arguments))
        return values[0]

    with torch.no_grad():
        try_out(watched, DEVICE)
    assert [(value.item(), value.requires_grad) for value in values] == [(1.0, True)]


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_gpu_takes_it(triton_pass: Fused) -> None:
    assert fused_pass(torch.zeros(2, device="cuda"), torch.ones(1, 1, device="cuda"), torch.float32) is triton_pass


@pytest.mark.skipif(not GPU, reason="needs a GPU with 30 GB of memory")
def test_more_elements_than_int32_counts(triton_pass: Fused) -> None:
    """2^31 + 2^12 elements in two groups; the last ones are what the same elements are alone, and so are their gradients."""
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs a GPU with 30 GB of free memory")
    case = Case((2, 8), 2, 0, x_type=torch.bfloat16, out_type=torch.bfloat16, device="cuda")
    x = torch.zeros(2, 2**30 + 2**11, dtype=torch.bfloat16, device="cuda")
    x[:, -8:] = case.x
    arguments = case.scale, None, case.bits, case.widths, 3.0, case.grids, torch.bfloat16
    ends = []
    for values in (x, case.x):
        leaf = values.requires_grad_()
        out = triton_pass(leaf, *arguments)
        out.backward(torch.ones((), dtype=out.dtype, device="cuda").expand(out.shape))
        ends.append((out.detach()[:, -8:], leaf.grad[:, -8:]))  # type: ignore[index]
    for far, near in zip(*ends, strict=True):
        assert torch.equal(far, near)
