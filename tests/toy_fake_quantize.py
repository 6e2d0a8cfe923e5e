"""Tensors, banks and widths for the fused passes of fake quantization, and what the torch formulas make of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from qvit.quantizers.fake_quantize import fake_quantize
from qvit.quantizers.fake_quantize_native import Grids
from qvit.quantizers.fused import Fused

LOWEST = 2
TYPES = (torch.float32, torch.bfloat16)


class Case:
    """A tensor, a bank of its own for every group (or a shared one), widths, and an upstream gradient."""

    def __init__(
        self,
        shape: tuple[int, ...],
        groups: int,
        axis: int,
        *,
        signed: bool = True,
        offset: bool = False,
        shared: bool = False,
        per_width: int = 1,
        x_type: torch.dtype = torch.float32,
        out_type: torch.dtype = torch.float32,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.grids, self.per_width, self.out_type = Grids(groups, axis, signed, LOWEST), per_width, out_type
        self.elements = 7.5
        rows = 1 if shared else groups
        self.scale = 0.05 + torch.rand(rows, 7, generator=generator)
        self.offset = torch.randn(rows, 7, generator=generator) if offset else None
        self.widths = torch.randint(2, 9, (groups // per_width,), generator=generator)
        self.bits = self.widths.float()
        reach = self.scale.mean() * 2.0 ** float(self.bits.mean())
        self.x = (torch.randn(shape, generator=generator) * reach).to(x_type)
        self.d = torch.randn(shape, generator=generator).to(out_type)
        self.move(device)

    def move(self, device: str) -> None:
        """Take everything there."""
        self.x, self.scale, self.widths, self.bits, self.d = (
            t.to(device) for t in (self.x, self.scale, self.widths, self.bits, self.d)
        )
        self.offset = None if self.offset is None else self.offset.to(device)

    def leaves(self) -> list[Tensor | None]:
        """x, scale, offset and bits, to be differentiated."""
        each = (self.x, self.scale, self.offset, self.bits)
        return [None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in each]

    def fused(self, function: Fused) -> list[Tensor]:
        """x_hat and the gradients of the leaves, by a fused pass."""
        x, scale, offset, bits = leaves = self.leaves()
        out = function(x, scale, offset, bits, self.widths, self.elements, self.grids, self.out_type)
        return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], self.d)]

    def torch(self, function) -> list[Tensor]:  # type: ignore[no-untyped-def]
        """The same by `function`, on what each group picks from the bank, in float32 and cast."""
        x, scale, offset, bits = leaves = self.leaves()
        groups, axis, signed, _ = self.grids
        widths = self.widths.repeat_interleave(self.per_width)
        rows = torch.zeros_like(widths) if len(self.scale) == 1 else torch.arange(groups, device=widths.device)
        picked = [None if bank is None else bank[rows, widths - LOWEST] for bank in (scale, offset)]
        high = 2 ** (widths - 1) - 1 if signed else 2**widths - 1
        factor = (self.elements * high.float()).rsqrt()
        each = bits.repeat_interleave(self.per_width)  # type: ignore[union-attr]
        out = function(x.float(), *picked, each, factor, axis, signed).to(self.out_type)  # type: ignore[union-attr]
        return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], self.d)]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal, zeros of either sign told apart, any NaN equal to any other."""
    nan = left.isnan()
    signs = (left.signbit() == right.signbit()) | nan
    return (
        left.dtype == right.dtype and torch.equal(nan, right.isnan()) and bool((((left == right) | nan) & signs).all())
    )


def check(case: Case, function: Fused) -> None:
    """Values and gradients of x as the torch formulas have them, bit for bit; sums to rounding."""
    out, grad_x, *sums = case.fused(function)
    expected, expected_grad_x, *expected_sums = case.torch(fake_quantize)
    assert out.shape == case.x.shape
    assert same_bits(out, expected)
    assert torch.equal(grad_x, expected_grad_x)
    check_sums(sums, expected_sums)


def check_sums(sums: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients of scale, offset and bits, to rounding."""
    for ours, reference in zip(sums, expected, strict=True):
        assert ours.shape == reference.shape
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()) + 1e-5)


@st.composite
def cases(
    draw: st.DrawFn, after: st.SearchStrategy[int], types: tuple[torch.dtype, ...] = TYPES, device: str = "cpu"
) -> Case:
    """Cases of (before, groups, after) elements, whose groups are one to three rows, in all kinds; `types` of x and of x_hat."""
    groups, per_width, block = (draw(st.integers(1, most)) for most in (4, 3, 3))
    signed, count = draw(st.booleans()), groups * per_width
    return Case(
        (draw(st.integers(1, 3)), count * block, draw(after)),
        count,
        1,
        signed=signed,
        offset=draw(st.booleans()) and not signed,
        shared=draw(st.booleans()),
        per_width=per_width,
        x_type=draw(st.sampled_from(types)),
        out_type=draw(st.sampled_from(types)),
        seed=draw(st.integers(0, 2**31)),
        device=device,
    )
