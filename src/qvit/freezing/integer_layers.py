"""What one quantizer or one quantized layer is as integers: grids, weight codes, biases. `freeze` puts them into a Program.

Offsets fold into biases. x = s c + o gives W x = s W c + o (row sums of W), so a backend multiplies codes only, and an offset
need not be a multiple of its scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import qvit_runtime.program as p

from ..network.layers import QuantConv2d, QuantLinear
from ..quantizers.fake_quantize import code_range, grouped
from ..quantizers.quantizer import Quantizer
from ..quantizers.region_quantizer import RegionQuantizer


def as_numpy(t: Tensor) -> np.ndarray:
    """float32 values of a tensor, in memory of their own: training may go on."""
    return t.detach().float().cpu().numpy().copy()


def activation_grid(quantizer: Quantizer, axis: int = 0) -> p.Grid:
    """The grid in force; `axis` is where a buffer, which has no batch axis, has the groups (0 when there is one group)."""
    scale = quantizer.scale_at(quantizer.bit_width)
    offset = quantizer.offset_at(quantizer.bit_width)
    bits = quantizer.per_scale(quantizer.bit_width).tolist()
    offsets = np.zeros(len(bits), np.float32) if offset is None else as_numpy(offset)
    return p.Grid(tuple(bits), quantizer.signed, as_numpy(scale), offsets, axis if len(bits) > 1 else 0)


def regions_grid(quantizer: RegionQuantizer, axis: int) -> p.Grid:
    """The grid of two-scaled codes: the low region, then the high one, along the last axis of the buffer."""
    low = activation_grid(quantizer)
    scale = np.concatenate([low.scale, np.ldexp(low.scale, int(quantizer.shift))])
    offset = np.concatenate([low.offset, np.zeros(1, np.float32)])
    return p.Grid((quantizer.magnitude_bits,) * 2, False, scale, offset, axis)


def integer_weight(layer: QuantLinear | QuantConv2d) -> p.Weight:
    """Codes, bits and scales of a layer's weight, flattened to (out, in).

    A group without a zero level (`midrise`) has the odd codes 2 q + 1 and half the scale.
    """
    quantizer = layer.weight_quantizer
    scale, bits = quantizer.scale_at(quantizer.bit_width), quantizer.per_scale(quantizer.bit_width)
    offset = quantizer.offset_at(quantizer.bit_width)
    raised = torch.zeros_like(bits, dtype=torch.bool) if offset is None else offset > 0
    low, high = code_range(bits.float(), signed=True)
    view = grouped(layer.weight.detach().float(), quantizer.scale_groups, quantizer.axis)
    column = (1, -1, 1)
    shifted = view if offset is None else view - offset.view(column)
    codes = torch.minimum(shifted / scale.view(column), high.view(column)).maximum(low.view(column)).round()
    codes = torch.where(raised.view(column), 2 * codes + 1, codes)
    grid = (-1, 1) if quantizer.axis == 0 else (1, -1)
    return p.Weight(
        codes=codes.reshape(layer.weight.shape[0], -1).to(torch.int8).cpu().numpy(),
        bits=bits.view(grid).cpu().numpy().astype(np.int64),
        scale=as_numpy(torch.where(raised, scale / 2, scale).view(grid)),
        midrise=raised.view(grid).cpu().numpy(),
    )


def folded_bias(layer: QuantLinear | QuantConv2d, weight: p.Weight) -> np.ndarray:
    """Bias plus the contribution of the input's offsets, one per group of columns, float32 (out,)."""
    rows = len(weight.codes)
    bias = np.zeros(rows) if layer.bias is None else as_numpy(layer.bias).astype(np.float64)
    offset = activation_grid(layer.input_quantizer).offset
    if offset.any():
        groups, scales = len(offset), weight.scale.astype(np.float64)
        blocks = max(groups, scales.shape[1])  # columns that have one offset and one weight scale
        for block, codes in enumerate(np.split(weight.codes, blocks, axis=1)):
            scale = np.repeat(scales[:, block * scales.shape[1] // blocks], rows // len(scales))
            bias = bias + float(offset[block * groups // blocks]) * (codes.sum(1, dtype=np.int64) * scale)
    return bias.astype(np.float32)
