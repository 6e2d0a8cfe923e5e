"""read_artifact(): what a .qvit file says about its weights and grids, in numbers small enough for a page.

A weight's codes c stand for the values c * scale; histograms are in steps of the grid (`grid_histogram`), which has its
levels at whole numbers, or half a step above them where it has no zero (mid-rise: c = 2 q + 1). Beside that of the codes
stands that of the trained float weights, where the run still has them and they are the ones that were rounded: a method may
freeze weights that it made of them, which is seen by the codes not being theirs.

Groups are the blocks of the weight's scale, and of an activation those of its grid. Where each output channel of a weight has
a scale of its own, or each channel of an activation a grid, there are as many as the network is wide: the channels of one
bit-width are one group there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import qvit_runtime
from qvit_runtime.inspection import describe
from qvit_runtime.integer_ops import LogIntSoftmax
from qvit_runtime.program import Grid, Weight

from ..evaluation.grid_histogram import bar_shares
from .histogram import Bins, Histogram
from .tensors import are_channels

BINS = 32  # of the float weights of a group
OWN = 0.999  # share of codes that must be those of the float weights


@dataclass(frozen=True)
class Range:
    """The values that an activation's codes can stand for, one group: from `low` to `high`.

    In 2^bits - 1 equal steps, but for two-scaled codes: their two regions are one range of k bits, as `products` counts them.
    `groups` is 0 for all channels of one bit-width: from the lowest value of any to the highest.
    """

    tensor: str
    group: int
    groups: int
    bits: int
    low: float
    high: float


@dataclass(frozen=True)
class Artifact:
    """A frozen program. `description` is that of `qvit-runtime inspect`; `kib` the size of the file.

    ranges      of all activations but those of `log_codes`
    log_codes   activations whose code c stands for 2^-c (FQ-ViT's attention maps), and for no value on a grid
    """

    description: dict[str, Any]
    kib: float
    histograms: tuple[Histogram, ...]
    ranges: tuple[Range, ...]
    log_codes: tuple[str, ...]


def read_artifact(path: Path, tensors: dict[str, Tensor]) -> Artifact:
    """Read a .qvit file; `tensors` is the state of the trained module, or nothing. Raises ArtifactError naming the file."""
    program = qvit_runtime.load(path)
    histograms: list[Histogram] = []
    for name, weight in program.weights.items():
        histograms += _histograms(name, weight, tensors.get(name))
    description = describe(program)
    log_codes = tuple(op.output for op in program.ops if isinstance(op, LogIntSoftmax))
    ranges = [
        found
        for activation in description["activations"]
        if activation["name"] not in log_codes
        for found in _ranges(activation["name"], activation["bits"], program.buffers[activation["name"]].grid)
    ]
    return Artifact(description, path.stat().st_size / 1024, tuple(histograms), tuple(ranges), log_codes)


def _ranges(name: str, bits: Sequence[int], grid: Grid | None) -> Iterator[Range]:
    """`bits` as they are counted: of the two regions of two-scaled codes once, where the grid has them twice."""
    assert grid is not None  # `activations` lists buffers that hold codes
    shape = len(bits), -1  # (groups, regions)
    low, high = ((limit * grid.scale + grid.offset).reshape(shape) for limit in (grid.qmin, grid.qmax))
    if are_channels(name, len(bits)):
        for width in sorted(set(bits)):
            chosen = np.array(bits) == width
            yield Range(name, width, 0, width, float(low[chosen].min()), float(high[chosen].max()))
        return
    for group, width in enumerate(bits):
        yield Range(name, group, len(bits), width, float(low[group].min()), float(high[group].max()))


def _histograms(name: str, weight: Weight, values: Tensor | None) -> Iterator[Histogram]:
    rows, columns = weight.bits.shape
    height, width = weight.codes.shape[0] // rows, weight.codes.shape[1] // columns

    def spread(per_block: np.ndarray) -> np.ndarray:
        """(row groups, column groups) -> (out, in)"""
        return per_block.repeat(height, 0).repeat(width, 1)

    midrise = spread(weight.midrise)
    step, rise = spread(weight.scale) * np.where(midrise, 2, 1), np.where(midrise, 0.5, 0.0)
    codes = np.where(midrise, weight.codes >> 1, weight.codes)
    steps = None if values is None else values.numpy().reshape(codes.shape) / step
    if steps is not None and not _are_theirs(codes, steps - rise, spread(weight.bits)):
        steps = None
    by_channel = rows > 1 and height == 1
    blocks = weight.bits if by_channel else np.arange(weight.bits.size).reshape(rows, columns)
    inside = spread(blocks)
    for block in np.unique(blocks):
        chosen = inside == block
        bits = int(weight.bits[blocks == block][0])
        yield Histogram(
            tensor=name,
            group=int(block),
            groups=0 if by_channel else weight.bits.size,
            bits=bits,
            scale=float(step[chosen].mean()),
            lowest=float(rise[chosen].min()) - 2 ** (bits - 1),
            codes=_of_codes(codes[chosen], bits),
            values=None if steps is None else _of_values(steps[chosen]),
        )


def _are_theirs(codes: np.ndarray, steps: np.ndarray, bits: np.ndarray) -> bool:
    half = 2 ** (bits - 1)
    return bool((np.rint(np.clip(steps, -half, half - 1)) == codes).mean() > OWN)


def _of_codes(codes: np.ndarray, bits: int) -> tuple[float, ...]:
    counts = np.bincount(codes.astype(np.int64) + 2 ** (bits - 1), minlength=2**bits)
    return tuple(bar_shares(counts).tolist())


def _of_values(steps: np.ndarray) -> Bins:
    counts, edges = np.histogram(steps, bins=BINS)
    width = float(edges[1] - edges[0])
    return Bins(float(edges[0]), width, tuple((counts * (100 / width / steps.size)).tolist()))
