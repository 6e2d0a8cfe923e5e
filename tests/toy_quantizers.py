"""A quantizer of some heads, with or without scales, and values for it."""

from __future__ import annotations

import torch
from torch import Tensor

from qvit.quantizers.quantizer import Quantizer
from qvit.spec import Bits, LearnedBits, ScaleBank, SwitchableScale

HEADS = 4


def make(
    bits: Bits = LearnedBits(2, 8),  # noqa: B008 (a frozen value)
    groups: int = HEADS,
    scale_groups: int = 0,
    *,
    axis: int = 1,
    signed: bool = True,
    offset: bool = False,
    bank: ScaleBank = SwitchableScale(),  # noqa: B008
    batched: bool = True,
) -> Quantizer:
    return Quantizer(
        bits,
        bit_groups=groups,
        scale_groups=scale_groups or groups,
        axis=axis,
        signed=signed,
        offset=offset,
        bank=bank,
        batched=batched,
    )


def filled(quantizer: Quantizer, seed: int = 0) -> Quantizer:
    """Calibrated with random scales that differ in every slot and group."""
    generator = torch.Generator().manual_seed(seed)
    slots = quantizer.log_scale.shape[1]
    scale = 0.05 + torch.rand(quantizer.scale_groups, slots, generator=generator)
    quantizer.set_bank(scale, torch.rand(scale.shape, generator=generator) if quantizer.offset is not None else None)
    return quantizer


def heads_tensor(batch: int = 2) -> Tensor:
    return torch.randn(batch, HEADS, 5, 3, generator=torch.Generator().manual_seed(batch))
