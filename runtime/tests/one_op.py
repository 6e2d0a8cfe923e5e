"""Run one op through the interpreter: arrays in, the array it writes out, no network around it."""

from __future__ import annotations

import numpy as np

from qvit_runtime import program as p
from qvit_runtime.interpreter import EXECUTE


def run_op(
    op: p.Op,
    arrays: dict[str, np.ndarray],
    grids: dict[str, p.Grid],
    shape: tuple[int, ...] = (1,),
    integers: dict[str, object] | None = None,
    weights: dict[str, p.Weight] | None = None,
    constants: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """What `op` makes of `arrays` (batch, ...); `shape` of the output where the op looks at it."""
    buffers = {name: p.Buffer(name, array.shape[1:], grids.get(name)) for name, array in arrays.items()}
    buffers[op.output] = p.Buffer(op.output, shape, grids.get(op.output))
    named = {name: np.array(array, np.int32) for name, array in (integers or {}).items()}
    program = p.Program(
        "one op", "", op.output, (op,), buffers, weights or {}, constants or {}, p.Preprocess((1, 1)), {}, named
    )
    return EXECUTE[type(op)](program, op, arrays)
