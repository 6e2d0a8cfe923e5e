"""The Program of version 3's golden file: that of version 1, with every other block of its weights on the mid-rise grid.

`python runtime/tests/golden_midrise_program.py` writes the file anew. Do so only together with a new format version.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from golden_program import golden_program
from qvit_runtime import program as p
from qvit_runtime import save
from toy_edits import every_other_block

GOLDEN = Path(__file__).parent / "golden" / "toy_midrise_vit.v3.qvit"


def golden_midrise_program() -> p.Program:
    plain = golden_program()
    return replace(
        plain,
        name="golden mid-rise",
        weights={
            name: every_other_block(weight, step % 2) for step, (name, weight) in enumerate(plain.weights.items())
        },
        metadata={"made by": "golden_midrise_program.py"},
    )


if __name__ == "__main__":
    save(golden_midrise_program(), GOLDEN)
    print(f"wrote {GOLDEN.name}, {GOLDEN.stat().st_size} bytes")
