"""The integer network as a Program: `Emission` gives every operation of `arithmetic` its ops over named buffers.

What travels is `Coded`: the name of a buffer, and the float64 scale of its codes, from which the multipliers are derived by
the functions that the simulation uses (`numbers`). A buffer is called like the grid that it is on
("blocks.0.attn.q"); sums are called after the layer or grid that they belong to, with ".sums"; what is only moved about has
its source's name and a suffix. Grids of a Program have float32 scales; only Quantize and Dequantize compute with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import qvit_runtime.integer_ops as i
import qvit_runtime.program as p

from .arithmetic import Factor, Pair
from .layers import Grid, LayerNorm, Linear
from .numbers import (
    SHIFT_GELU_FRACTION,
    constant_codes,
    dyadic,
    layer_norm_numbers,
    linear_numbers,
    shiftmax_fraction,
)

SUM_BITS = 32


@dataclass(frozen=True)
class Coded:
    """A buffer of codes; scale float64, one number or one per group of the buffer's grid."""

    name: str
    scale: Tensor


def _int32(codes: Tensor) -> np.ndarray:
    return codes.detach().long().cpu().numpy().astype(np.int32)


def _program_grid(bits: int, scale: Tensor, axis: int, signed: bool = True) -> p.Grid:
    """One group, or one per entry of `scale` along `axis`."""
    scales = scale.detach().float().reshape(-1).cpu().numpy()
    groups = len(scales)
    return p.Grid((bits,) * groups, signed, scales, np.zeros(groups, np.float32), axis if groups > 1 else 0)


