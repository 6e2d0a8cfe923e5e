"""Weights and activations on their grids, and how far those of the activations reach.

Bars are the codes, one per grid point, or a few where there are more than 64; the line is the density of the values they
were rounded from, where the run has them. Both in percent per step, so bars and line can be compared: what the line has
beyond the last bar was clipped into it. One tensor is drawn at a time; a group is one row of the table, its shares are lists
that the chart takes apart once the tensor is chosen, a quarter of the size of a row per share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import altair as alt

from ..evaluation.grid_histogram import codes_per_bar
from .histogram import Histogram
from .picture import Picture, Table, Value, digits, tips
from .run import Run
from .tensors import HEAD_ROLES, place_of

PANEL = 170
FIELDS = ("group", "tensor", "label", "first", "merged", "codes", "low", "width", "values")


def grids(run: Run, key: str) -> Iterator[Picture]:
    """Pictures of a run with an artifact."""
    if run.artifact is None:
        return
    yield _on_grids(
        f"{key}-weights",
        "Weights on their grids",
        "Bars: codes, one bar per grid point (per 2 or 4 of 7 or 8 bits). Line: the float weights that were rounded to them. Choose a tensor below.",
        run.artifact.histograms,
    )
    if run.activations is not None and run.activations.histograms:
        yield _on_grids(
            f"{key}-activations",
            "Activations on their grids",
            f"Bars: codes, as above. Line: the values in front of the rounding, of {run.activations.images} training "
            "images; what it has beyond the bars is clipped. Choose a tensor below.",
            run.activations.histograms,
        )
    ranges = [
        (place.role, label, tensor, r.bits, digits(r.low, 4), digits(r.high, 4))
        for r in run.artifact.ranges
        if r.tensor.startswith(("blocks.", "layers."))
        for tensor in (r.tensor.removesuffix(".heads"),)  # the input of proj, before its heads are merged
        for place in (place_of(tensor, r.group, r.groups),)
        for label in (place.label if r.groups else f"{place.label}, {r.bits}-bit channels",)
    ]
    if ranges:
        remarks = (
            " Channels with grids of their own are one line." if any(not r.groups for r in run.artifact.ranges) else ""
        )
        remarks += " Without the attention maps: their code c stands for 2^-c." if run.artifact.log_codes else ""
        yield Picture(
            f"{key}-activation-grids",
            "Grids of the activations",
            "From the value of the smallest code to that of the largest, for each layer and head (h). Beyond it is clipped."
            f"{remarks}",
            _ranges(),
            {"ranges": Table(("role", "label", "tensor", "bits", "low", "high"), ranges)},
            panel=PANEL,
        )


def _on_grids(key: str, title: str, caption: str, found: Sequence[Histogram]) -> Picture:
    tensors = tuple(dict.fromkeys(histogram.tensor for histogram in found))
    start = max(found, key=lambda histogram: histogram.groups).tensor
    rows = [_row(number, histogram) for number, histogram in enumerate(found)]
    return Picture(key, title, caption, _bars_and_line(tensors, start), {"groups": Table(FIELDS, rows)}, panel=PANEL)


def _row(number: int, histogram: Histogram) -> tuple[Value, ...]:
    """A group as FIELDS: `first` is the middle of the first bar, `low` and `width` are those of the bins of the values."""
    merged, values = codes_per_bar(histogram.bits), histogram.values
    return (
        *(number, histogram.tensor, _label(histogram), histogram.lowest + (merged - 1) / 2, merged),
        _short(histogram.codes),
        *((digits(values.low), digits(values.width), _short(values.shares)) if values is not None else (0, 1, ())),
    )


def _short(shares: Sequence[float]) -> tuple[float | int, ...]:
    """Three figures, and not more of a zero than it needs."""
    return tuple(0 if share == 0 else float(f"{share:.3g}") for share in shares)


def _label(histogram: Histogram) -> str:
    bits = f"{histogram.bits} bits"
    if histogram.scale is not None and histogram.groups:
        bits += f", scale {histogram.scale:.3g}"
    if histogram.clipped is not None:
        bits += f", {sum(histogram.clipped):.2f} % clipped"
    if not histogram.groups:
        return f"channels of {bits}"
    if histogram.groups == 1:
        return bits
    place = place_of(histogram.tensor, histogram.group, histogram.groups)
    if place.head is None:  # q, k and v of one tensor
        return f"{place.role}: {bits}"
    role = "" if histogram.scale is None else f"{place.role} "  # tells q, k and v of one weight apart
    return f"{role}h{place.head}: {bits}"


@cache
def _bars_and_line(tensors: tuple[str, ...], start: str) -> dict[str, Any]:
    chosen = alt.param(name="tensor", value=start, bind=alt.binding_select(options=list(tensors), name="Tensor "))
    x_title, y_title = "in steps of the scale", "% per step"

    bars = (
        alt.Chart()
        .transform_calculate(place="sequence(length(datum.codes))")
        .transform_flatten(["place", "codes"])
        .transform_calculate(code="datum.first + datum.place * datum.merged")
        .transform_calculate(left="datum.code - 0.4 * datum.merged", right="datum.code + 0.4 * datum.merged")
        .mark_bar(opacity=0.75)
        .encode(
            x=alt.X("left:Q", title=x_title),
            x2="right:Q",
            y=alt.Y("codes:Q", title=y_title),
            y2=alt.datum(0),
            tooltip=tips("tensor", "label", ("code:Q", "code", "~g"), ("codes:Q", "% per code", ".2f")),
        )
    )
    line = (
        alt.Chart()
        .transform_calculate(place="sequence(length(datum.values))")
        .transform_flatten(["place", "values"])
        .transform_calculate(middle="datum.low + (datum.place + 0.5) * datum.width")
        .mark_line(interpolate="monotone", strokeWidth=1.6, color="#e0662f")
        .encode(x=alt.X("middle:Q", title=x_title), y="values:Q", order="middle:Q")
    )
    panels = alt.layer(bars, line).properties(width=PANEL, height=120)
    return (
        panels.facet(
            facet=alt.Facet("label:N", title=None, sort=alt.EncodingSortField("group", op="min")),
            columns=4,
            data=alt.NamedData("groups"),
        )
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
