"""activations.json: how the activations of a frozen program lie on their grids.

A scale is a compromise between steps that are too coarse and a range that is too short. Which of the two hurts is seen by
laying the values beside the codes they became. For every buffer that an op rounds to, and each of its groups, the file has

    bits      of the codes
    codes     percent per step of each bar, over the whole grid                                    `grid_histogram`
    seen      smallest and largest u = (value - offset) / scale in front of the rounding
    clipped   percent of the values that round to a code below the grid, and above it: rint(u) < qmin, rint(u) > qmax
    values    density of u in percent per step, in bins of `width` steps from `low` on; empty bins at the ends are left out

The last four are known where values are rounded (`Quantize`); integer-only ops round codes to codes and have the first
two. The window of the values is half a grid wider than the grid at either end, 64 bins of 2^bits / 32 steps: what lies
beyond it is in `clipped` and in `seen`.

The images are the first 32 of the calibration loader, training images without augmentation; nobody has to look at the
evaluation split for this. One image runs at a time, so memory is that of its buffers.

Left out are codes of 16 and 32 bits (residual streams and sums of integer-only programs: never the scarce ones), two-scaled
codes, which are two grids in one, and ops that only move codes about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

import qvit_runtime
from qvit_runtime import program as p
from qvit_runtime.inspection import Rounding
from qvit_runtime.integer import batch_axis
from qvit_runtime.integer_ops import QuantizeRegions

from ..calibration.calibrate import Images, calibration_images
from ..system.runs import Run
from ..system.storage import write_atomic
from .grid_histogram import bar_shares

ACTIVATIONS = "activations.json"
IMAGES = 32
BINS = 64
DECIMALS = 3


class GroupCounts:
    """What is counted of one group while images stream by.

    codes    of each code from qmin on, integers (2^bits,)
    values   of u in each bin, integers (BINS,); `low` is the left edge of the first bin, `width` of each, in steps
    clipped  elements below and above the grid, integers (2,)
    seen     smallest and largest u, float64 (2,)
    """

    def __init__(self, bits: int, qmin: int) -> None:
        self.bits, self.qmin, self.qmax = bits, qmin, qmin + 2**bits - 1
        self.width = 2 * 2**bits / BINS
        self.low = qmin - 0.5 - 2**bits / 2
        self.codes = np.zeros(2**bits, np.int64)
        self.values = np.zeros(BINS, np.int64)
        self.clipped = np.zeros(2, np.int64)
        self.seen = np.array([np.inf, -np.inf])

    def add_codes(self, codes: np.ndarray) -> None:
        """Count integer codes of any shape."""
        self.codes += np.bincount(codes.ravel().astype(np.int64) - self.qmin, minlength=len(self.codes))

    def add_values(self, steps: np.ndarray) -> None:
        """Count values of any shape, in steps."""
        self.values += np.histogram(steps, BINS, (self.low, self.low + BINS * self.width))[0]
        nearest = np.rint(steps)
        self.clipped += [(nearest < self.qmin).sum(), (nearest > self.qmax).sum()]
        self.seen = np.array([min(self.seen[0], steps.min()), max(self.seen[1], steps.max())], np.float64)

    def summary(self) -> dict[str, Any]:
        """The group as the file has it; every group has codes, values only where some were added."""
        found: dict[str, Any] = {"bits": self.bits, "codes": _rounded(bar_shares(self.codes))}
        if self.seen[0] > self.seen[1]:
            return found
        filled = np.flatnonzero(self.values)
        first, end = (filled[0], filled[-1] + 1) if len(filled) else (0, 0)
        elements = self.codes.sum()
        return found | {
            "seen": _rounded(self.seen),
            "clipped": _rounded(100 * self.clipped / elements),
            "low": float(self.low + first * self.width),
            "width": self.width,
            "values": _rounded(self.values[first:end] * (100 / self.width / elements)),
        }


def activation_histograms(program: qvit_runtime.Program, images: np.ndarray) -> dict[str, Any]:
    """The content of activations.json for float32 images (batch, channels, height, width), at least one."""
    ops = list(_watched(program))
    keep = {op.output for op in ops} | {op.input for op in ops if isinstance(op, p.Quantize)}
    grids = {op.output: _grid(program, op.output) for op in ops}
    counts = {
        name: [GroupCounts(bits, int(low)) for bits, low in zip(grid.bits, grid.qmin, strict=True)]
        for name, grid in grids.items()
    }
    for image in images:
        live = qvit_runtime.trace(program, image[None], keep=tuple(keep))
        for op in ops:
            grid = grids[op.output]
            for group, codes in zip(counts[op.output], _by_group(live[op.output], grid), strict=True):
                group.add_codes(codes)
            if isinstance(op, p.Quantize):
                parts = zip(_by_group(live[op.input], grid), grid.offset, grid.scale, strict=True)
                for group, (values, offset, scale) in zip(counts[op.output], parts, strict=True):
                    group.add_values((values - offset) / scale)
    return {
        "schema": 1,
        "images": len(images),
        "tensors": {
            name: {"signed": grids[name].signed, "groups": [group.summary() for group in groups]}
            for name, groups in counts.items()
        },
    }


def write_activations(run: Run, program: qvit_runtime.Program, calibration: Images) -> None:
    """Write activations.json from the first IMAGES images of a calibration loader."""
    images: list[np.ndarray] = []
    for batch in calibration_images(calibration, IMAGES):
        images.extend(batch.numpy())
        if len(images) >= IMAGES:
            break
    found = activation_histograms(program, np.stack(images[:IMAGES]))
    write_atomic(run.folder / ACTIVATIONS, json.dumps(found, separators=(",", ":")).encode())


def _watched(program: qvit_runtime.Program) -> Iterator[Rounding]:
    """The ops that round to one grid of few bits."""
    for op in program.ops:
        if not isinstance(op, Rounding) or isinstance(op, QuantizeRegions):
            continue
        if max(_grid(program, op.output).bits) <= p.MAX_BITS:
            yield op


def _grid(program: qvit_runtime.Program, buffer: str) -> p.Grid:
    grid = program.buffers[buffer].grid
    assert grid is not None  # of the output of a rounding op
    return grid


def _by_group(array: np.ndarray, grid: p.Grid) -> list[np.ndarray]:
    """(batch, ...) -> one part per group of the grid."""
    return np.split(array, grid.groups, batch_axis(grid))


def _rounded(shares: np.ndarray) -> list[float]:
    return np.round(shares, DECIMALS).tolist()
