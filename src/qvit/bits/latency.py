"""Milliseconds as a cost: a table that was measured on the machine, between its entries a smooth function of the bits.

    ms(b) = fixed + sum over products p of  mean over pairs (l, r) of groups that meet of  T_p(b_l, b_r)

T_p is the product's 7 x 7 table (`qvit_runtime.latency_table` says how it is measured and what `fixed` is). At whole
numbers it is looked up, between them it is interpolated linearly in both widths, so the gradient of a width is the
difference of two neighbouring entries. Heads that meet at different widths take the mean of their entries: a head's share
of a product is one run of the same loop, so times add up as multiply-accumulates do. 2-bit weights without a zero level are -3 .. 3 to
whoever multiplies them, and take the time of 3 bits.

How a table is made: quantize and calibrate, but do not train; freeze; save; then, on the machine that will run the model,

    qvit-runtime bench untrained.qvit --table deit_tiny.latency.json --threads 2

A table knows its products by name and size and refuses another network.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qvit_runtime.latency_table import LatencyTable, read_table

from ..spec import MAX_BITS, MIN_BITS
from .cost import BitTable, Costs

latency_table = lru_cache(read_table)  # a budget asks thousands of times; the file is read once in a process


def milliseconds(table: LatencyTable, shape: Costs, bits: BitTable) -> Tensor:
    """Milliseconds of one call at the given bits, a scalar tensor, differentiable in the bits.

    Raises LatencyError when the table was measured on another network.
    """
    flat = shape.flat(bits)
    pairs = shape.pairs.to(flat.device)
    rows = table.rows({product.right: product.macs for product in shape.products})
    tables = torch.from_numpy(table.ms[rows]).to(flat)[pairs.product]  # (pairs, 7, 7)
    hats = _hats(torch.where(shape.is_midrise.to(flat.device), flat.clamp(min=MIN_BITS + 1), flat))
    left, right = hats[pairs.left].unsqueeze(1), hats[pairs.right].unsqueeze(2)
    return table.fixed + (pairs.share * (left @ tables @ right).flatten()).sum()


def _hats(bits: Tensor) -> Tensor:
    """Weights of the seven whole widths in a linear interpolation at `bits` (n,): (n, 7), at most two of them not zero.

    At a whole number the gradient is that of the step upwards, at 8 that of the step to 8.
    """
    cell = bits.detach().floor().clamp(MIN_BITS, MAX_BITS - 1)
    position = bits - cell
    places = torch.arange(MIN_BITS, MAX_BITS + 1, device=bits.device)
    at_cell, behind = (places == cell[:, None]).to(bits), (places == cell[:, None] + 1).to(bits)
    return at_cell * (1 - position)[:, None] + behind * position[:, None]
