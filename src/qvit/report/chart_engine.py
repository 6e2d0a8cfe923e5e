"""Where the native engine spends its time: the steps of `qvit-runtime bench --profile`, those of one name together.

A step is one or several ops that the engine fused, called by their names. Seconds are summed over threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import altair as alt

from .picture import Picture, Table, digits, tips
from .run import Run


def engine_time(run: Run, key: str) -> Iterator[Picture]:
    """The picture of a run that was profiled."""
    if run.bench is None or not run.bench.steps:
        return
    totals: dict[str, list[float]] = {}
    for step in run.bench.steps:
        totals.setdefault(step.name, []).append(step.seconds)
    whole = sum(step.seconds for step in run.bench.steps)
    rows = [
        (name, len(times), digits(1000 * sum(times), 4), f"{100 * sum(times) / whole:.1f} %")
        for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))
    ]
    yield Picture(
        f"{key}-engine",
        "Time by kind of step",
        f"{run.bench.conditions}, medians, summed over threads. A step is what the engine fused.",
        _bars(),
        {"steps": Table(("step", "count", "ms", "share"), rows)},
    )


@cache
def _bars() -> dict[str, Any]:
    base = alt.Chart(alt.NamedData("steps")).encode(
        x=alt.X("ms:Q", title="milliseconds"),
        y=alt.Y("step:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
        tooltip=tips("step", ("count:Q", "steps", "d"), ("ms:Q", "ms", ".3f"), "share"),
    )
    text = base.mark_text(align="left", dx=4, clip=False).encode(text="share:N")
    return alt.layer(base.mark_bar(), text).properties(height=alt.Step(22)).to_dict()
