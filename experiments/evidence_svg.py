"""Just enough SVG for the figures of the evidence: panels with axes, lines and marks, readable on a light and on a dark page.

A figure is a string of elements whose colours are classes; its style sheet has the report's two themes (`qvit.report.theme`),
the dark one behind `prefers-color-scheme`. Coordinates are rounded to a tenth of a pixel, so the same numbers give the
same bytes everywhere, and a figure in the repository changes only with its data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from qvit.report.theme import DARK, FONT, LIGHT, Theme

CHAR = 6.2  # pixels of a character of 11 pixels, on average


def figure(width: float, height: float, title: str, elements: Iterable[str]) -> str:
    """The whole file; `title` is what a screen reader says."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" role="img">'
    dark = f"@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"
    fixed = f"text{{font:11px {FONT}}}path{{fill:none}}.thin{{stroke-width:.8;stroke-opacity:.75}}.dash{{stroke-dasharray:3 3}}"
    style = f"<style>{fixed}{_colours(LIGHT)}{dark}</style>"
    return "\n".join([head, f"<title>{escape(title)}</title>", style, *elements, "</svg>"]) + "\n"


def _colours(theme: Theme) -> str:
    marks = "".join(f".s{i}{{stroke:{c}}}.f{i}{{fill:{c}}}" for i, c in enumerate(theme.palette))
    return f"text{{fill:{theme.text}}}.quiet{{stroke:{theme.quiet}}}.grid{{stroke:{theme.grid}}}{marks}"


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:g}"  # + 0.0: no minus in front of zero


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words; anchor is start, middle or end."""
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], classes: str) -> str:
    """A line through points in pixels."""
    start, *others = (f"{number(x)} {number(y)}" for x, y in points)
    return f'<path class="{classes}" d="M{start}{"L" + " ".join(others) if others else ""}"/>'


def mark(x: float, y: float, kind: int, size: float) -> str:
    """A filled square, triangle, circle, diamond or triangle on its tip (kinds 0 to 4) in the colour of the kind; `size` is half its height."""
    match kind:
        case 0:
            side = number(2 * size)
            return f'<rect class="f0" x="{number(x - size)}" y="{number(y - size)}" width="{side}" height="{side}"/>'
        case 1:
            return _polygon(kind, (x, y - size), (x + size, y + size), (x - size, y + size))
        case 2:
            return f'<circle class="f2" cx="{number(x)}" cy="{number(y)}" r="{number(size)}"/>'
        case 3:
            return _polygon(kind, (x, y - size), (x + size, y), (x, y + size), (x - size, y))
        case _:
            return _polygon(kind, (x, y + size), (x + size, y - size), (x - size, y - size))


def _polygon(kind: int, *corners: tuple[float, float]) -> str:
    return f'<polygon class="f{kind}" points="{" ".join(f"{number(a)},{number(b)}" for a, b in corners)}"/>'


def legend(x: float, y: float, names: Sequence[tuple[int, str]]) -> list[str]:
    """Marks with their names, side by side."""
    elements = []
    for kind, name in names:
        elements += [mark(x, y - 4, kind, 4), text(x + 9, y, name)]
        x += 24 + CHAR * len(name)
    return elements


@dataclass(frozen=True)
class Panel:
    """A rectangle in pixels and the ranges of values that it shows; y grows upwards."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self.y_range
        return self.top + self.height * (high - value) / (high - low)

    def axes(self, title: str, x_title: str, y_title: str) -> list[str]:
        """Grid, numbers and titles."""
        right, bottom = self.left + self.width, self.top + self.height
        elements = [text(self.left, self.top - 8, title)]
        for value in ticks(*self.y_range):
            y = self.y(value)
            elements += [path([(self.left, y), (right, y)], "grid"), text(self.left - 5, y + 4, f"{value:g}", "end")]
        for value in ticks(*self.x_range):
            elements.append(text(self.x(value), bottom + 14, f"{value:g}", "middle"))
        elements += [
            path([(self.left, bottom), (right, bottom)], "quiet"),
            text(right, bottom + 28, x_title, "end"),
            text(self.left - 34, self.top - 8, y_title, "start")
            if not title
            else text(right, self.top - 8, y_title, "end"),
        ]
        return elements


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
