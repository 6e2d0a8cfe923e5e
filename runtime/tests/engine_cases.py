"""Shared by the engine's tests: small programs of one op, and the near-tie rule of design.md as a function.

A code behind a float op may differ by one, and only where the exact value lies within NEAR of a step from a tie. Both
sides compute that value their own way, the engine in float32 with one factor, the interpreter in float64: neither is
wrong there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qvit_runtime import program as p
from qvit_runtime.engine import Runner, kernel_paths
from qvit_runtime.integer import expand_groups

PATHS = [name for name, (built, supported) in kernel_paths().items() if built and supported]
NEAR = 1e-3
MAX_SHARE = 5e-4  # of an op's codes


def grid(bits: int | tuple[int, ...], signed: bool, scale: float = 1.0, axis: int = 0, offset: float = 0.0) -> p.Grid:
    widths = (bits,) if isinstance(bits, int) else bits
    return p.Grid(
        widths, signed, np.full(len(widths), scale, np.float32), np.full(len(widths), offset, np.float32), axis
    )


def bare_program(
    ops: list[p.Op],
    buffers: list[p.Buffer],
    weights: dict[str, p.Weight] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    integers: dict[str, np.ndarray] | None = None,
) -> p.Program:
    """A fragment: whatever `Runner` and the interpreter's ops need, not a whole network."""
    named = {b.name: b for b in buffers}
    return p.Program(
        "fragment",
        buffers[0].name,
        buffers[-1].name,
        tuple(ops),
        named,
        weights or {},
        constants or {},
        p.Preprocess((1, 1)),
        integers=integers or {},
    )


def run_native(
    program: p.Program, inputs: dict[str, np.ndarray], path: str = "", fuse: bool = True, threads: int = 1
) -> np.ndarray:
    """The program's output from these inputs, codes as int16."""
    return run_ops(program, program.ops, inputs, [program.output], path, fuse, threads)[0]


def run_ops(
    program: p.Program,
    ops: Sequence[p.Op],
    inputs: dict[str, np.ndarray],
    outputs: list[str],
    path: str = "",
    fuse: bool = True,
    threads: int = 1,
) -> list[np.ndarray]:
    """Some ops of a program on the interpreter's arrays: 32-bit codes, which numpy keeps in int64, fit int32."""
    arrays = [array.astype(np.int32) if array.dtype == np.int64 else array for array in inputs.values()]
    return Runner(program, ops, list(inputs), outputs, threads, path, fuse)(arrays)


@dataclass(frozen=True)
class Ties:
    """What a comparison of codes found."""

    codes: int
    differing: int


def check_near_ties(found: np.ndarray, expected: np.ndarray, values: np.ndarray, grid: p.Grid) -> Ties:
    """Assert the rule for codes quantized from `values`; returns the count. All have a leading batch axis."""
    differ = found != expected
    if differ.any():
        axis = grid.axis + 1
        scale = expand_groups(grid.scale.astype(np.float64), values.shape, axis)
        offset = expand_groups(grid.offset.astype(np.float64), values.shape, axis)
        steps = (values.astype(np.float64) - offset) / scale
        to_tie = np.abs(steps - np.floor(steps) - 0.5)
        assert np.abs(found.astype(int) - expected.astype(int)).max() == 1
        assert to_tie[differ].max() < NEAR, f"a code differs {to_tie[differ].max():.2g} of a step from a tie"
    return Ties(found.size, int(differ.sum()))
