"""Engine: a Program run by the native code, on float32 images.

The C++ side knows buffers, weights, constants and integers by number and parses nothing; this file does the numbering. The
extension is imported on first use, so that everything else in the package works where it is not built.

  engine = Engine(program, threads=2)
  logits = engine(images)          float32 (batch, 3, H, W) -> float32 (batch, classes)

An engine may be called from several Python threads at once; the GIL is released while it works. Results do not depend
on the number of threads, on the batch size, or on where in the batch an image stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from . import integer_ops as i
from . import program as p
from .interpreter import inputs_of

Parameters = tuple[list[int], list[int], list[float]]  # tensors, integers, reals: see native/program.h


@dataclass(frozen=True)
class StepTime:
    """How long one step took: one or several fused ops.

    name     the ops it is made of, "Linear+Gelu+Quantize"
    ops      their positions in the program
    seconds  summed over the threads that worked on it
    """

    name: str
    ops: tuple[int, ...]
    seconds: float


def native() -> ModuleType:
    """The extension. Raises ImportError with what to do when it is not built."""
    try:
        return import_module("qvit_runtime._native")
    except ImportError as error:
        raise ImportError(
            f"the native engine of qvit_runtime is not built ({error}); reinstall qvit-runtime with a C++20 compiler, "
            "or use qvit_runtime.run, the slow interpreter"
        ) from error


def kernel_paths() -> dict[str, tuple[bool, bool]]:
    """{name: (built, supported by this processor)}, best first. QVIT_CPU chooses one by name."""
    return dict(native().paths())


class Engine:
    """A program, packed and planned for this processor.

    threads  how many threads work on one call, the calling one included
    path     kernel path by name; the default asks the environment variable QVIT_CPU, then takes the best
    fuse     False runs every op as a step of its own: slower, for tests and for looking inside
    """

    def __init__(self, program: p.Program, threads: int = 2, path: str = "", fuse: bool = True) -> None:
        self.program = program
        self._runner = Runner(program, program.ops, (program.input,), (program.output,), threads, path, fuse)
        self._shape = program.buffers[program.input].shape

    @property
    def path(self) -> str:
        """The kernel path in use, one of `kernel_paths`."""
        return self._runner.path

    @property
    def threads(self) -> int:
        return self._runner.threads

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Normalised images, float32 (batch, *input shape) -> float32 (batch, *output shape).

        Images of another type, order or alignment are copied; those that may only be read are used where they are.
        Raises ValueError for another shape, and on the first call where this process may not start so many threads;
        FloatingPointError for NaN, which has no code.
        """
        return self._runner([self._checked(images)])[0]

    def profile(self, images: np.ndarray) -> list[StepTime]:
        """Run once and say where the time went, step by step."""
        return self._runner.profile([self._checked(images)])

    def _checked(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != len(self._shape) + 1 or images.shape[1:] != self._shape:
            expected = ", ".join(map(str, self._shape))
            raise ValueError(f"images have shape {images.shape}; the program takes (batch, {expected})")
        images = np.require(images, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
        if images.size and np.isnan(images.min()):  # the minimum of anything with a NaN is NaN, and quick to find
            raise FloatingPointError("NaN cannot be quantized: the images are not finite")
        return images


class Runner:
    """Any run of consecutive ops of a program, with any of its buffers as inputs and outputs: what tests slice.

    Values are float32, codes int16, wide codes int32, all with a leading batch axis.
    """

    def __init__(
        self,
        program: p.Program,
        ops: Sequence[p.Op],
        inputs: Sequence[str],
        outputs: Sequence[str],
        threads: int,
        path: str,
        fuse: bool,
    ) -> None:
        module = native()
        numbering = _Numbering(module.Builder(), program)
        first = [numbering.buffer(name) for name in inputs]
        for op in ops:
            numbering.op(op)
        last = [numbering.buffer(name) for name in outputs]
        self._engine = module.Engine(numbering.builder, first, last, threads, path, fuse)
        self._outputs = [program.buffers[name] for name in outputs]

    @property
    def path(self) -> str:
        return str(self._engine.path)

    @property
    def threads(self) -> int:
        return int(self._engine.threads)

    @property
    def steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, positions of its ops) of every step, in order of execution."""
        return [(name, tuple(ops)) for name, ops in self._engine.steps]

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = self._empty(len(arrays[0]))
        self._engine.run(len(arrays[0]), list(arrays), outputs)
        return outputs

    def profile(self, arrays: Sequence[np.ndarray]) -> list[StepTime]:
        times = self._engine.profile(len(arrays[0]), list(arrays), self._empty(len(arrays[0])))
        return [StepTime(name, tuple(ops), seconds) for name, ops, seconds in times]

    def _empty(self, batch: int) -> list[np.ndarray]:
        return [np.empty((batch, *b.shape), _dtype(b)) for b in self._outputs]


class _Numbering:
    """Names to numbers, each buffer, weight and array handed over once, when an op first names it."""

    def __init__(self, builder: Any, program: p.Program) -> None:
        self.builder = builder
        self._program = program
        self._numbers: dict[tuple[str, str], int] = {}

    def buffer(self, name: str) -> int:
        key = ("buffer", name)
        if key not in self._numbers:
            buffer = self._program.buffers[name]
            shape = list(buffer.shape)
            if buffer.grid is None:
                self._numbers[key] = self.builder.values(shape)
            else:
                grid = buffer.grid
                self._numbers[key] = self.builder.codes(
                    shape, list(grid.bits), grid.signed, _array(grid.scale), _array(grid.offset), grid.axis
                )
        return self._numbers[key]

    def weight(self, name: str) -> int:
        key = ("weight", name)
        if key not in self._numbers:
            w = self._program.weights[name]
            self._numbers[key] = self.builder.weight(
                np.ascontiguousarray(w.codes, np.int8), np.ascontiguousarray(w.code_bits, np.int32), _array(w.scale)
            )
        return self._numbers[key]

    def constant(self, name: str) -> int:
        if not name:
            return -1
        key = ("constant", name)
        if key not in self._numbers:
            self._numbers[key] = self.builder.constant(_array(self._program.constants[name]))
        return self._numbers[key]

    def integers(self, name: str) -> int:
        if not name:
            return -1
        key = ("integers", name)
        if key not in self._numbers:
            array = np.ascontiguousarray(self._program.integers[name], np.int32)
            self._numbers[key] = self.builder.integers(array)
        return self._numbers[key]

    def op(self, op: p.Op) -> None:
        tensors, integers, reals = self._parameters(op)
        inputs = [self.buffer(name) for name in inputs_of(op)]
        self.builder.op(type(op).__name__, inputs, self.buffer(op.output), tensors, integers, reals)

    def _parameters(self, op: p.Op) -> Parameters:
        match op:
            case p.Patchify():
                return [], [op.patch], []
            case p.Linear():
                return [self.weight(op.weight), self.constant(op.bias)], [], []
            case p.SplitHeads():
                return [], [op.part, op.parts], []
            case p.QueryKey():
                return [], [], [op.factor]
            case p.Softmax():
                return [self.constant(op.bias), self.constant(op.mask)], [], []
            case p.LayerNorm():
                return [self.constant(op.weight), self.constant(op.bias)], [], [op.eps]
            case p.Multiply():
                return [self.constant(op.factor)], [], []
            case p.Tokens():
                return [self.constant(op.prefix), self.constant(op.position)], [], []
            case p.WindowPartition() | p.WindowMerge():
                return [], [*op.window, *op.shift], []
            case p.SelectToken():
                return [], [op.index], []
            case p.MeanTokens():
                return [], [op.start], []
            case _:
                return self._integer_parameters(op)

    def _integer_parameters(self, op: p.Op) -> Parameters:
        """Of the ops in `integer_ops`, and of those without any."""
        match op:
            case i.LinearAccumulate():
                return [self.weight(op.weight), self.integers(op.bias)], [], []
            case i.Requantize():
                return [self.integers(op.multiplier), self.integers(op.shift)], [], []
            case i.AddRequantize():
                left, right = (op.left_multiplier, op.left_shift), (op.right_multiplier, op.right_shift)
                return [self.integers(name) for name in (*left, *right)], [], []
            case i.IntegerTokens():
                rescaling = (op.multiplier, op.shift)
                return [self.integers(name) for name in (op.prefix, op.position, *rescaling)], [], []
            case i.SumTokens():
                return [], [op.start], []
            case i.IntegerLayerNorm():
                affine = (op.multiplier, op.bias, op.exponent)
                return [self.integers(name) for name in affine], [op.shift, op.zero], []
            case i.ShiftGelu():
                return [], [op.unit, op.fraction], []
            case i.Shiftmax():
                return [self.integers(op.bias), self.integers(op.mask)], [op.unit, op.fraction], []
            case i.LogIntSoftmax():
                return [self.integers(op.bias), self.integers(op.mask)], [op.ln2, op.linear, op.constant], []
            case _:
                return [], [], []


def _dtype(buffer: p.Buffer) -> type[np.generic]:
    """How the engine hands over a buffer; 32-bit codes fit int32, unlike the sums on the way to them in numpy."""
    if buffer.grid is None:
        return np.float32
    return np.int16 if max(buffer.grid.bits) <= p.MAX_BITS else np.int32


def _array(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
