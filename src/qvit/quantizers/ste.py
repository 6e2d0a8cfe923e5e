"""Straight-through functions: the three words that quantizers are composed from, and nothing else.

round_ste(u)         forward round half to even, backward identity
clamp_ste(u, a, b)   forward clamp, backward: inside to u, at a bound to that bound (so that bits get a gradient)
scale_grad(s, g)     forward s, backward gradient times g (LSQ, arXiv 1902.08153)
"""

from __future__ import annotations

import torch
from torch import Tensor


def round_ste(u: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing happened."""
    return u + (u.round() - u).detach()


def clamp_ste(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp between broadcastable tensors; u, low and high each get the gradient of the elements they decide."""
    return torch.maximum(torch.minimum(u, high), low)


def scale_grad(s: Tensor, factor: Tensor) -> Tensor:
    """s unchanged, its gradient multiplied by `factor`."""
    scaled = s * factor
    return s.detach() + (scaled - scaled.detach())  # s + 0: not one bit of s changes
