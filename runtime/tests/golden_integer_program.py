"""The Program of version 2's golden file: toy networks of the integer-only ops, every number a formula, as in `golden_program`.

`python runtime/tests/golden_integer_program.py` writes the file anew. Do so only together with a new format version.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from golden_program import plain_constant, plain_weight
from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime import save
from toy_integer_programs import integer_vit_program

GOLDEN = Path(__file__).parent / "golden" / "toy_integer_vit.v2.qvit"


def golden_integer_program() -> p.Program:
    toy = integer_vit_program(dim=8, depth=1, heads=2, patch=4, size=8, classes=3)
    return replace(
        toy,
        name="golden integers",
        ops=tuple(plain_op(op) for op in toy.ops),
        buffers={
            name: replace(buffer, grid=buffer.grid and plain_grid(buffer.grid)) for name, buffer in toy.buffers.items()
        },
        weights={name: plain_weight(weight, step) for step, (name, weight) in enumerate(toy.weights.items())},
        constants={name: plain_constant(array) for name, array in toy.constants.items()},
        integers={name: plain_integers(name, array) for name, array in toy.integers.items()},
        metadata={"made by": "golden_integer_program.py"},
    )


def plain_op(op: p.Op) -> p.Op:
    """Units and shifts are read off random codes in the toy."""
    match op:
        case i.ShiftGelu() | i.Shiftmax():
            return replace(op, unit=32)
        case i.IntegerLayerNorm():
            return replace(op, shift=54)
        case _:
            return op


def plain_grid(grid: p.Grid) -> p.Grid:
    """A power of two for each width; the same for all groups."""
    return replace(grid, scale=np.array([2.0 ** -(b // 2) for b in grid.bits], np.float32))


def plain_integers(name: str, array: np.ndarray) -> np.ndarray:
    """Multipliers near 2^30, shifts that bring the sums of these weights into 8 and 16 bits, small numbers else."""
    ramp = np.arange(array.size, dtype=np.int64).reshape(array.shape) * 7 % 17
    if name.endswith("shift"):
        return np.full(array.shape, 30 if ".sum." in name or name == "tokens.shift" else 36, np.int32)
    return (2**30 + ramp if name.endswith("multiplier") else 10 * ramp - 80).astype(np.int32)


if __name__ == "__main__":
    save(golden_integer_program(), GOLDEN)
    print(f"wrote {GOLDEN.name}, {GOLDEN.stat().st_size} bytes")
