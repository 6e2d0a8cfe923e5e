"""A block of which one head has nearly all the say."""

from __future__ import annotations

import torch
from torch import nn

from toy_models import vit

HEADS, DIM = 4, 32


def planted(head: int) -> nn.Module:
    """One block, 4 heads of 8: `head` has four times its value rows, the others a quarter of theirs."""
    model = vit(depth=1, embed_dim=DIM, num_heads=HEADS)
    attention = model.blocks[0].attn  # type: ignore[union-attr, index]
    size = DIM // HEADS
    with torch.no_grad():
        for other in range(HEADS):
            gain = 4.0 if other == head else 0.25
            rows = slice(2 * DIM + other * size, 2 * DIM + (other + 1) * size)
            attention.qkv.weight[rows] *= gain  # type: ignore[union-attr, index]
            attention.qkv.bias[rows] *= gain  # type: ignore[union-attr, index]
    return model
