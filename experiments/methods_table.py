"""The README's table of methods, from the compare.json files of `qvit compare`.

python experiments/methods_table.py experiments/results/methods/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = (
    "row",
    "top-1 %",
    "minus float, points (95 %)",
    "program, top-1 %",
    "same class as program",
    "GBitOPs",
    "`.qvit` KiB",
    "ms",
)


def cells(row: dict) -> tuple[str, ...]:
    """One line; the float row has only its accuracy."""
    if "difference" not in row:
        return (row["method"], f"{row['top1']:.2f}", *[""] * (len(HEAD) - 2))
    return (
        row["method"],
        f"{row['top1']:.2f}",
        f"{row['difference']:+.2f} ± {row['half_width']:.2f}",
        f"{row['top1_frozen']:.2f}",
        f"{row['agreement_frozen']:.2f} %",
        f"{row['gbitops']:.3f}",
        f"{row['artifact_kib']:.0f}",
        f"{row['milliseconds']:.2f}",
    )


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        table = json.loads(path.read_text())
        print(f"\n{path.stem}, {table['images']} images:\n")
        print("| " + " | ".join(HEAD) + " |")
        print("|" + "---|" * len(HEAD))
        for row in table["rows"]:
            print("| " + " | ".join(cells(row)) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
