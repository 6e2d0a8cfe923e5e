"""The Program of version 3's golden file: that of version 1, with every other block of its weights on the mid-rise grid.

`python runtime/tests/golden_midrise_program.py` writes the file anew. Do so only together with a new format version.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from golden_program import golden_program
from qvit_runtime import program as p
from qvit_runtime import save

GOLDEN = Path(__file__).parent / "golden" / "toy_midrise_vit.v3.qvit"


def golden_midrise_program() -> p.Program:
    plain = golden_program()
    return replace(
        plain,
        name="golden mid-rise",
        weights={name: every_other_block(weight, step) for step, (name, weight) in enumerate(plain.weights.items())},
        metadata={"made by": "golden_midrise_program.py"},
    )


def every_other_block(weight: p.Weight, step: int) -> p.Weight:
    """Codes c become 2 c + 1 in blocks of at most 7 bits: first block, third, ..., or second, fourth, ... in turn."""
    turn = (step + np.arange(weight.bits.size).reshape(weight.bits.shape)) % 2 == 0
    midrise = turn & (weight.bits <= p.MAX_MIDRISE_BITS)
    height, width = np.array(weight.codes.shape) // weight.bits.shape
    codes = np.where(np.kron(midrise, np.ones((height, width), np.bool_)), 2 * weight.codes + 1, weight.codes)
    return replace(weight, codes=codes.astype(np.int8), midrise=midrise)


if __name__ == "__main__":
    save(golden_midrise_program(), GOLDEN)
    print(f"wrote {GOLDEN.name}, {GOLDEN.stat().st_size} bytes")
