"""From raw results to rows, and from rows to a table.

The time of a contender is the median over all its calls; the spread is the interquartile range over the median, as in
`qvit-runtime bench`. Ratios say how many times faster: 2.0 takes half as long. The bar is the fastest int8 peer of the
same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .contenders import Contender

Row = dict[str, Any]

BASELINE = "eager"
HEAD = (
    "contender",
    "ms",
    "spread",
    "x eager",
    "x best int8 peer",
    "max error",
    "relative error",
    "same class",
    "load s",
    "peak RSS MiB",
    "file MiB",
)


def timing(rounds: Sequence[Sequence[float]]) -> Row:
    """Milliseconds of all calls, summed up."""
    calls = np.concatenate([np.asarray(r, float) for r in rounds])
    low, quarter, half, three_quarters = (float(q) for q in np.quantile(calls, (0, 0.25, 0.5, 0.75)))
    return {
        "ms": half,
        "spread": (three_quarters - quarter) / half,
        "ms_minimum": low,
        "calls": len(calls),
        "ms_per_round": [float(np.median(r)) for r in rounds],
    }


def rows(contenders: Sequence[Contender], results: dict[str, Row], isa: str = "native") -> list[Row]:
    """One row per contender, in their order: measurements with ratios, or the reason there are none. Who could not be
    kept to the instruction set says so in its title."""
    made = []
    for contender in contenders:
        result = dict(results[contender.key])
        measured = {} if "failed" in result else timing(result.pop("rounds"))
        free = isa != "native" and not contender.restrictable
        title = contender.title + f" (not kept to {isa})" * free
        made.append({"key": contender.key, "title": title, **measured, **result})
    times = {row["key"]: row["ms"] for row in made if "ms" in row}
    best = best_int8(contenders, times)
    for row in made:
        if "ms" in row:
            row["times_eager"] = times[BASELINE] / row["ms"] if BASELINE in times else None
            row["times_best_int8"] = times[best] / row["ms"] if best else None
    return made


def best_int8(contenders: Sequence[Contender], times: dict[str, float]) -> str:
    """Key of the fastest int8 peer, or nothing when none ran."""
    peers = [c.key for c in contenders if c.int8 and c.key in times]
    return min(peers, key=times.__getitem__, default="")


def cells(row: Row) -> list[str]:
    """The columns of HEAD; a row that failed has its reason in the second."""
    if "failed" in row:
        return [row["title"], f"failed: {row['failed']}", *[""] * (len(HEAD) - 2)]
    return [
        row["title"],
        f"{row['ms']:.2f}",
        f"{row['spread']:.0%}",
        ratio(row["times_eager"]),
        ratio(row["times_best_int8"]),
        f"{row['max_error']:.2g}",
        f"{row['relative_error']:.2g}",
        f"{row['agreement']:.0%}",
        f"{row['load_seconds'] + row['first_seconds']:.2f}",
        f"{row['peak_rss_mib']:.0f}",
        f"{row['file_bytes'] / 2**20:.1f}",
    ]


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def markdown(table_rows: Sequence[Row]) -> str:
    """The table as the README takes it."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    return "\n".join(
        [*lines, *("| " + " | ".join(c.replace("|", "/") for c in cells(row)) + " |" for row in table_rows)]
    )
