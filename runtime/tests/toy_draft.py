"""Draft: a Program under construction, with a few images running through it as it grows.

A random network needs scales that fit its random activations: with arbitrary ones every code is 0 or every code
clips, and two backends agree on nothing at all. So a draft runs each op through the interpreter when it is emitted, and
a Quantize op reads its scale off the values in front of it:

  signed               step of the best uniform quantizer of a Gaussian (Max, 1960) times the standard deviation
  unsigned             the 99.5th percentile is the largest code            (attention maps)
  unsigned + offset    the smallest value is code 0, the largest value the largest code            (behind GELU)

`toy_programs` uses it to write down whole networks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qvit_runtime import program as p
from qvit_runtime.interpreter import EXECUTE

Widths = int | tuple[int, ...]  # one width for everything, or the widths to draw from at random

MIXED: Widths = (2, 3, 4, 5, 6, 7, 8)
GAUSSIAN_STEP = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}


class Draft:
    """Emit ops with `emit` and its short forms; each returns the name of the buffer it wrote. `finish` gives the Program."""

    def __init__(
        self, name: str, image: tuple[int, int, int], seed: int, images: int = 2, midrise: float = 0.0
    ) -> None:
        """`midrise` is the share of weight blocks of less than 8 bits that are mid-rise, drawn at random."""
        self.midrise = midrise
        self.rng = np.random.default_rng(seed)
        self.ops: list[p.Op] = []
        preprocess = p.Preprocess(size=image[1:], crop=0.9)
        self.program = p.Program(name, "image", "", (), {}, {}, {}, preprocess)
        self.program.buffers["image"] = p.Buffer("image", image)
        self.live = {"image": self.rng.standard_normal((images, *image)).astype(np.float32)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.program.buffers[name].shape

    def emit(self, op: p.Op, shape: tuple[int, ...], grid: p.Grid | None = None) -> str:
        self.ops.append(op)
        self.program.buffers[op.output] = p.Buffer(op.output, shape, grid)
        output = EXECUTE[type(op)](self.program, op, self.live)
        self.live[op.output] = output.reshape(len(output), *shape)
        return op.output

    def constant(self, name: str, array: np.ndarray) -> str:
        self.program.constants[name] = np.ascontiguousarray(array, np.float32)
        return name

    def widths(self, choice: Widths, count: int) -> tuple[int, ...]:
        choices = (choice,) if isinstance(choice, int) else choice
        return tuple(int(b) for b in self.rng.choice(choices, count))

    # Quantizers.

    def quantize(self, name: str, source: str, bits: tuple[int, ...], axis: int = 0) -> str:
        """Signed codes of `source`, one group per width along `axis`."""
        scale = [GAUSSIAN_STEP[b] * (values.std() + 1e-3) for b, values in self._groups(source, bits, axis)]
        return self._quantize(name, source, bits, axis, True, scale, [0.0] * len(bits))

    def quantize_attention(self, name: str, source: str, bits: tuple[int, ...], axis: int) -> str:
        """Unsigned codes without an offset, per head."""
        scale = [np.quantile(values, 0.995) / (2**b - 1) for b, values in self._groups(source, bits, axis)]
        return self._quantize(name, source, bits, axis, False, scale, [0.0] * len(bits))

    def quantize_gelu(self, name: str, source: str, bits: int) -> str:
        """Unsigned codes with an offset: GELU is bounded below by -0.17."""
        low, high = float(self.live[source].min()), float(self.live[source].max())
        scale = (high - low) / (2**bits - 1)
        return self._quantize(name, source, (bits,), 0, False, [scale], [low])

    def _groups(self, source: str, bits: tuple[int, ...], axis: int) -> list[tuple[int, np.ndarray]]:
        return list(zip(bits, np.split(self.live[source], len(bits), axis + 1), strict=True))

    def _quantize(
        self, name: str, source: str, bits: tuple[int, ...], axis: int, signed: bool, scale: list, offset: list
    ) -> str:
        grid = p.Grid(bits, signed, np.array(scale, np.float32), np.array(offset, np.float32), axis)
        return self.emit(p.Quantize(source, name), self.shape(source), grid)

    # Ops with parameters.

    def weight(self, name: str, bits: np.ndarray, out_features: int, in_features: int, gain: float = 1.0) -> str:
        """Random weights with standard deviation gain / sqrt(in), quantized block by block; bits (rows, columns)."""
        rows, columns = bits.shape
        spread = gain / np.sqrt(in_features)
        scale = np.vectorize(GAUSSIAN_STEP.__getitem__)(bits) * spread
        scale = (scale * self.rng.uniform(0.9, 1.1, bits.shape)).astype(np.float32)
        values = spread * self.rng.standard_normal((out_features, in_features))
        block = np.ones((out_features // rows, in_features // columns))
        top = np.kron(2 ** (bits - 1), block)
        steps = values / np.kron(scale, block)
        codes = np.rint(np.clip(steps, -top, top - 1))
        midrise = np.zeros(bits.shape, np.bool_)
        if self.midrise:
            midrise = (self.rng.random(bits.shape) < self.midrise) & (bits <= p.MAX_MIDRISE_BITS)
            odd_codes = 2 * np.floor(np.clip(steps, -top, np.nextafter(top, 0))) + 1
            codes = np.where(np.kron(midrise, block), odd_codes, codes)
            scale = np.where(midrise, scale / 2, scale)
        self.program.weights[name] = p.Weight(codes.astype(np.int8), bits.astype(np.int64), scale, midrise)
        return name

    def linear(self, name: str, source: str, bits: np.ndarray, out_features: int, gain: float = 1.0) -> str:
        """codes (..., in) -> values (..., out); an offset of the input is folded into the bias."""
        *lead, in_features = self.shape(source)
        self.weight(f"{name}.weight", bits, out_features, in_features, gain)
        bias = self.constant(f"{name}.bias", 0.1 * self.rng.standard_normal(out_features) + self._fold(name, source))
        return self.emit(p.Linear(source, name, f"{name}.weight", bias), (*lead, out_features))

    def _fold(self, name: str, source: str) -> np.ndarray:
        """What the input's offset adds to each output: sum over the inputs of offset * scale_w * code_w."""
        weight, grid = self.program.weights[f"{name}.weight"], self.program.buffers[source].grid
        assert grid is not None
        out_features, in_features = weight.codes.shape
        rows, columns = weight.scale.shape
        scale = np.kron(weight.scale, np.ones((out_features // rows, in_features // columns)))
        offset = np.repeat(grid.offset.astype(np.float64), in_features // grid.groups)
        return (weight.codes * scale) @ offset

    def layer_norm(self, name: str, source: str) -> str:
        channels = self.shape(source)[-1]
        weight = self.constant(f"{name}.weight", 1 + 0.1 * self.rng.standard_normal(channels))
        bias = self.constant(f"{name}.bias", 0.1 * self.rng.standard_normal(channels))
        return self.emit(p.LayerNorm(source, name, weight, bias, 1e-6), self.shape(source))

    def multiply(self, name: str, source: str, factor: np.ndarray) -> str:
        return self.emit(p.Multiply(source, name, self.constant(f"{name}.factor", factor)), self.shape(source))

    def add(self, name: str, left: str, right: str) -> str:
        return self.emit(p.Add(left, right, name), self.shape(left))

    def finish(self, output: str) -> p.Program:
        return replace(self.program, output=output, ops=tuple(self.ops))
