"""The Program of the golden file: the structure of a toy ViT, every number in it a formula that no library version changes.

`python runtime/tests/golden_program.py` writes the file anew. Do so only together with a new format version: the old
file then stays in the folder under its version, and stays readable.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from qvit_runtime import program as p
from qvit_runtime import save
from toy_programs import vit_program

GOLDEN = Path(__file__).parent / "golden" / "toy_vit.v1.qvit"


def golden_program() -> p.Program:
    toy = vit_program(dim=8, depth=1, heads=2, patch=4, size=8, classes=3, mlp_ratio=2, layer_scale=True)
    buffers = {}
    for step, (name, buffer) in enumerate(toy.buffers.items()):
        grid = buffer.grid
        if grid is not None and name not in ("patches", "blocks.0.attn.merged"):
            grid = plain_grid(grid, step)
        buffers[name] = replace(buffer, grid=grid)
    for name, source, axis in (("patches", "image_codes", 0), ("blocks.0.attn.merged", "blocks.0.attn.mixed_codes", 1)):
        grid = buffers[source].grid
        assert grid is not None
        buffers[name] = replace(buffers[name], grid=replace(grid, axis=axis))
    return replace(
        toy,
        name="golden",
        buffers=buffers,
        weights={name: plain_weight(weight, step) for step, (name, weight) in enumerate(toy.weights.items())},
        constants={name: plain_constant(array) for name, array in toy.constants.items()},
        preprocess=replace(toy.preprocess, labels=("tench", "Käfer", 'a "quoted" name')),
        metadata={"made by": "golden_program.py"},
    )


def plain_grid(grid: p.Grid, step: int) -> p.Grid:
    """Bits 2, 3, ..., 8 in turn; scales that are powers of two; the offset of GELU where there was one."""
    bits = tuple(2 + (step + group) % 7 for group in range(grid.groups))
    scale = np.array([2.0**-b for b in bits], np.float32)
    return replace(grid, bits=bits, scale=scale, offset=np.full(grid.groups, -0.171875 * grid.offset.any(), np.float32))


def plain_weight(weight: p.Weight, step: int) -> p.Weight:
    rows, columns = weight.bits.shape
    bits = 2 + (step + np.arange(rows * columns).reshape(rows, columns)) % 7
    out_features, in_features = weight.codes.shape
    top = np.kron(1 << (bits - 1), np.ones((out_features // rows, in_features // columns), np.int64))
    codes = np.arange(weight.codes.size).reshape(weight.codes.shape) * 7 % (2 * top) - top
    return p.Weight(codes.astype(np.int8), bits, (2.0 ** -bits.astype(float)).astype(np.float32))


def plain_constant(array: np.ndarray) -> np.ndarray:
    return ((np.arange(array.size).reshape(array.shape) % 17 - 8) / 16).astype(np.float32)


if __name__ == "__main__":
    save(golden_program(), GOLDEN)
    print(f"wrote {GOLDEN.name}, {GOLDEN.stat().st_size} bytes")
