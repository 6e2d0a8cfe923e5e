"""The README's tables of `qvit analyze`: components alone and in company, from analysis.json.

python experiments/analysis_table.py experiments/results/analysis/micro_deit.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qvit.analysis.results import ALL_BUT, ALONE


def cell(row: dict[str, Any]) -> str:
    """Points with half of the 95 % interval; nothing where zero is inside."""
    value = row["loss"] if row["mode"] == ALONE else row["gain"]
    half = row["loss_half_width"] if row["mode"] == ALONE else row["gain_half_width"]
    return f"{value:.1f} ± {half:.1f}" if value > half else ""


def lines(analysis: dict[str, Any]) -> list[str]:
    """A Markdown table: one line per component, the most sensitive at the fewest bits first."""
    widths = sorted(analysis["bits"])
    rows = [r for r in analysis["rows"] if r["kind"] == "component" and not r["finetune_steps"]]
    found = {(r["mode"], r["bits"], r["name"]): r for r in rows}
    names = sorted(
        {r["name"] for r in rows},
        key=lambda name: [-found[ALL_BUT, b, name]["gain"] - found[ALONE, b, name]["loss"] for b in widths],
    )
    heads = [f"alone at {b}" for b in widths] + [f"spared at {b}" for b in widths]
    table = ["| component | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        cells = [cell(found[mode, bits, name]) for mode in (ALONE, ALL_BUT) for bits in widths]
        if any(cells):
            table.append(f"| {name} | " + " | ".join(cells) + " |")
    return table


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print("\n".join(lines(json.loads(Path(path).read_text()))), "\n")
