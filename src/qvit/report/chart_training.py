"""How training went: loss, accuracy and rates by step, and what the model cost while its bits were learned.

Long logs are thinned: neighbouring lines become one point with their mean, so many that all runs together have about
`POINTS` points. An evaluation (a line with top-1) is never thinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from .picture import Cast, Picture, Table, digits, domain, tips
from .run import Numbers, Run

POINTS, FEWEST = 9600, 150
SERIES = {
    "loss": ("Training loss", "loss", "Cross-entropy, with the teacher's part where there is one."),
    "gbitops": (
        "Budget over time",
        "GBitOPs per image",
        "Exact cost of the bits in force. Dotted rule: the budget; vertical rule: the lock.",
    ),
    "weight_bits": ("Weight bits over time", "mean bits of a weight", "Mean over all quantized weights."),
    "activation_bits": ("Activation bits over time", "mean bits", "Mean over all quantized activations of an image."),
    "gradient_norm": ("Gradient norm", "norm before clipping", "Norm of all gradients of a step."),
    "learning_rate": ("Learning rate", "learning rate", "Of the weights."),
}
HEIGHT = 220
UNSTRETCHED = alt.Scale(zero=False, nice=False)  # of what is drawn over the lines


def training(runs: Sequence[Run], cast: Cast) -> Iterator[Picture]:
    """A picture for each series that some run logged, and one for its evaluations."""
    logged = [run for run in runs if run.metrics]
    if not logged:
        return
    most = max(FEWEST, POINTS // len(logged))
    table, thinned = _metrics(logged, most)
    remark = f" Each point is the mean of up to {thinned} logged lines." if thinned > 1 else ""
    evaluations = Table(
        ("run", "step", "epoch", "top1"),
        [
            (run.name, line["step"], digits(line.get("epoch")), line["top1"])
            for run in logged
            for line in run.metrics
            if line.get("top1") is not None
        ],
    )
    if evaluations.rows:
        caption = "Top-1 on the evaluation split, of the module as it stands then."
        if any(line.get("float_weights") for run in logged for line in run.metrics):
            caption += " The first ones are of float weights (fit.activations_first)."
        yield Picture(
            "training-top1",
            "Accuracy while training",
            caption,
            _chart(cast, "top1", "top-1 %", "evaluations", evaluations, []),
            {"evaluations": evaluations},
        )
    budgets = _budgets(logged)
    locks = Table(("run", "step"), [(run.name, run.lock_step) for run in logged if run.lock_step is not None])
    for name, (title, axis, caption) in SERIES.items():
        if all(value is None for value in table.column(name)):
            continue
        of_bits = name in ("gbitops", "weight_bits", "activation_bits")
        marks = [_locks(cast)] if of_bits else []
        tables = {"metrics": table, "locks": locks} if of_bits else {"metrics": table}
        if name == "gbitops" and budgets.rows:
            marks.append(_budget_rules(cast))
            tables["budgets"] = budgets
        chart = _chart(cast, name, axis, "metrics", table, marks)
        yield Picture(f"training-{name}", title, caption + remark, chart, tables, canvas=True)


def _metrics(runs: Sequence[Run], most: int) -> tuple[Table, int]:
    """The thinned log of all runs, and how many lines the densest point stands for."""
    fields = ("run", "step", "epoch", *SERIES)
    rows: list[tuple[Any, ...]] = []
    thinned = 1
    for run in runs:
        lines = [line for line in run.metrics if line.get("loss") is not None]
        every = -(-len(lines) // most)
        thinned = max(thinned, every)
        for start in range(0, len(lines), max(every, 1)):
            bucket = lines[start : start + every]
            last = bucket[-1]
            rows.append((run.name, last["step"], digits(last.get("epoch")), *(_mean(bucket, name) for name in SERIES)))
    return Table(fields, rows), thinned


def _mean(lines: Sequence[Numbers], name: str) -> float | None:
    known = [value for line in lines if (value := line.get(name)) is not None]
    return digits(sum(known) / len(known)) if known else None


def _budgets(runs: Sequence[Run]) -> Table:
    """Budgets in GBitOPs, of the outcome or, while a run is trained, of its provenance."""
    rows = []
    for run in runs:
        budget = run.outcome.budget if run.outcome is not None else (run.provenance or {}).get("budget") or {}
        limit = budget.get("gbitops")
        if isinstance(limit, (int, float)):
            rows.append((run.name, digits(limit)))
    return Table(("run", "limit"), rows)


def _locks(cast: Cast) -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("locks"))
        .transform_filter(cast.is_shown())
        .mark_rule(strokeDash=[2, 2])
        .encode(x=alt.X("step:Q", scale=UNSTRETCHED), tooltip=tips("run", ("step:Q", "bits locked at step", ",d")))
    )


def _budget_rules(cast: Cast) -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("budgets"))
        .transform_filter(cast.is_shown())
        .mark_rule(strokeDash=[1, 3], strokeWidth=1.6)
        .encode(
            y=alt.Y("limit:Q", scale=UNSTRETCHED),
            color=cast.color(),
            tooltip=tips("run", ("limit:Q", "budget, GBitOPs", ".4f")),
        )
    )


def _chart(cast: Cast, field: str, title: str, data: str, table: Table, marks: list[alt.Chart]) -> dict[str, Any]:
    base = alt.Chart(alt.NamedData(data)).transform_filter(cast.is_shown()).transform_filter(f"isValid(datum.{field})")
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, fields=["step", "run"])
    last = max(table.column("step"))
    x = alt.X(
        "step:Q",
        title="optimizer step",
        axis=alt.Axis(format="~s", tickCount=8),
        scale=alt.Scale(domain=[0, last], nice=False),
    )
    y = alt.Y(f"{field}:Q", title=title, scale=domain(table.column(field)))
    line = base.mark_line(point=data == "evaluations").encode(x=x, y=y, color=cast.color(), strokeDash=cast.dash())
    points = (
        base.mark_point(filled=True, size=60)
        .encode(
            x=x,
            y=y,
            color=alt.Color("run:N", scale=alt.Scale(domain=cast.names), legend=None),
            opacity=alt.condition(near, alt.value(1), alt.value(0)),
            tooltip=tips("run", ("step:Q", "step", ",d"), ("epoch:Q", "epoch", ".2f"), (f"{field}:Q", title, ".5~g")),
        )
        .add_params(near)
    )
    return alt.layer(line, *marks, points).properties(height=HEIGHT).add_params(cast.choice()).to_dict()
