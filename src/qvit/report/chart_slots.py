"""Scale slots: each group's scale at every bit-width it may take, and which of them is in use.

A switchable scale keeps one learned scale per bit-width (arXiv 2201.07703), so a group that changes its bits finds a scale that
fits. On a logarithmic axis a bank is a falling line: one bit more has about half the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import altair as alt

from .banks import Bank
from .picture import Picture, Table, digits, tips
from .run import Run
from .tensors import HEAD_ROLES, place_of

PANEL = 170


def slots_in_use(run: Run, key: str) -> Iterator[Picture]:
    """How many groups use which slot, of a run with switchable scales."""
    counts: dict[tuple[str, int], int] = {}
    for bank in _switchable(run):
        kind = "weights" if bank.tensor.endswith(".weight") else "activations"
        counts[kind, bank.in_use] = counts.get((kind, bank.in_use), 0) + 1
    if counts:
        yield Picture(
            f"{key}-slots-in-use",
            "Scale slots in use",
            "How many groups use the scale of each bit-width.",
            _counts(),
            {"counts": Table(("kind", "slot", "groups"), [(*place, count) for place, count in counts.items()])},
        )


def _switchable(run: Run) -> list[Bank]:
    return [bank for bank in run.banks if len(bank.scales) > 1]


def scale_banks(run: Run, key: str) -> Iterator[Picture]:
    """The scales of every slot, of a run with switchable scales."""
    banks = _switchable(run)
    if not banks:
        return
    places = [place_of(bank.tensor, bank.group, bank.groups) for bank in banks]
    groups = [
        (number, place.role, place.label, bank.tensor, bank.in_use)
        for number, (bank, place) in enumerate(zip(banks, places, strict=True))
    ]
    rows = [
        (number, slot, digits(scale, 4)) for number, bank in enumerate(banks) for slot, scale in bank.scales.items()
    ]
    yield Picture(
        f"{key}-scale-banks",
        "Scales by slot",
        "One line per layer and head: its scale at every bit-width, on a logarithmic axis. The point is the slot in use.",
        _banks(),
        {
            "banks": Table(("group", "slot", "scale"), rows),
            "groups": Table(("group", "role", "label", "tensor", "in_use"), groups),
        },
        panel=PANEL,
    )


@cache
def _counts() -> dict[str, Any]:
    bars = (
        alt.Chart(alt.NamedData("counts"))
        .mark_bar()
        .encode(
            x=alt.X(
                "slot:O", title="bits of the slot", axis=alt.Axis(labelAngle=0), scale=alt.Scale(domain=[*range(2, 9)])
            ),
            xOffset="kind:N",
            y=alt.Y("groups:Q", title="groups"),
            color=alt.Color("kind:N", legend=alt.Legend(title=None, orient="top")),
            tooltip=tips("kind", ("slot:Q", "bits", "d"), ("groups:Q", "groups", "d")),
        )
    )
    return bars.properties(height=180).to_dict()


@cache
def _banks() -> dict[str, Any]:
    x = alt.X("slot:O", title="bits of the slot", axis=alt.Axis(labelAngle=0))
    y = alt.Y("scale:Q", title="scale", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=5))
    lines = alt.Chart().mark_line(strokeWidth=0.7, opacity=0.5).encode(x=x, y=y, detail="group:N")
    used = (
        alt.Chart()
        .transform_filter("datum.slot == datum.in_use")
        .mark_point(filled=True, size=32, opacity=0.85)
        .encode(x=x, y=y, tooltip=tips("tensor", "label", ("slot:Q", "bits in use", "d"), ("scale:Q", "scale", ".4~g")))
    )
    panels = alt.layer(lines, used).properties(width=PANEL, height=130)
    facet = alt.Facet("role:N", title=None, sort=list(HEAD_ROLES))
    group = alt.LookupData(alt.NamedData("groups"), key="group", fields=["role", "label", "tensor", "in_use"])
    return (
        panels.facet(facet=facet, columns=4, data=alt.NamedData("banks"))
        .transform_lookup("group", from_=group)
        .resolve_scale(x="independent", y="independent")
        .to_dict()
    )
