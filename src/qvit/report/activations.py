"""activations_of(): what activations.json says, see `activation_histogram`, as histograms.

What is drawn is checked here: a share that is no number would be a hole in the page.

Channels with grids of their own (FQ-ViT in front of a LayerNorm) are as many as the network is wide, and of equally many
elements each: those of one bit-width are one histogram, its shares the means of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..evaluation.activation_histogram import BINS
from .histogram import Bins, Histogram
from .tensors import are_channels


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
            histogram
            for name, tensor in record["tensors"].items()
            for histogram in _histograms(name, bool(tensor["signed"]), tensor["groups"])
        ),
    )


def _histograms(name: str, signed: bool, groups: list[dict[str, Any]]) -> Iterator[Histogram]:
    found = [_histogram(name, number, len(groups), signed, group) for number, group in enumerate(groups)]
    if not are_channels(name, len(groups)):
        yield from found
        return
    for bits in sorted({channel.bits for channel in found}):
        yield _together([channel for channel in found if channel.bits == bits])


def _together(channels: list[Histogram]) -> Histogram:
    """One histogram of channels of one bit-width; their bins are of one window, whose empty ends each has left out."""
    codes = tuple(np.mean([channel.codes for channel in channels], 0).tolist())
    one = replace(channels[0], group=channels[0].bits, groups=0, codes=codes)
    bins = [channel.values for channel in channels if channel.values is not None]
    if not bins:
        return one
    low, width = min(b.low for b in bins), bins[0].width
    shares = np.zeros(BINS)
    for b in bins:
        first = round((b.low - low) / width)
        shares[first : first + len(b.shares)] += b.shares
    end = int(np.flatnonzero(shares)[-1]) + 1 if shares.any() else 0
    below, above = np.mean([channel.clipped for channel in channels if channel.clipped is not None], 0).tolist()
    return replace(one, values=Bins(low, width, tuple((shares / len(bins))[:end].tolist())), clipped=(below, above))


def _histogram(name: str, number: int, groups: int, signed: bool, group: dict[str, Any]) -> Histogram:
    bits = int(group["bits"])
    values = clipped = None
    if "values" in group:
        low, width = _numbers([group["low"], group["width"]])
        if width <= 0:
            raise TypeError(f"bins of width {width:g}")
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