class Emission:
    """A program under construction."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.ops: list[p.Op] = []
        self.buffers: dict[str, p.Buffer] = {"image": p.Buffer("image", image_shape)}
        self.weights: dict[str, p.Weight] = {}
        self.integers: dict[str, np.ndarray] = {}

    # -- bricks ---------------------------------------------------------------------------------------------------------

    def emit(self, op: p.Op, shape: tuple[int, ...], grid: p.Grid | None) -> str:
        """Append an op and the buffer that it writes; returns the buffer's name."""
        self.ops.append(op)
        self.buffers[op.output] = p.Buffer(op.output, shape, grid)
        return op.output

    def shape(self, x: Coded) -> tuple[int, ...]:
        """Shape of a buffer, without the batch axis."""
        return self.buffers[x.name].shape

    def integer(self, name: str, codes: Tensor) -> str:
        """Store int32 numbers under a name."""
        self.integers[name] = _int32(codes)
        return name

    def rescaling(self, name: str, x: Coded, factor: Factor, scale: Tensor) -> tuple[str, str]:
        """Store the multiplier and the shift that take factor * x to `scale`; their names."""
        multiplier, shift = dyadic(torch.atleast_1d(x.scale * factor / scale))
        return self.integer(f"{name}.multiplier", multiplier), self.integer(f"{name}.shift", shift)

    def on(self, grid: Grid, op: p.Op, shape: tuple[int, ...]) -> Coded:
        """Emit an op whose output is on a grid."""
        scale = grid.scale.double()
        return Coded(self.emit(op, shape, _program_grid(grid.bits, scale, 0, grid.signed)), scale)

    def sums(self, op: p.Op, shape: tuple[int, ...], scale: Tensor) -> Coded:
        """Emit an op whose output is 32 bits wide, one scale or one per channel."""
        return Coded(self.emit(op, shape, _program_grid(SUM_BITS, scale, len(shape) - 1)), scale)

    def moved(self, op: p.Op, x: Coded, shape: tuple[int, ...]) -> Coded:
        """Emit an op that moves codes about; groups stay on the last axis."""
        grid = self.buffers[x.name].grid
        assert grid is not None
        return Coded(self.emit(op, shape, _program_grid(grid.bits[0], x.scale, len(shape) - 1, grid.signed)), x.scale)

    # -- ends -----------------------------------------------------------------------------------------------------------

    def quantize(self, grid: Grid) -> Coded:
        """The input image in codes."""
        return self.on(grid, p.Quantize("image", self.names[grid]), self.buffers["image"].shape)

    def dequantize(self, x: Coded) -> str:
        """The output in values."""
        return self.emit(i.Dequantize(x.name, "output"), self.shape(x), None)

    # -- the operations of the network ----------------------------------------------------------------------------------

    def patches(self, image: Coded, patch: int, as_grid: bool) -> Coded:
        channels, height, width = self.shape(image)
        rows, cols = height // patch, width // patch
        lead = (rows, cols) if as_grid else (rows * cols,)
        op = p.Patchify(image.name, f"{image.name}.patches", patch)
        return self.moved(op, image, (*lead, channels * patch**2))

    def linear(self, x: Coded, layer: Linear) -> Coded:
        name = self.names[layer]
        numbers = linear_numbers(layer.matrix, layer.bias, layer.bits, x.scale)
        codes = numbers.weight.detach().to(torch.int8).cpu().numpy()
        self.weights[f"{name}.weight"] = p.Weight(
            codes, np.full((len(codes), 1), layer.bits), numbers.scale.float()[:, None].cpu().numpy()
        )
        bias = "" if numbers.bias is None else self.integer(f"{name}.bias", numbers.bias)
        op = i.LinearAccumulate(x.name, f"{name}.sums", f"{name}.weight", bias)
        return self.sums(op, (*self.shape(x)[:-1], len(codes)), x.scale * numbers.scale)

    def requantize(self, x: Coded, grid: Grid) -> Coded:
        return self._onto(x, grid, 1.0)

    def _onto(self, x: Coded, grid: Grid, factor: float, suffix: str = "") -> Coded:
        name = self.names[grid] + suffix
        rescaling = self.rescaling(name, x, factor, grid.scale.double())
        return self.on(grid, i.Requantize(x.name, name, *rescaling), self.shape(x))

    def split_heads(self, x: Coded, grids: tuple[Grid, Grid, Grid], heads: int) -> tuple[Coded, Coded, Coded]:
        *lead, tokens, width = self.shape(x)
        scales = torch.stack([grid.scale.double() for grid in grids])
        name = x.name.removesuffix(".sums")
        rescaling = self.rescaling(name, x, 1.0, scales.repeat_interleave(width // 3))
        fused = self.emit(
            i.Requantize(x.name, f"{name}.codes", *rescaling),
            self.shape(x),
            _program_grid(grids[0].bits, scales, len(lead) + 1),
        )
        per_head = (*lead, heads, tokens, width // 3 // heads)
        q, k, v = (
            self.on(grid, p.SplitHeads(fused, self.names[grid], part, 3), per_head) for part, grid in enumerate(grids)
        )
        return q, k, v

    def query_key(self, q: Coded, k: Coded, grid: Grid, factor: float) -> Coded:
        shape = (*self.shape(q)[:-1], self.shape(k)[-2])
        op = i.QueryKeyAccumulate(q.name, k.name, f"{self.names[grid]}.sums")
        return self._onto(self.sums(op, shape, q.scale * k.scale), grid, factor)

    def softmax(self, x: Coded, scores: Grid, output: Grid, bias: Tensor | None, mask: Tensor | None) -> Coded:
        name, unit = self.names[output], scores.unit
        names = {
            kind: "" if values is None else self.integer(f"{name}.{kind}", constant_codes(values, x.scale))
            for kind, values in (("bias", bias), ("mask", mask))
        }
        op = i.Shiftmax(x.name, name, unit, shiftmax_fraction(unit, self.shape(x)[-1]), names["bias"], names["mask"])
        return self.on(output, op, self.shape(x))

    def attention_value(self, attention: Coded, v: Coded, grid: Grid) -> Coded:
        *lead, heads, tokens, dim = self.shape(v)
        op = i.AttentionValueAccumulate(attention.name, v.name, f"{self.names[grid]}.sums")
        per_head = self._onto(self.sums(op, self.shape(v), attention.scale * v.scale), grid, 1.0, ".heads")
        return self.moved(p.MergeHeads(per_head.name, self.names[grid]), per_head, (*lead, tokens, heads * dim))

    def layer_norm(self, x: Coded, norm: LayerNorm) -> Coded:
        name = self.names[norm.output]
        multiplier, bias, shift = layer_norm_numbers(*norm.parameters_or_defaults(), norm.output.scale.double())
        op = i.IntegerLayerNorm(
            x.name,
            name,
            self.integer(f"{name}.multiplier", multiplier),
            self.integer(f"{name}.bias", bias),
            shift,
        )
        return self.on(norm.output, op, self.shape(x))

    def gelu(self, x: Coded, grid: Grid) -> Coded:
        op = i.ShiftGelu(x.name, f"{x.name}.gelu", grid.unit, SHIFT_GELU_FRACTION)
        return self.sums(op, self.shape(x), x.scale / 256)

    def add(self, left: Coded, right: Coded, grid: Grid, factors: tuple[Factor, Factor]) -> Coded:
        name, scale = self.names[grid], grid.scale.double()
        rescaling = (
            *self.rescaling(f"{name}.left", left, factors[0], scale),
            *self.rescaling(f"{name}.right", right, factors[1], scale),
        )
        return self.on(grid, i.AddRequantize(left.name, right.name, name, *rescaling), self.shape(left))

    def tokens(self, x: Coded, prefix: Tensor, position: Tensor, grid: Grid) -> Coded:
        name, scale = self.names[grid], grid.scale.double()
        op = i.IntegerTokens(
            x.name,
            name,
            self.integer(f"{name}.prefix", constant_codes(prefix, scale).clamp(grid.qmin, grid.qmax)),
            self.integer(f"{name}.position", constant_codes(position, scale)),
            *self.rescaling(name, x, 1.0, scale),
        )
        count, width = self.shape(x)
        return self.on(grid, op, (len(prefix) + count, width))

    def select_token(self, x: Coded, index: int) -> Coded:
        return self.moved(p.SelectToken(x.name, f"{x.name}.token{index}", index), x, self.shape(x)[-1:])

    def mean_tokens(self, x: Coded, start: int, grid: Grid) -> Coded:
        *tokens, width = self.shape(x)
        count = int(np.prod(tokens)) - start
        total = self.sums(i.SumTokens(x.name, f"{self.names[grid]}.sums", start), (width,), x.scale)
        return self._onto(total, grid, 1 / count)

    def window_partition(self, x: Coded, window: Pair, shift: Pair) -> Coded:
        rows, cols, width = self.shape(x)
        count = -(-rows // window[0]) * -(-cols // window[1])
        op = p.WindowPartition(x.name, f"{x.name}.windows", window, shift)
        return self.moved(op, x, (count, window[0] * window[1], width))

    def window_merge(self, x: Coded, window: Pair, shift: Pair, size: Pair) -> Coded:
        return self.moved(p.WindowMerge(x.name, f"{x.name}.merged", window, shift), x, (*size, self.shape(x)[-1]))

    def patch_merge(self, x: Coded) -> Coded:
        rows, cols, width = self.shape(x)
        op = p.PatchMerge(x.name, f"{x.name}.merged")
        return self.moved(op, x, ((rows + 1) // 2, (cols + 1) // 2, 4 * width))
