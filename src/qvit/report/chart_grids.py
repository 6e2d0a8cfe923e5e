"""Weights on their grids, and the grids of the activations.

Weights: bars are the codes of the artifact, one per grid point, or a few where there are more than 64; the line is the density of the float weights they were rounded
from, where the run has them. Both in percent per step, so bars and line can be compared: what the line has beyond the last bar
was clipped into it.

Activations: a run keeps none, so there is no histogram of them; what their codes can stand for is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import altair as alt

from .artifact import Histogram
from .picture import Picture, Table, digits, tips
from .read import Run
from .tensors import HEAD_ROLES, place_of

PANEL = 170


def grids(run: Run, key: str) -> Iterator[Picture]:
    """Pictures of a run with an artifact."""
    if run.artifact is None:
        return
    found = run.artifact.histograms
    codes = [(n, 1, middle, digits(share, 3)) for n, h in enumerate(found) for middle, share in h.codes]
    values = [
        (n, 0, digits((low + high) / 2, 3), digits(share, 3))
        for n, h in enumerate(found)
        for low, high, share in h.values
    ]
    yield Picture(
        f"{key}-weights",
        "Weights on their grids",
        "Bars: codes, one bar per grid point (per 2 or 4 of 7 or 8 bits). Line: the float weights that were rounded to them. Choose a tensor below.",
        _weights(tuple(dict.fromkeys(h.tensor for h in found))),
        {
            "steps": Table(("group", "is_code", "x", "share"), [*codes, *values]),
            "groups": Table(
                ("group", "tensor", "label", "merged"),
                [(n, h.tensor, _label(h), h.merged) for n, h in enumerate(found)],
            ),
        },
        panel=PANEL,
    )
    ranges = [
        (place.role, place.label, tensor, r.bits, digits(r.low, 4), digits(r.high, 4))
        for r in run.artifact.ranges
        if r.tensor.startswith(("blocks.", "layers."))
        for tensor in (r.tensor.removesuffix(".heads"),)  # the input of proj, before its heads are merged
        for place in (place_of(tensor, r.group, r.groups),)
    ]
    if ranges:
        yield Picture(
            f"{key}-activation-grids",
            "Grids of the activations",
            "From the value of the smallest code to that of the largest, for each layer and head (h). Beyond it is "
            "clipped. A run keeps no activations, so there is no histogram of them.",
            _ranges(),
            {"ranges": Table(("role", "label", "tensor", "bits", "low", "high"), ranges)},
            panel=PANEL,
        )


def _label(histogram: Histogram) -> str:
    bits = f"{histogram.bits} bits"
    if not histogram.groups:
        return f"channels of {bits}"
    if histogram.groups == 1:
        return f"{bits}, scale {histogram.scale:.3g}"
    place = place_of(histogram.tensor, histogram.group, histogram.groups)
    return f"{place.role} h{place.head}: {bits}, scale {histogram.scale:.3g}"


@cache
def _weights(tensors: tuple[str, ...]) -> dict[str, Any]:
    start = next((name for name in tensors if name.endswith("qkv.weight")), tensors[0])
    chosen = alt.param(name="tensor", value=start, bind=alt.binding_select(options=list(tensors), name="Tensor "))
    group = alt.LookupData(alt.NamedData("groups"), key="group", fields=["tensor", "label", "merged"])
    x_title, y_title = "value in steps of the scale", "% per step"

    bars = (
        alt.Chart()
        .transform_filter("datum.is_code")
        .transform_calculate(left="datum.x - 0.4 * datum.merged", right="datum.x + 0.4 * datum.merged")
        .mark_bar(opacity=0.75)
        .encode(
            x=alt.X("left:Q", title=x_title),
            x2="right:Q",
            y=alt.Y("share:Q", title=y_title),
            y2=alt.datum(0),
            tooltip=tips("tensor", "label", ("x:Q", "code", "~g"), ("share:Q", "% of the weights per code", ".2f")),
        )
    )
    line = (
        alt.Chart()
        .transform_filter("!datum.is_code")
        .mark_line(interpolate="monotone", strokeWidth=1.6, color="#e0662f")
        .encode(x=alt.X("x:Q", title=x_title), y="share:Q", order="x:Q")
    )
    panels = alt.layer(bars, line).properties(width=PANEL, height=120)
    return (
        panels.facet(
            facet=alt.Facet("label:N", title=None, sort=alt.EncodingSortField("group", op="min")),
            columns=4,
            data=alt.NamedData("steps"),
        )
        .transform_lookup("group", from_=group)
        .transform_filter("datum.tensor == tensor")
        .add_params(chosen)
        .resolve_scale(x="independent", y="independent")
        .to_dict()
    )


@cache
def _ranges() -> dict[str, Any]:
    rules = (
        alt.Chart()
        .mark_rule(strokeWidth=3)
        .encode(
            x=alt.X("low:Q", title="value", axis=alt.Axis(tickCount=4)),
            x2="high:Q",
            y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelOverlap=True, ticks=False)),
            tooltip=tips(
                "tensor", "label", ("bits:Q", "bits", "d"), ("low:Q", "from", ".4~g"), ("high:Q", "to", ".4~g")
            ),
        )
    )
    panels = rules.properties(width=PANEL, height=alt.Step(9))
    facet = alt.Facet("role:N", title=None, sort=list(HEAD_ROLES))
    return (
        panels.facet(facet=facet, columns=4, data=alt.NamedData("ranges"))
        .resolve_scale(x="independent", y="independent")
        .to_dict()
    )
