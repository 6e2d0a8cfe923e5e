"""Where the bits went: heat maps of one run, and the mean of every role in all runs.

by head    one panel per role that heads own (q, k, v and their weights, attention map and output, proj): layer x head
by layer   everything that has one bit-width: layer x tensor
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import altair as alt

from .picture import Cast, Picture, Table, digits, tips
from .run import Run
from .tensors import HEAD_ROLES, place_of
from .theme import BITS_SCHEME

PANEL = 150
BITS_SCALE = alt.Scale(scheme=BITS_SCHEME, domain=[2, 8], clamp=True)
FIELDS = ("layer", "role", "head", "bits", "tensor")


def bit_maps(run: Run, key: str) -> Iterator[Picture]:
    """The heat maps of a run that knows its bits."""
    cells = [
        (place.layer, place.role, place.head, width, tensor)
        for tensor, widths in run.bits.items()
        for group, width in enumerate(widths)
        for place in (place_of(tensor, group, len(widths)),)
    ]
    by_head = [cell for cell in cells if cell[2] is not None]
    by_layer = [cell for cell in cells if cell[2] is None]
    if by_head:
        yield Picture(
            f"{key}-bits-by-head",
            "Bits by layer and head",
            "Each panel is one tensor, each cell one head of one layer, each number its bit-width.",
            _by_head(),
            {"cells": Table(FIELDS, by_head)},
            panel=PANEL,
        )
    if by_layer:
        yield Picture(
            f"{key}-bits-by-layer",
            "Bits by layer",
            "Tensors with one bit-width. An input is what a linear layer is fed with, as integers.",
            _by_layer(),
            {"cells": Table(FIELDS, by_layer)},
        )


def _cells(x: alt.X, y: alt.Y) -> alt.LayerChart:
    base = alt.Chart().encode(x=x, y=y, tooltip=tips("layer", "role", "head", "bits", "tensor"))
    layers = alt.layer(
        base.mark_rect().encode(color=alt.Color("bits:Q", scale=BITS_SCALE, legend=None)),
        base.mark_text(fontSize=10).encode(
            text="bits:Q", color=alt.condition("datum.bits > 5", alt.value("#111111"), alt.value("#ffffff"))
        ),
    )
    assert isinstance(layers, alt.LayerChart)
    return layers


@cache
def _by_head() -> dict[str, Any]:
    x = alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0))
    y = alt.Y("layer:N", title="layer", sort=None)
    panels = _cells(x, y).properties(width=PANEL, height=alt.Step(17))
    facet = alt.Facet("role:N", title=None, sort=list(HEAD_ROLES))
    return (
        panels.facet(facet=facet, columns=3, data=alt.NamedData("cells"))
        .resolve_scale(x="independent", y="independent")
        .to_dict()
    )


@cache
def _by_layer() -> dict[str, Any]:
    x = alt.X("role:N", title=None, sort=None, axis=alt.Axis(labelAngle=-40))
    y = alt.Y("layer:N", title="layer", sort=None)
    chart = _cells(x, y).properties(height=alt.Step(19), data=alt.NamedData("cells"))
    return chart.to_dict()


def mean_bits(runs: Sequence[Run], cast: Cast) -> Iterator[Picture]:
    """Mean bits of every role, all runs in one picture."""
    rows = [(run.name, role, digits(mean)) for run in runs for role, mean in _means(run).items()]
    if rows:
        yield Picture(
            "bits-by-role",
            "Mean bits by tensor",
            "Mean over layers and heads, each counted alike. What a run gave more bits to lies further to the right.",
            _by_role(cast),
            {"means": Table(("run", "role", "bits"), rows)},
        )


def _means(run: Run) -> dict[str, float]:
    found: dict[str, list[int]] = {}
    for tensor, widths in run.bits.items():
        for group, width in enumerate(widths):
            place = place_of(tensor, group, len(widths))
            role = place.role if tensor.startswith(("blocks.", "layers.")) else tensor
            found.setdefault(role, []).append(width)
    return {role: sum(widths) / len(widths) for role, widths in found.items()}


def _by_role(cast: Cast) -> dict[str, Any]:
    points = (
        alt.Chart(alt.NamedData("means"))
        .transform_filter(cast.is_shown())
        .mark_point(size=70, strokeWidth=2, filled=False, opacity=1)
        .encode(
            x=alt.X("bits:Q", title="mean bits", scale=alt.Scale(domain=[2, 8])),
            y=alt.Y("role:N", title=None, sort=None, axis=alt.Axis(grid=True)),
            color=cast.color(),
            shape=cast.shape(),
            tooltip=tips("run", "role", ("bits:Q", "mean bits", ".2f")),
        )
    )
    return points.properties(height=alt.Step(20)).add_params(cast.choice()).to_dict()
