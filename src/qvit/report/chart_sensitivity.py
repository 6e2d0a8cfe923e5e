"""What breaks under quantization: the rows of an analysis as bars with their 95 % intervals, and every site as a heat map.

alone        only this is quantized: points of top-1 that are lost       (analyze.results: loss)
all but one  everything else is quantized: points that are won back      (gain)
sites        one group of one tensor is quantized: signal over noise at the logits, in dB; low is sensitive
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import altair as alt

from .picture import Picture, Table, digits, tips
from .run import Run
from .tensors import HEAD_ROLES, place_of

Record = dict[str, Any]
PANEL = 150
MODES = (
    ("alone", "loss", "lost when only this is quantized"),
    ("all but", "gain", "won back when only this stays float"),
)
KINDS = (("component", "components"), ("part", "parts"), ("layer", "layers"), ("head", "heads"))
FIELDS = ("name", "bits", "value", "low", "high", "agreement", "rank")


def sensitivity(run: Run, key: str) -> Iterator[Picture]:
    """The pictures of a run directory of `qvit analyze`."""
    if run.analysis is None:
        return
    rows: list[Record] = run.analysis["rows"]
    for steps in dict.fromkeys(row["finetune_steps"] for row in rows):
        after = f" after {steps} training steps" if steps else ""
        for mode, value, said in MODES:
            for kind, plural in KINDS:
                chosen = [r for r in rows if (r["mode"], r["kind"], r["finetune_steps"]) == (mode, kind, steps)]
                if chosen:
                    yield Picture(
                        f"{key}-{mode.replace(' ', '-')}-{kind}{f'-{steps}' if steps else ''}",
                        f"Sensitivity of {plural}: points {said}{after}",
                        "Bars with 95 % intervals, paired image by image; an interval that holds zero means: no difference "
                        "was measured. Sorted by the mean over the bit-widths.",
                        _bars(f"points {said.partition(' when')[0]}", len({row["bits"] for row in chosen})),
                        {"rows": Table(FIELDS, _sorted(chosen, value))},
                    )
    sites = [cell for site in run.analysis["sites"] for cell in _cells(site)]
    if sites:
        yield Picture(
            f"{key}-sites",
            "Sensitivity of every head of every tensor",
            "Signal over noise at the logits when this group alone is quantized, in dB: dark is sensitive.",
            _sites(tuple(sorted({cell[4] for cell in sites}))),
            {"cells": Table(("layer", "role", "head", "tensor", "bits", "decibels"), sites)},
            panel=PANEL,
        )


def _sorted(rows: list[Record], value: str) -> list[tuple[Any, ...]]:
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["name"]] = totals.get(row["name"], 0.0) + row[value]
    return [
        (
            *(row["name"], row["bits"], digits(row[value]), digits(row[value] - row[f"{value}_half_width"])),
            *(digits(row[value] + row[f"{value}_half_width"]), row.get("agreement"), row.get("rank")),
        )
        for row in sorted(rows, key=lambda row: (-totals[row["name"]], row["bits"]))
    ]


@cache
def _bars(title: str, widths: int) -> dict[str, Any]:
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=130)),
        yOffset=alt.YOffset("bits:O"),
        tooltip=tips(
            *("name", "bits"),
            ("value:Q", title, ".2f"),
            ("low:Q", "interval from", ".2f"),
            ("high:Q", "interval to", ".2f"),
            ("agreement:Q", "same class as float, %", ".1f"),
            "rank",
        ),
    )
    bars = base.mark_bar(opacity=0.8).encode(
        x=alt.X("value:Q", title=title),
        color=alt.Color("bits:O", scale=alt.Scale(range="category"), legend=alt.Legend(title="bits", orient="top")),
    )
    intervals = base.mark_rule(strokeWidth=1.2).encode(x="low:Q", x2="high:Q")
    return (
        alt.layer(bars, intervals).properties(height=alt.Step(max(16, 8 * widths + 4), **{"for": "position"})).to_dict()
    )


def _cells(site: Record) -> Iterator[tuple[Any, ...]]:
    groups = site["logit_sqnr_db"]
    for group, decibels in enumerate(groups):
        place = place_of(site["tensor"], group, len(groups))
        if place.head is not None:
            yield place.layer, place.role, place.head, site["tensor"], site["bits"], decibels


@cache
def _sites(widths: tuple[int, ...]) -> dict[str, Any]:
    chosen = alt.param(name="width", value=widths[0], bind=alt.binding_select(options=list(widths), name="Bits "))
    cells = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:N", title="layer", sort=None),
            color=alt.Color(
                "decibels:Q",
                scale=alt.Scale(scheme="viridis"),
                legend=alt.Legend(title="dB", orient="top", gradientLength=160),
            ),
            tooltip=tips("tensor", "role", "head", "bits", ("decibels:Q", "dB at the logits", ".1f")),
        )
        .properties(width=PANEL, height=alt.Step(17))
    )
    facet = alt.Facet("role:N", title=None, sort=list(HEAD_ROLES))
    return (
        cells.facet(facet=facet, columns=3, data=alt.NamedData("cells"))
        .transform_filter("datum.bits == width")
        .add_params(chosen)
        .resolve_scale(x="independent", y="independent")
        .to_dict()
    )
