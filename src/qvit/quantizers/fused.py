"""Which fused pass fake-quantizes a tensor, where there is one: native code on a CPU, Triton on an NVIDIA GPU.

Elsewhere (other devices, other types, a GPU without Triton, while torch.compile traces) quantizers take `fake_quantize`, which
gives the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from .fake_quantize_native import fake_quantize_native

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
    """Triton is imported when a GPU needs it; it has no wheels for Windows and macOS."""
    if find_spec("triton") is None:
        return None
    return import_module(".fake_quantize_triton", __package__).fake_quantize_triton
