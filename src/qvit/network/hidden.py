"""Groups of hidden units: an MLP divided the way that attention is divided into heads.

Problem: heads have bits of their own, the two layers of an MLP have one width each, although they are two thirds of the products
of a block. Their hidden units are far from alike: in the later blocks of a trained micro DeiT a third of them makes nearly
all of the error that quantizing the output of GELU makes, and at 2 bits the others make next to none (experiments/LOG.md).

Hidden units have no order. With P a permutation,

    fc2 GELU(fc1 x) = (fc2 P^T) GELU((P fc1) x)

so units that matter alike may be put side by side, and each of `groups` equal stretches gets bits and a scale of its own: rows
of fc1, inputs of fc2. A bit of one stretch costs 1/groups of a bit of all.

Which units matter is estimated from the float weights alone. LayerNorm hands on numbers of mean 0 and variance 1 per token,
which are taken as independent normal ones, times gamma plus beta. So the input of GELU at unit j is about normal with

    mean m_j = w_j . beta + b_j          variance s_j^2 = sum_k (w_jk gamma_k)^2

and importance_j = Var[GELU(m_j + s_j z)] |column j of fc2|^2, by quadrature over z, the variance that the unit adds to the sum behind
fc2. Rounding errors grow with the same two factors. The order is from the most important unit to the least.

Source: ours. Q-ViT (2201.07703) has groups for heads only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH, POINTS = 6.0, 241  # of the quadrature, in standard deviations


@torch.no_grad()
def sort_hidden(fc1: nn.Linear, fc2: nn.Linear, norm: nn.Module) -> None:
    """Permute the hidden units in place, the most important first: rows of fc1 (hidden, in) and columns of fc2 (out, hidden).

    norm  the LayerNorm in front of fc1; anything else is taken to hand on mean 0 and variance 1
    """
    if fc1.weight.device.type == "meta":  # a ghost has no values to go by
        return
    order = importance(fc1, fc2, norm).argsort(descending=True, stable=True)
    fc1.weight.copy_(fc1.weight[order])
    if fc1.bias is not None:
        fc1.bias.copy_(fc1.bias[order])
    fc2.weight.copy_(fc2.weight[:, order])


def importance(fc1: nn.Linear, fc2: nn.Linear, norm: nn.Module) -> Tensor:
    """The estimate of the docstring for every hidden unit: float64 (hidden,)."""
    weight = fc1.weight.double()
    mean = (
        torch.zeros(len(weight), dtype=torch.float64, device=weight.device) if fc1.bias is None else fc1.bias.double()
    )
    if isinstance(norm, nn.LayerNorm) and norm.weight is not None:
        mean = mean if norm.bias is None else mean + weight @ norm.bias.double()
        weight = weight * norm.weight.double()
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64, device=weight.device)
    share = torch.exp(-z.square() / 2)
    share /= share.sum()
    active = nn.functional.gelu(mean[:, None] + weight.square().sum(1).sqrt()[:, None] * z)
    variance = active.square() @ share - (active @ share).square()
    return variance * fc2.weight.double().square().sum(0)
