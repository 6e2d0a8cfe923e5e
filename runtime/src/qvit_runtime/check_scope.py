"""Scope: the program as the check of one op sees it, with the questions that many ops ask.

Each question fails with the op's own name in the message. A buffer of codes is read by width: `codes` takes what the ops
of `program` can multiply, up to 8 bits, unless it is told that this op can handle wider ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import program as p
from .check_data import fail
from .integer_bounds import bounds

WIDEST = 32


class Scope:
    """`writers` says which kind of op wrote each buffer so far; the program's input was written by none."""

    def __init__(self, program: p.Program, where: str, writers: Mapping[str, type]) -> None:
        self.program = program
        self.where = where
        self.writers = writers

    def demand(self, holds: bool, field: str, found: object, allowed: str) -> None:
        if not holds:
            raise fail(f"{self.where}: {field}", found, allowed)

    def values(self, name: str, ranks: tuple[int, ...] = (1, 2, 3, 4)) -> tuple[int, ...]:
        """Shape of a buffer that must hold values and have one of these ranks."""
        buffer = self.program.buffers[name]
        self.demand(buffer.grid is None, f"input {name!r}", "codes", "values")
        self.demand(len(buffer.shape) in ranks, f"input {name!r}", buffer.shape, f"rank {_either(ranks)}")
        return buffer.shape

    def codes(
        self, name: str, ranks: tuple[int, ...] = (1, 2, 3, 4), widest: int = p.MAX_BITS
    ) -> tuple[tuple[int, ...], p.Grid]:
        """Shape and grid of a buffer that must hold codes of at most `widest` bits and have one of these ranks."""
        shape = self.program.buffers[name].shape
        self.demand(len(shape) in ranks, f"input {name!r}", shape, f"rank {_either(ranks)}")
        grid = self.grid(name)
        found = f"codes of {max(grid.bits)} bits"
        self.demand(max(grid.bits) <= widest, f"input {name!r}", found, f"codes of at most {widest} bits")
        return shape, grid

    def grid(self, name: str, role: str = "input") -> p.Grid:
        grid = self.program.buffers[name].grid
        if grid is None:
            raise fail(f"{self.where}: {role} {name!r}", "values", "codes")
        return grid

    def groups_on(self, name: str, axis: int) -> None:
        """One group, or groups along this axis."""
        grid = self.grid(name)
        axis %= len(self.program.buffers[name].shape)
        found = f"{grid.groups} along axis {grid.axis}"
        self.demand(
            grid.groups == 1 or grid.axis == axis, f"groups of {name!r}", found, f"1, or more along axis {axis}"
        )

    def no_offset(self, name: str) -> None:
        grid = self.grid(name)
        self.demand(not grid.offset.any(), f"offset of {name!r}", grid.offset, "0")

    def one_group(self, name: str) -> None:
        grid = self.grid(name)
        self.demand(grid.groups == 1, f"groups of {name!r}", grid.groups, "1")

    def writes_values(self, name: str, shape: tuple[int, ...]) -> None:
        buffer = self.program.buffers[name]
        self.demand(buffer.grid is None, f"output {name!r}", "codes", "values")
        self.demand(buffer.shape == shape, f"output {name!r}", buffer.shape, str(shape))

    def writes_codes(self, name: str, shape: tuple[int, ...], grid: p.Grid, axis: int) -> None:
        """The same codes in another arrangement: the grid is unchanged but for the axis of its groups."""
        buffer = self.program.buffers[name]
        self.demand(buffer.shape == shape, f"output {name!r}", buffer.shape, str(shape))
        declared = self.grid(name, "output")
        same = (
            declared.bits == grid.bits
            and declared.signed == grid.signed
            and np.array_equal(declared.scale, grid.scale)
            and np.array_equal(declared.offset, grid.offset)
        )
        self.demand(same, f"grid of {name!r}", "another one", "the grid of the input")
        moved = grid.groups == 1 or declared.axis == axis
        self.demand(moved, f"grid axis of {name!r}", declared.axis, str(axis))

    def rounds_to(self, name: str, shape: tuple[int, ...], widest: int, narrowest: int = p.MIN_BITS) -> p.Grid:
        """The grid of an output that the op rounds and clips to, of `narrowest` to `widest` bits."""
        buffer, grid = self.program.buffers[name], self.grid(name, "output")
        self.demand(buffer.shape == shape, f"output {name!r}", buffer.shape, str(shape))
        found = f"codes of {max(grid.bits)} bits"
        self.demand(max(grid.bits) <= widest, f"output {name!r}", found, f"codes of at most {widest} bits")
        found = f"codes of {min(grid.bits)} bits"
        self.demand(min(grid.bits) >= narrowest, f"output {name!r}", found, f"codes of at least {narrowest} bits")
        return grid

    def accumulates(self, name: str, shape: tuple[int, ...], axis: int, groups: tuple[int, ...]) -> None:
        """An output of 32-bit sums with one of these numbers of groups, along `axis` where they are several."""
        grid = self.rounds_to(name, shape, WIDEST)
        self.demand(grid.bits[0] == WIDEST, f"output {name!r}", f"codes of {grid.bits[0]} bits", "codes of 32 bits")
        self.groups_on(name, axis)
        self.demand(grid.groups in groups, f"groups of {name!r}", grid.groups, _either(tuple(dict.fromkeys(groups))))

    def bounded(self, op: p.Op) -> None:
        """No sum or product of the op can leave the integers that backends compute in."""
        for bound in bounds(self.program, op):
            below = f"below 2^{bound.limit_bits}, whatever the image"
            self.demand(bound.worst < 1 << bound.limit_bits, bound.quantity, f"up to {bound.worst}", below)

    def constant(self, field: str, name: str, *shapes: tuple[int, ...]) -> None:
        if name not in self.program.constants:
            raise fail(f"{self.where}: {field}", repr(name), "the name of a constant")
        shape = self.program.constants[name].shape
        self.demand(shape in shapes, f"{field} {name!r}", shape, " or ".join(map(str, shapes)))

    def weight(self, name: str) -> p.Weight:
        if name not in self.program.weights:
            raise fail(f"{self.where}: weight", repr(name), "the name of a weight")
        return self.program.weights[name]

    def integers(self, field: str, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """The integers of this name, of one of these shapes where there are any."""
        if name not in self.program.integers:
            raise fail(f"{self.where}: {field}", repr(name), "the name of integers")
        array = self.program.integers[name]
        fits = not shapes or array.shape in shapes
        self.demand(fits, f"{field} {name!r}", array.shape, " or ".join(map(str, dict.fromkeys(shapes))))
        return array

    def within(self, field: str, array: np.ndarray, low: int, high: int) -> None:
        bad = array[(array < low) | (array > high)]
        if len(bad):
            raise fail(f"{self.where}: {field}: an element", bad[0], f"{low}..{high}")

    def per_head(self, name: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of codes (..., H, N, x) with one group or H groups along the head axis, and no offset."""
        shape, grid = self.codes(name, ranks)
        self.groups_on(name, -3)
        self.demand(
            grid.groups in (1, shape[-3]), f"groups of {name!r}", grid.groups, f"1 or {shape[-3]}, one per head"
        )
        self.no_offset(name)
        return shape


def _either(ranks: tuple[int, ...]) -> str:
    return " or ".join(map(str, ranks))
