"""What every verb does with its result: lines for people, JSON for machines, rows of result.json as a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME_WIDTH = 34


@dataclass(frozen=True)
class Column:
    """A column of numbers: its title, the key in a row, digits behind the point."""

    title: str
    key: str
    digits: int


COST_COLUMNS = (
    Column("GBitOPs", "gbitops", 4),
    Column("W bits", "average_weight_bits", 2),
    Column("A bits", "average_activation_bits", 2),
    Column("KiB", "artifact_kib", 1),
)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as an aligned table: `method`, then the columns; what a row lacks is "-", text is printed as it is.

    A row that collapsed says so at its end.
    """
    lines = [["row", *(column.title for column in columns)]]
    lines += [[row["method"], *(_cell(row.get(column.key), column.digits) for column in columns)] for row in rows]
    widths = [max(NAME_WIDTH, *(len(line[0]) for line in lines))]
    widths += [max(len(line[place]) for line in lines) for place in range(1, len(columns) + 1)]
    texts = [
        line[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    notes = ["", *(f"  {row['collapse']}" if row.get("collapse") else "" for row in rows)]
    header, *body = (text + note for text, note in zip(texts, notes, strict=True))
    return "\n".join([header, "-" * len(header), *body])


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def say(arguments: argparse.Namespace, *lines: str) -> None:
    """Print for people, on stderr when standard output carries JSON."""
    stream = sys.stderr if arguments.json == "-" else sys.stdout
    for line in lines:
        print(line, file=stream)


def write_json(target: str, result: dict[str, Any]) -> None:
    """Write a result as JSON, "-" for standard output; a folder that is missing is made, since the work is done."""
    text = json.dumps(result, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text(text + "\n", encoding="utf-8")
