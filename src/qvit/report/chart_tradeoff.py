"""What accuracy costs: top-1 against GBitOPs, against KiB of the artifact and against measured milliseconds.

Rows of different tasks say nothing about each other, so every task has pictures of its own. A row is on the Pareto line when no row of its task that is not dearer is more accurate. The line is computed in the page, of
the runs that are selected: sorted by price, the running maximum of top-1. Uniform baselines are joined by a dashed line, so
that what learned bits buy can be read off as the distance to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from .picture import Cast, Picture, Table, digits, domain, names, tips
from .run import Run

FIELDS = ("run", "method", "task", "kind", "top1", "top1_float", "top1_frozen", "gbitops", "kib", "ms", "conditions")
AXES = (
    ("gbitops", "GBitOPs per image", "Accuracy against BitOPs", "BitOPs = MACs x weight bits x activation bits."),
    ("kib", "KiB of the artifact", "Accuracy against size", "Size of the whole .qvit file, constants included."),
    ("ms", "milliseconds per image", "Accuracy against latency", ""),
)
READING = (
    "Solid line: Pareto line of the selected runs. Dashed line and hollow points: uniform baselines. Horizontal rule: "
    "the float model."
)
HEIGHT = 320


def tradeoff(runs: Sequence[Run], cast: Cast) -> Iterator[Picture]:
    """A picture for each price that some quantized run knows, for each task."""
    judged = [run for run in runs if run.outcome is not None and run.outcome.top1 is not None]
    tasks = list(dict.fromkeys(_row(run)[FIELDS.index("task")] for run in judged))
    for number, task in enumerate(tasks):
        members = [run for run in judged if run.outcome is not None and run.outcome.task == task]
        table = Table(FIELDS, [_row(run) for run in members])
        where = f": {task}" if len(tasks) > 1 else ""
        for field, title, heading, remark in AXES:
            if any(price is not None for price in table.column(field)):
                caption = f"{remark or _conditions(members)} {READING}"
                key = f"accuracy-{field}{f'-{number}' if where else ''}"
                yield Picture(key, heading + where, caption, _chart(cast, table, field, title), {"outcomes": table})


def _row(run: Run) -> tuple[Any, ...]:
    outcome = run.outcome
    assert outcome is not None
    kind = "float" if outcome.is_float else "uniform" if outcome.is_uniform else "other"
    milliseconds = None if run.bench is None else digits(run.bench.milliseconds)
    return (
        run.name,
        outcome.method,
        outcome.task,
        kind,
        outcome.top1,
        outcome.top1_float,
        outcome.top1_frozen,
        digits(outcome.gbitops),
        digits(outcome.artifact_kib),
        milliseconds,
        None if run.bench is None else run.bench.conditions,
    )


def _conditions(runs: Sequence[Run]) -> str:
    found = list(dict.fromkeys(run.bench.conditions for run in runs if run.bench is not None))
    if len(found) == 1:
        return f"Median of the native engine: {found[0]}."
    return f"Median of the native engine, but NOT all measured alike, so compare with care: {names(found)}."


def _chart(cast: Cast, table: Table, price: str, title: str) -> dict[str, Any]:
    base = alt.Chart(alt.NamedData("outcomes")).transform_filter(cast.is_shown())
    x = alt.X(f"{price}:Q", title=title, scale=domain(table.column(price)), axis=alt.Axis(tickCount=6))
    y = alt.Y("top1:Q", title="top-1 %", scale=domain([*table.column("top1"), *table.column("top1_float")], 0.5))
    priced = base.transform_filter(f"isValid(datum.{price})")
    order = alt.Order(f"{price}:Q")
    float_rule = (
        base.transform_filter("isValid(datum.top1_float)")
        .transform_aggregate(rows="count()", groupby=["top1_float"])
        .mark_rule(strokeWidth=1.2)
        .encode(
            y=alt.Y("top1_float:Q", scale=alt.Scale(zero=False, nice=False)),
            tooltip=tips(("top1_float:Q", "float model, top-1 %", ".2f")),
        )
    )
    uniform = (
        priced.transform_filter("datum.kind == 'uniform'")
        .mark_line(strokeDash=[4, 3], strokeWidth=1.2, color="#858d95")
        .encode(x=x, y=y, detail="task:N", order=order)
    )
    pareto = (
        priced.transform_window(
            best="max(top1)",
            frame=[None, 0],
            groupby=["task"],
            sort=[{"field": price}, {"field": "top1", "order": "descending"}],
        )
        .transform_filter("datum.top1 >= datum.best")
        .mark_line(interpolate="step-after", strokeWidth=1.6, color="#858d95")
        .encode(x=x, y=y, detail="task:N", order=order)
    )
    points = priced.mark_point(size=110, strokeWidth=2, opacity=1).encode(
        x=x,
        y=y,
        color=cast.color(),
        shape=cast.shape(),
        fillOpacity=alt.condition("datum.kind == 'uniform'", alt.value(0), alt.value(1)),
        fill=alt.Fill("run:N", scale=alt.Scale(domain=cast.names), legend=None),
        tooltip=tips(
            *("run", "method", "task"),
            ("top1:Q", "top-1 %", ".2f"),
            ("top1_frozen:Q", "program, top-1 %", ".2f"),
            ("gbitops:Q", "GBitOPs", ".4f"),
            ("kib:Q", "KiB", ".1f"),
            ("ms:Q", "ms", ".2f"),
            "conditions",
        ),
    )
    layers = alt.layer(float_rule, uniform, pareto, points).properties(height=HEIGHT).add_params(cast.choice())
    return layers.to_dict()
