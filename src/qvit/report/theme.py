"""Colours: one palette and one Vega configuration for a light page, one for a dark page.

Six colours, each with a contrast of at least 3 : 1 against its background (WCAG 2.2, 1.4.11), and every two of them at least
0.13 apart in OKLab for normal sight, protanopia, deuteranopia and tritanopia (Machado et al. 2009, full severity); they were
found by a search and a test measures them. Colour is never alone: runs also differ in dash and shape, heat maps print their
numbers. Six colours, seven shapes and five dashes have no common factor, so the first 30 lines and 42 points look different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (7, 2), (2, 2), (9, 2, 2, 2), (12, 4))
BITS_SCHEME: Literal["viridis"] = (
    "viridis"  # light is many bits; ordered in lightness, so it survives colour blindness and grey print
)
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """A background and what can be seen on it; CSS colours."""

    background: str
    text: str
    quiet: str
    grid: str
    palette: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """The Vega-Lite `config` of this theme."""
        axis = {
            "labelColor": self.text,
            "titleColor": self.text,
            "tickColor": self.quiet,
            "domainColor": self.quiet,
            "gridColor": self.grid,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "labelLimit": 170,
        }
        label = {"labelColor": self.text, "titleColor": self.text, "labelFontSize": 11, "titleFontWeight": "normal"}
        return {
            "background": "transparent",
            "font": FONT,
            "view": {"stroke": self.grid},
            "axis": axis,
            "legend": {**label, "titleFontSize": 11, "labelLimit": 260, "symbolStrokeColor": self.quiet},
            "header": {**label, "labelFontSize": 12, "labelFontWeight": "bold", "labelLimit": 260},
            "title": {"color": self.text, "fontSize": 13, "anchor": "start"},
            "text": {"color": self.text, "fontSize": 11},
            "rule": {"color": self.quiet},
            "line": {"strokeWidth": 1.8},
            "mark": {"color": self.palette[0]},
            "range": {"category": list(self.palette)},
        }


LIGHT = Theme(
    background="#ffffff",
    text="#1d2125",
    quiet="#6b737c",
    grid="#e3e6e9",
    palette=("#3f5d82", "#fd4f14", "#279e7e", "#2e1372", "#b563dd", "#7e452c"),
)
DARK = Theme(
    background="#15181c",
    text="#e4e7ea",
    quiet="#8d969f",
    grid="#30363d",
    palette=("#8ca8f9", "#e9a763", "#5e8b09", "#fff827", "#b7739b", "#97f0cb"),
)
