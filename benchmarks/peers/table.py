"""From raw results to rows, and from rows to a table.

The time of a contender is the median over all its calls; the spread is the interquartile range over the median, as in
`qvit-runtime bench`. A virtual machine may be slower for minutes (its neighbours share cores, clock and cache), which hits
some turns of everybody and not equally many; so the best round is told too: the lowest median of one turn, each contender
in the quiet state. Ratios are of medians and, in the JSON, of best rounds as well; they say how many times faster: 2.0 takes
half as long. The bar is the int8 peer with the lowest median of the same run.
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
    "ms, best round",
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
    per_round = [float(np.median(r)) for r in rounds]
    return {
        "ms": half,
        "spread": (three_quarters - quarter) / half,
        "ms_minimum": low,
        "calls": len(calls),
        "ms_best_round": min(per_round),
        "ms_per_round": per_round,
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
    return with_ratios(contenders, made)


def with_ratios(contenders: Sequence[Contender], table_rows: list[Row]) -> list[Row]:
    """The same rows with ratios of medians and of best rounds added where there is something to compare with."""
    for column, ending in (("ms", ""), ("ms_best_round", "_best_round")):
        times = {row["key"]: row[column] for row in table_rows if "ms" in row}
        best = best_int8(contenders, times)
        for row in table_rows:
            if "ms" in row:
                row[f"times_eager{ending}"] = times[BASELINE] / row[column] if BASELINE in times else None
                row[f"times_best_int8{ending}"] = times[best] / row[column] if best else None
    return table_rows


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
        f"{row['ms_best_round']:.2f}",
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
