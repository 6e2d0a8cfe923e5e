"""The three straight-through words: exact values forward, the stated gradient backward."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.quantizers.ste import clamp_ste, round_ste, scale_grad

FINITE = st.floats(-1e6, 1e6, width=32)


@given(FINITE)
def test_round_ste(value: float) -> None:
    u = torch.tensor(value, requires_grad=True)
    rounded = round_ste(u)
    rounded.backward()
    assert rounded.item() == float(torch.tensor(value).round())
    assert u.grad == 1


@given(FINITE, st.floats(2.0**-20, 1024, width=32))
def test_scale_grad(value: float, factor: float) -> None:
    s, g = torch.tensor(value, requires_grad=True), torch.tensor(factor)
    same = scale_grad(s, g)
    same.backward()
    assert same.item() == s.item()
    assert s.grad == g


def test_clamp_ste_sends_the_gradient_to_what_decided() -> None:
    u = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    low, high = torch.tensor(-2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    clamped = clamp_ste(u, low, high)
    assert clamped.tolist() == [-2.0, torch.tensor(0.3).item(), 1.0]
    clamped.backward(torch.tensor([10.0, 20.0, 30.0]))
    assert u.grad.tolist() == [0.0, 20.0, 0.0]  # type: ignore[union-attr]
    assert low.grad == 10
    assert high.grad == 30
