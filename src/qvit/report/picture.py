"""Picture: a chart, the tables it draws, and what it says in words. `page` and `png` show the same pictures.

A chart names its tables (`alt.NamedData`) and holds no data, so charts of one kind are one specification however many runs
there are, and tables that several charts share are in the page once. A table is columns and rows, about a third of the size
of a list of objects.

Widths. A chart either stretches to the width it finds (`panel` = 0), or is a grid of panels, each `panel` pixels wide, with as
many columns as fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from .theme import DASHES, SHAPES

Value = str | float | int | bool | tuple[float, ...] | None
SHOWN = "shown"  # the parameter of a chart that holds the names of the runs that are selected


@dataclass(frozen=True)
class Table:
    """Named columns and rows."""

    fields: tuple[str, ...]
    rows: Sequence[Sequence[Value]]

    def column(self, field: str) -> list[Any]:
        """All values of a field."""
        place = self.fields.index(field)
        return [row[place] for row in self.rows]

    def records(self) -> list[dict[str, Value]]:
        """One dict per row, as Vega-Lite has them."""
        return [dict(zip(self.fields, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """One picture.

    key      of the file and the element; unique in a report
    title    one line
    caption  what it shows and how to read it
    chart    a Vega-Lite specification whose data are names
    tables   name -> table
    panel    width of a panel of a grid in pixels, 0 for a chart that stretches
    canvas   draw pixels and not SVG: for thousands of marks
    """

    key: str
    title: str
    caption: str
    chart: dict[str, Any]
    tables: dict[str, Table]
    panel: int = 0
    canvas: bool = False


class Cast:
    """The runs of a report as encodings: every run has one colour, dash and shape in all charts.

    names   of the runs, in the order of the report
    legend  explain them inside the chart: a picture needs it, the page has a legend of its own
    """

    def __init__(self, names: Sequence[str], legend: bool) -> None:
        self.names = list(names)
        self.legend = alt.Legend(title=None, orient="bottom", columns=2, symbolLimit=0) if legend else None
        self.dashes = [list(DASHES[index % len(DASHES)]) for index in range(len(names))]
        self.shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]

    def color(self) -> alt.Color:
        """Colours of the theme's palette, in turn."""
        return alt.Color("run:N", scale=alt.Scale(domain=self.names), legend=self.legend)

    def dash(self) -> alt.StrokeDash:
        """Dashes of lines."""
        return alt.StrokeDash(
            "run:N",
            scale=alt.Scale(domain=self.names, range=self.dashes),
            legend=self.legend,
        )

    def shape(self) -> alt.Shape:
        """Shapes of points."""
        return alt.Shape("run:N", scale=alt.Scale(domain=self.names, range=self.shapes), legend=self.legend)

    def choice(self) -> alt.Parameter:
        """The parameter that the page sets when runs are selected; all of them at first."""
        return alt.param(name=SHOWN, value=self.names)

    def is_shown(self) -> str:
        """The filter that goes with it."""
        return f"indexof({SHOWN}, datum.run) >= 0"


def digits(value: float | None, figures: int = 5) -> float | None:
    """A number with as many figures as a chart can show, which is what keeps a page small."""
    return None if value is None else float(f"{value:.{figures}g}")


def domain(values: Iterable[float | None], least: float = 0.0) -> alt.Scale:
    """A scale around all values with a margin, also around a single one.

    least  of the margin, in the unit of the values; 0 means 3 % of the largest
    """
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    margin = max(0.06 * (high - low), least or 0.03 * max(abs(low), abs(high)), 1e-9)
    return alt.Scale(domain=[low - margin, high + margin], nice=False)


def tips(*fields: str | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltip lines: a field of text that is called like its line, or (field:type, title, format)."""
    return [
        alt.Tooltip(f"{field}:N", title=field)
        if isinstance(field, str)
        else alt.Tooltip(field[0], title=field[1], format=field[2])
        for field in fields
    ]


def names(values: Iterable[str], most: int = 4) -> str:
    """a, b, c and 3 more"""
    listed = list(values)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
