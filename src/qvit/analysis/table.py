"""An analysis as a table for terminals and Markdown: one row per subject, three columns per bit-width.

    alone      points lost when only the subject is quantized
    won back   points that leaving it float wins back when everything else is quantized
    dB         signal-to-noise ratio at the logits when only the subject is quantized

Heads are left out: there are many, and analysis.json has them.
"""

from __future__ import annotations

from typing import Any

from .results import ALL_BUT, ALONE, points

KINDS = ("component", "part", "layer")


def table(analysis: dict[str, Any], steps: int = 0) -> str:
    """The rows that were trained for so many steps (0: the others), in the order of the network."""
    widths = [row["bits"] for row in analysis["everything"] if row["finetune_steps"] == steps]
    found = {
        (row["name"], row["mode"], row["bits"]): row
        for row in analysis["rows"]
        if row["finetune_steps"] == steps and row["kind"] in KINDS
    }
    header = ["quantized", *(f"{bits} bits, {title}" for bits in widths for title in ("alone", "won back", "dB"))]
    lines = [header, ["---", *(["--:"] * (len(header) - 1))]]
    for name in dict.fromkeys(name for name, _, _ in found):
        lines.append([name, *(cell for bits in widths for cell in _cells(name, bits, found))])
    everything = {row["bits"]: row for row in analysis["everything"] if row["finetune_steps"] == steps}
    whole = (cell for bits in widths for cell in (points(everything[bits], "loss"), "", _decibels(everything[bits])))
    lines.append(["everything", *whole])
    columns = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, columns, strict=True)) + " |" for line in lines
    )


def _cells(name: str, bits: int, found: dict[tuple[str, str, int], dict[str, Any]]) -> tuple[str, str, str]:
    alone, company = found[name, ALONE, bits], found[name, ALL_BUT, bits]
    return points(alone, "loss"), points(company, "gain"), _decibels(alone)


def _decibels(row: dict[str, Any]) -> str:
    return "-" if row["logit_sqnr_db"] is None else f"{row['logit_sqnr_db']:.1f}"
