"""write_pictures(): the charts of a page as PNG files, drawn by vl-convert, without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import vl_convert

from ..system.storage import write_atomic
from .picture import Picture
from .theme import LIGHT

WIDTH = 640  # of a chart that would stretch, in CSS pixels
SCALE = 2  # pixels of the file for each


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """One file per picture, called by its key; returns the paths."""
    config = {**LIGHT.config(), "background": LIGHT.background}
    written = []
    for picture in pictures:
        spec = {
            **picture.chart,
            "title": picture.title,
            "datasets": {name: table.records() for name, table in picture.tables.items()},
        }
        if not picture.panel:
            spec["width"] = WIDTH
        path = folder / f"{picture.key}.png"
        write_atomic(path, vl_convert.vegalite_to_png(spec, scale=SCALE, config=config))
        written.append(path)
    return written
