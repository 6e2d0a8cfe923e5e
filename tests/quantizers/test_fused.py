"""Which tensors the fused passes take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import pytest
import torch

from qvit.quantizers import fused
from qvit.quantizers.fake_quantize_native import fake_quantize_native
from qvit.quantizers.fused import fused_pass


def test_what_the_native_pass_takes() -> None:
    x, scale, wide = torch.zeros(2), torch.ones(1, 1), torch.float32
    assert fused_pass(x, scale, wide) is fake_quantize_native
    assert fused_pass(x.bfloat16(), scale, torch.bfloat16) is fake_quantize_native
    for other in (x.double(), x.half(), x.to("meta")):
        assert fused_pass(other, scale, wide) is None
    for other in (scale.bfloat16(), scale.to("meta")):
        assert fused_pass(x, other, wide) is None
    assert fused_pass(x, scale, torch.float16) is None


@pytest.mark.parametrize("there", [False, True])
def test_without_kernels_a_gpu_takes_the_formulas(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Triton may be absent, and said to be there on a machine where nothing can be launched: here, for want of a GPU."""
    monkeypatch.setattr(fused, "find_spec", lambda _: object() if there else None)
    monkeypatch.setattr(fused, "import_module", broken)
    context = (
        pytest.warns(UserWarning, match=r"PyTorch operations on this GPU.*\(no C compiler\)")
        if there
        else nullcontext()
    )
    with context:
        assert fused._triton_pass.__wrapped__() is None


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_pass_is_tried_out_whatever_the_mode(mode: Callable[[], AbstractContextManager]) -> None:
    with mode():
        fused.try_out(fake_quantize_native, "cpu")
    with mode(), pytest.raises(RuntimeError, match="no C compiler"):
        fused.try_out(broken, "cpu")


def broken(*_: object) -> NoReturn:
    raise RuntimeError("no C compiler")


def test_none_where_the_formulas_are_compiled() -> None:
    compiled = torch.compile(lambda x, scale: fused_pass(x, scale, torch.float32) is None, backend="eager")
    assert compiled(torch.zeros(2), torch.ones(1, 1))
