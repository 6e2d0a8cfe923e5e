"""activations_of(): what activations.json says, see `activation_histogram`, as histograms.

What is drawn is checked here: a share that is no number would be a hole in the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .histogram import Bins, Histogram


@dataclass(frozen=True)
class Activations:
    """Histograms of all activations on few-bit grids, counted over so many training images."""

    images: int
    histograms: tuple[Histogram, ...]


def activations_of(record: dict[str, Any]) -> Activations:
    """Read the content of the file. Raises KeyError or TypeError for another content."""
    return Activations(
        int(record["images"]),
        tuple(
            _histogram(name, number, len(tensor["groups"]), bool(tensor["signed"]), group)
            for name, tensor in record["tensors"].items()
            for number, group in enumerate(tensor["groups"])
        ),
    )


def _histogram(name: str, number: int, groups: int, signed: bool, group: dict[str, Any]) -> Histogram:
    bits = int(group["bits"])
    values = clipped = None
    if "values" in group:
        low, width = _numbers([group["low"], group["width"]])
        values = Bins(low, width, _numbers(group["values"]))
        below, above = _numbers(group["clipped"])
        clipped = (below, above)
    codes = _numbers(group["codes"])
    return Histogram(name, number, groups, bits, -(2 ** (bits - 1)) if signed else 0, codes, values, clipped=clipped)


def _numbers(values: list[Any]) -> tuple[float, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{value!r} among the shares, which is no number")
    return tuple(map(float, values))
