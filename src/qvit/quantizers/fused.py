"""Which fused pass fake-quantizes a tensor, where there is one: native code on a CPU, Triton on an NVIDIA GPU.

Elsewhere (other devices, other types, while torch.compile traces, a GPU where Triton is not there or cannot build a kernel, for
want of a C compiler, say) quantizers take `fake_quantize`, which gives the same values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from .fake_quantize_native import Grids, fake_quantize_native

_TYPES = (torch.float32, torch.bfloat16)
Fused = Callable[..., Tensor]  # the arguments of fake_quantize_native


def fused_pass(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Fused | None:
    """The pass that takes x and this bank and gives `dtype`, or None."""
    if x.dtype not in _TYPES or dtype not in _TYPES or scale.dtype != torch.float32 or x.device != scale.device:
        return None
    if torch.compiler.is_compiling():
        return None
    if x.is_cpu:
        return fake_quantize_native
    return _triton_pass() if x.is_cuda else None


@cache
def _triton_pass() -> Fused | None:
    """Triton is imported when a GPU needs it, and tried once: it builds kernels with what it finds on the machine."""
    if find_spec("triton") is None or torch.version.hip is not None:  # not tried on AMD's GPUs
        return None
    try:
        triton = import_module(".fake_quantize_triton", __package__).fake_quantize_triton
        try_out(triton, "cuda")
    except Exception as error:  # whatever it is, training goes on without
        warnings.warn(
            f"quantizers take PyTorch operations on this GPU, which are slower: Triton's kernels do not run here ({error})",
            stacklevel=2,
        )
        return None
    return triton


def try_out(function: Fused, device: str) -> None:
    """Take one element there and back; raises what goes wrong. The first quantizer may be met where gradients are off."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, 1, device=device, requires_grad=True)
        widths = torch.full((1,), 2, device=device)
        function(one, one, None, one[0], widths, 1.0, Grids(1, 0, True, 2), torch.float32).sum().backward()
