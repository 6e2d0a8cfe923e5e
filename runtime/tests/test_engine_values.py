"""Ops on values alone on the engine, at the ends of float32: what a saturated or broken network may hold."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import PATHS, bare_program, run_native
from qvit_runtime import program as p
from qvit_runtime.interpreter import EXECUTE

each_path = pytest.mark.parametrize("path", PATHS)


def assert_close_to_interpreter(
    op: p.Op, x: np.ndarray, path: str, constants: dict[str, np.ndarray] | None = None
) -> None:
    shape = x.shape[1:]
    program = bare_program([op], [p.Buffer("x", shape), p.Buffer("y", shape)], constants=constants)
    expected = EXECUTE[type(op)](program, op, {"x": x})
    np.testing.assert_allclose(run_native(program, {"x": x}, path), expected, rtol=2e-6, atol=1e-6)


@each_path
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e8, 3e9, 1e10, 1e20, 1e38])
def test_softmax_of_scores_of_any_size(size, path):
    """Large ones are many steps of a float32 apart or equal; the largest counts 1 before the division, whatever its size."""
    rng = np.random.default_rng(0)
    spread = size * rng.uniform(-1, 1, (4, 3, 5, 37))
    close = size + 0.5 * rng.integers(-3, 3, spread.shape)
    scores = np.concatenate([spread, close, -close, np.full_like(spread, size)]).astype(np.float32)
    assert_close_to_interpreter(p.Softmax("x", "y", "", ""), scores, path)


@each_path
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e16])
def test_layer_norm_of_the_sizes_that_it_promises(size, path):
    rng = np.random.default_rng(0)
    x = (size * rng.uniform(-1, 1, (2, 5, 1000))).astype(np.float32)
    constants = {"w": rng.uniform(0.5, 2, 1000).astype(np.float32), "b": rng.uniform(-1, 1, 1000).astype(np.float32)}
    assert_close_to_interpreter(p.LayerNorm("x", "y", "w", "b", 1e-12), x, path, constants)
