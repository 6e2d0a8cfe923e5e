"""IntegerDraft: a `Draft` whose ops are integer-only; scales come from the codes that run through it, as in `toy_draft`.

Every short form takes the name of a buffer of codes and returns the name of the buffer it wrote. What a scale is for:
between the first Quantize and the last Dequantize it only decides multipliers, shifts and units, as in a real `freeze`.
"""

from __future__ import annotations

import numpy as np

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime.integer import expand_groups
from qvit_runtime.integer_shift import dyadic
from toy_draft import Draft

GELU_FRACTION, SOFTMAX_FRACTION = 14, 12


def make_grid(bits: int | tuple[int, ...], signed: bool, scale: object, axis: int = 0, offset: object = 0.0) -> p.Grid:
    """A grid from plain numbers; one width serves all groups, one offset too."""
    scale = np.atleast_1d(np.asarray(scale, np.float32))
    widths = (bits,) * len(scale) if isinstance(bits, int) else bits
    return p.Grid(widths, signed, scale, np.full(len(scale), offset, np.float32), axis)


class IntegerDraft(Draft):
    def integers(self, name: str, array: object) -> str:
        self.program.integers[name] = np.ascontiguousarray(array, np.int32)
        return name

    def grid(self, name: str) -> p.Grid:
        grid = self.program.buffers[name].grid
        assert grid is not None
        return grid

    def values(self, name: str) -> np.ndarray:
        """What the codes of a buffer stand for, float64 (batch, ...)."""
        codes, grid = self.live[name], self.grid(name)
        scale = expand_groups(grid.scale.astype(np.float64), codes.shape, grid.axis + 1)
        return codes * scale + expand_groups(grid.offset, codes.shape, grid.axis + 1)

    def fitting_scale(self, name: str, bits: int, groups: int = 1, axis: int = 0) -> np.ndarray:
        """(groups,): 99.9 % of the values in front fit a signed grid of these bits."""
        parts = np.split(self.values(name), groups, axis + 1)
        return np.array([np.quantile(np.abs(part), 0.999) / 2.0 ** (bits - 1) + 1e-6 for part in parts])

    def factor(self, name: str, ratio: object) -> tuple[str, str]:
        multiplier, shift = dyadic(np.asarray(ratio))
        return self.integers(f"{name}.multiplier", multiplier), self.integers(f"{name}.shift", shift)

    # Products.

    def accumulate(self, name: str, source: str, bits: np.ndarray, out_features: int, gain: float = 1.0) -> str:
        """LinearAccumulate; bits (rows, 1), one row per output or one for all."""
        *lead, in_features = self.shape(source)
        self.weight(f"{name}.weight", bits, out_features, in_features, gain)
        scale = self.program.weights[f"{name}.weight"].scale[:, 0] * self.grid(source).scale[0]
        bias = 0.1 * self.rng.standard_normal(out_features) / np.repeat(scale, out_features // len(scale))
        op = i.LinearAccumulate(source, name, f"{name}.weight", self.integers(f"{name}.bias", np.rint(bias)))
        return self.emit(op, (*lead, out_features), make_grid(32, True, scale, len(lead)))

    def query_key(self, name: str, query: str, key: str) -> str:
        *lead, tokens, dim = self.shape(query)
        scale = self.grid(query).scale * self.grid(key).scale / np.sqrt(dim)
        grid = make_grid(32, True, scale, len(lead) - 1)
        return self.emit(i.QueryKeyAccumulate(query, key, name), (*lead, tokens, tokens), grid)

    def attention_value(self, name: str, attention: str, value: str) -> str:
        shape = self.shape(value)
        grid = make_grid(32, True, self.grid(attention).scale * self.grid(value).scale, len(shape) - 3)
        return self.emit(i.AttentionValueAccumulate(attention, value, name), shape, grid)

    # Rescaling.

    def requantize(self, name: str, source: str, bits: int, groups: int = 1) -> str:
        """One group, or several along the last axis; the input's groups then lie along it too, or are one."""
        axis = len(self.shape(source)) - 1 if groups > 1 else 0
        scale = self.fitting_scale(source, bits, groups, axis)
        inner = self.grid(source).scale
        if groups > 1:
            inner = np.repeat(inner, self.shape(source)[-1] // len(inner))
        ratio = inner / np.repeat(scale, len(inner) // groups)
        op = i.Requantize(source, name, *self.factor(name, ratio))
        return self.emit(op, self.shape(source), make_grid(bits, True, scale, axis))

    def add_requantize(self, name: str, left: str, right: str, bits: int = 16) -> str:
        top = np.abs(self.values(left) + self.values(right)).max()
        grid = make_grid(bits, True, top * 1.1 / 2.0 ** (bits - 1))
        factors = [
            self.factor(f"{name}.{side}", self.grid(source).scale / grid.scale)
            for side, source in zip(("left", "right"), (left, right), strict=True)
        ]
        return self.emit(i.AddRequantize(left, right, name, *factors[0], *factors[1]), self.shape(left), grid)

    def tokens(self, name: str, source: str, prefix: np.ndarray, position: np.ndarray) -> str:
        """IntegerTokens into a 16-bit stream; prefix (P, C) and position (N, C) are values."""
        top = max(np.abs(self.values(source)).max() + np.abs(position).max(), np.abs(prefix).max())
        grid = make_grid(16, True, 1.1 * top / 2.0**15)
        count, channels = self.shape(source)
        arrays = [
            self.integers(f"{name}.{field}", np.rint(array / grid.scale[0]))
            for field, array in (("prefix", prefix), ("position", position))
        ]
        op = i.IntegerTokens(source, name, *arrays, *self.factor(name, self.grid(source).scale / grid.scale))
        return self.emit(op, (len(prefix) + count, channels), grid)

    # Functions.

    def integer_norm(self, name: str, source: str, grid: p.Grid, exponent: str = "", zero: int = 0) -> str:
        """IntegerLayerNorm with gamma near 1 and beta near 0 (values)."""
        channels = self.shape(source)[-1]
        gamma = 1 + 0.1 * self.rng.standard_normal(channels)
        beta = 0.1 * self.rng.standard_normal(channels)
        factor = gamma * np.sqrt(channels) / grid.scale[0]
        shift = min(62, 60 - int(np.floor(np.log2(np.abs(factor).max()))))
        multiplier = self.integers(f"{name}.multiplier", np.rint(factor * 2.0 ** (shift - 30)))
        bias = self.integers(f"{name}.bias", np.rint(256 * (beta - grid.offset[0]) / grid.scale[0]))
        op = i.IntegerLayerNorm(source, name, multiplier, bias, shift, exponent, zero)
        return self.emit(op, self.shape(source), grid)

    def shift_gelu(self, name: str, source: str) -> str:
        scale = float(self.grid(source).scale[0])
        op = i.ShiftGelu(source, name, int(np.ceil(1 / (1.702 * scale))), GELU_FRACTION)
        return self.emit(op, self.shape(source), make_grid(32, True, scale / 256))

    def shiftmax(self, name: str, source: str, bits: int = 8, bias: str = "", mask: str = "") -> str:
        unit = int(np.ceil(1 / float(self.grid(source).scale[0])))
        op = i.Shiftmax(source, name, unit, SOFTMAX_FRACTION, bias, mask)
        return self.emit(op, self.shape(source), make_grid(bits, False, 2.0**-bits))

    def log_softmax(self, name: str, source: str, bits: int, bias: str = "") -> str:
        scale = float(self.grid(source).scale[0])
        ln2, linear = int(np.ceil(np.log(2) / scale)), int(0.96963238 / 0.35815147 / scale)
        op = i.LogIntSoftmax(source, name, ln2, linear, int(1 / 0.35815147 / scale**2), bias)
        return self.emit(op, self.shape(source), make_grid(bits, False, 1.0))

    # Moves.

    def split_heads(self, name: str, source: str, part: int, parts: int, heads: int) -> str:
        *lead, tokens, channels = self.shape(source)
        grid = self.grid(source)
        scale = grid.scale if grid.groups == 1 else np.split(grid.scale, parts)[part]
        shape = (*lead, heads, tokens, channels // (parts * heads))
        return self.emit(
            p.SplitHeads(source, name, part, parts), shape, make_grid(grid.bits[0], True, scale, len(lead))
        )

    def merge_heads(self, name: str, source: str) -> str:
        *lead, heads, tokens, dim = self.shape(source)
        grid = self.grid(source)
        moved = make_grid(grid.bits, grid.signed, grid.scale, len(lead) + 1)
        return self.emit(p.MergeHeads(source, name), (*lead, tokens, heads * dim), moved)

    def dequantize(self, name: str, source: str) -> str:
        return self.emit(i.Dequantize(source, name), self.shape(source))
