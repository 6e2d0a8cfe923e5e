"""The path of every bit-width over training: one strip per group, its colour the bits in force, a rule at the lock.

A strip is a list of stretches [start, end) of equal bits, so a group that never moves costs one row. Histories are looked at
so many times that all runs together have at most `CELLS` stretches; a change between two looks is seen at the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import altair as alt

from .chart_bits import BITS_SCALE
from .picture import Picture, Table, tips
from .run import Run, Widths
from .tensors import HEAD_ROLES, place_of

PANEL = 230
CELLS, FEWEST, MOST = 200_000, 16, 240


def looks(runs: Sequence[Run]) -> int:
    """How often every history is looked at, from the number of groups in all of them."""
    groups = sum(sum(map(len, run.history[0].bits.values())) for run in runs if run.history)
    return max(FEWEST, min(MOST, CELLS // max(groups, 1)))


def paths(run: Run, key: str, times: int) -> Iterator[Picture]:
    """The strips of a run whose bits moved."""
    if len(run.history) < 2:
        return
    seen = _thinned(run.history, times)
    last = int(max(run.history[-1].step, *(line["step"] or 0 for line in run.metrics), 1))
    groups: list[tuple[Any, ...]] = []
    stretches: list[tuple[int, int, int, int]] = []
    for tensor, widths in seen[0].bits.items():
        for group in range(len(widths)):
            place = place_of(tensor, group, len(widths))
            role = place.role if tensor.startswith(("blocks.", "layers.")) else "outside the blocks"
            label = place.label if role == place.role else tensor
            for start, end, bits in _stretches(seen, tensor, group, last):
                stretches.append((len(groups), start, end, bits))
            groups.append((len(groups), role, label, tensor))
    thinned = f" Looked at {times} times." if len(seen) < len(run.history) else ""
    locked = f" The rule marks the lock at step {run.lock_step:,}." if run.lock_step is not None else ""
    yield Picture(
        f"{key}-bit-paths",
        "Path of every bit-width",
        f"One strip per layer and head (h), from the first step to the last; colour and tooltip give the bits.{locked}{thinned}",
        _chart(),
        {
            "stretches": Table(("group", "start", "end", "bits"), stretches),
            "groups": Table(("group", "role", "label", "tensor"), groups),
            "locks": Table(("lock",), [(run.lock_step,)] if run.lock_step is not None else []),
        },
        panel=PANEL,
        canvas=True,
    )


def _thinned(history: Sequence[Widths], times: int) -> list[Widths]:
    """The first, the last and evenly many between them; the lock is always one of them."""
    if len(history) <= times:
        return list(history)
    chosen = {round(place * (len(history) - 1) / (times - 1)) for place in range(times)}
    lock = next((place for place, widths in enumerate(history) if widths.locked), None)
    return [widths for place, widths in enumerate(history) if place in chosen or place == lock]


def _stretches(history: Sequence[Widths], tensor: str, group: int, last: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, bits) for each time that a group kept its bits."""
    start, bits = history[0].step, history[0].bits[tensor][group]
    for widths in history[1:]:
        now = widths.bits[tensor][group]
        if now != bits:
            yield start, widths.step, bits
            start, bits = widths.step, now
    yield start, last, bits


@cache
def _chart() -> dict[str, Any]:
    x = alt.X("start:Q", title="optimizer step", axis=alt.Axis(format="~s", tickCount=4), scale=alt.Scale(nice=False))
    strips = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelOverlap=True, ticks=False, labelLimit=64)),
            color=alt.Color(
                "bits:Q",
                scale=BITS_SCALE,
                legend=alt.Legend(title="bits", orient="top", gradientLength=160, tickCount=7),
            ),
            tooltip=tips(
                *("tensor", "label"),
                ("bits:Q", "bits", "d"),
                ("start:Q", "from step", ",d"),
                ("end:Q", "to step", ",d"),
            ),
        )
    )
    lock = alt.Chart(alt.NamedData("locks")).mark_rule(color="#ffffff", strokeWidth=1.5).encode(x="lock:Q")
    group = alt.LookupData(alt.NamedData("groups"), key="group", fields=["role", "label", "tensor"])
    layers = alt.layer(strips, lock).properties(width=PANEL, height=alt.Step(9))
    facet = alt.Facet("role:N", title=None, sort=list(HEAD_ROLES))
    data = alt.NamedData("stretches")
    return (
        layers.facet(facet=facet, columns=3, data=data)
        .transform_lookup("group", from_=group)
        .resolve_scale(y="independent")
        .resolve_axis(x="independent")
        .to_dict()
    )
