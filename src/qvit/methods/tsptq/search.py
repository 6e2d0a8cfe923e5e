"""The second-order guided greedy search for scales (TSPTQ-ViT, arXiv 2305.12901, OUR RECONSTRUCTION from its abstract).

Every product O = L R^T of the network is searched by itself, on float operands (`samples`), for the scales with the
smallest estimate of the loss that its quantization costs:

    objective = sum F (O - O_hat)^2,    O_hat = Q(L) Q(R)^T,    F = (dL/dO)^2

    product        L                      R
    linear layer   inputs (R, in)         weight (out, in), a scale per output channel
    q k^T          q (E, H, N, d)         k (E, H, N, d)
    attention v    attention map          v^T (E, H, d, N)

Candidates lie on a linear grid: the largest magnitude that does not clip is j / candidates * REACH of the largest there is
(per group), for two-scaled codes for every m. An operand is searched with the other one quantized, R first, then L, and so
on for `rounds` rounds. The scale in force is kept unless a candidate is better, so the objective never rises. Channels of
a weight meet different outputs, so all of them choose at once from the same products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...quantizers.fake_quantize import code_range, fake_quantize
from ...quantizers.quantizer import Quantizer
from ...quantizers.region_quantizer import RegionQuantizer

REACH = 1.2  # the coarsest candidate covers this times the largest magnitude


@dataclass(frozen=True)
class Setting:
    """What a search decides about a quantizer: scale (groups,), and m where codes have two scales (else 0)."""

    scale: Tensor
    shift: int


@dataclass(frozen=True)
class Operand:
    """Float values of one side of a product, the quantizer they meet, and its setting."""

    values: Tensor
    quantizer: Quantizer
    setting: Setting

    def quantized(self, setting: Setting) -> Tensor:
        """The values on the levels of a setting."""
        quantizer = self.quantizer
        if isinstance(quantizer, RegionQuantizer):
            return quantizer.values_with(self.values, setting.scale, setting.shift)
        bits = quantizer.per_scale(quantizer.bit_width).float()
        scale = setting.scale
        return fake_quantize(self.values, scale, None, bits, torch.ones_like(scale), quantizer.axis, quantizer.signed)

    def candidates(self, count: int) -> Iterator[Setting]:
        """`count` settings on the linear grid, for each m that the codes allow."""
        quantizer = self.quantizer
        if isinstance(quantizer, RegionQuantizer):
            reach = self.values.amax().view(1) + quantizer.depth
            choices = [
                (shift, reach / (quantizer.largest_code << shift)) for shift in range(1, quantizer.magnitude_bits + 1)
            ]
        else:
            reach = self.values.abs().reshape(quantizer.scale_groups, -1).amax(1)
            bits = quantizer.per_scale(quantizer.bit_width).float()
            choices = [(0, reach / code_range(bits, quantizer.signed)[1])]
        for shift, whole in choices:
            for step in range(1, count + 1):
                scale = whole * (REACH * step / count)
                yield Setting(torch.where(reach > 0, scale, self.setting.scale), shift)  # zeros tell nothing


@dataclass(frozen=True)
class Product:
    """O = left right^T with the importance of its elements; left has one group, right one or one per output."""

    left: Operand
    right: Operand
    importance: Tensor


@dataclass(frozen=True)
class Found:
    """The settings of both sides, and the objective at the start and with them."""

    left: Setting
    right: Setting
    start: float
    end: float


@torch.no_grad()
def search(product: Product, rounds: int, candidates: int) -> Found:
    """Alternate between the two operands; nothing is written to the quantizers."""
    left, right = product.left, product.right
    exact = left.values @ right.values.mT

    def objective(left_values: Tensor, right_values: Tensor, groups: int) -> Tensor:
        """(groups,) shares of the objective; several groups are output channels."""
        error = (left_values @ right_values.mT).sub_(exact).square_().mul_(product.importance)
        return error.sum().view(1) if groups == 1 else error.flatten(0, -2).sum(0)

    def total() -> float:
        return float(objective(left.quantized(left.setting), right.quantized(right.setting), 1))

    start = total()
    groups = right.quantizer.scale_groups
    for _ in range(rounds):
        fixed = left.quantized(left.setting)
        right = _searched(right, candidates, lambda values, fixed=fixed: objective(fixed, values, groups))  # type: ignore[misc]
        fixed = right.quantized(right.setting)
        left = _searched(left, candidates, lambda values, fixed=fixed: objective(values, fixed, 1))  # type: ignore[misc]
    return Found(left.setting, right.setting, start, total())


def _searched(operand: Operand, candidates: int, objective: Callable[[Tensor], Tensor]) -> Operand:
    """The operand with the best of its setting and the candidates, group by group."""
    best = operand.setting
    lowest = objective(operand.quantized(best))
    for setting in operand.candidates(candidates):
        value = objective(operand.quantized(setting))
        better = value < lowest
        lowest = torch.where(better, value, lowest)
        scale = torch.where(better, setting.scale, best.scale)
        best = Setting(scale, setting.shift if better.any() else best.shift)  # an m has one group, or is 0 for all
    return replace(operand, setting=best)
