"""Small wounds to a well-formed Program: each function returns a copy with one thing changed, the original untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qvit_runtime import program as p


def first(program: p.Program, kind: type) -> int:
    """Index of the first op of this kind."""
    return next(step for step, op in enumerate(program.ops) if type(op) is kind)


def edit_op(program: p.Program, kind: type, **changes: Any) -> p.Program:
    step = first(program, kind)
    return set_op(program, step, replace(program.ops[step], **changes))


def set_op(program: p.Program, step: int, *ops: p.Op) -> p.Program:
    """Put these ops (or none) in the place of one."""
    return replace(program, ops=(*program.ops[:step], *ops, *program.ops[step + 1 :]))


def edit_buffer(program: p.Program, name: str, **changes: Any) -> p.Program:
    return replace(program, buffers=program.buffers | {name: replace(program.buffers[name], **changes)})


def edit_grid(program: p.Program, name: str, **changes: Any) -> p.Program:
    grid = program.buffers[name].grid
    assert grid is not None
    return edit_buffer(program, name, grid=replace(grid, **changes))


def edit_weight(program: p.Program, name: str, **changes: Any) -> p.Program:
    usual = {"midrise": None} if "bits" in changes else {}  # other blocks, on the usual grid
    return replace(program, weights=program.weights | {name: replace(program.weights[name], **(usual | changes))})


def every_other_block(weight: p.Weight, first: int = 0) -> p.Weight:
    """The weight with its blocks number `first`, `first` + 2, ... on the mid-rise grid, but for those of 8 bits: 2 c + 1."""
    turn = (np.arange(weight.bits.size).reshape(weight.bits.shape) - first) % 2 == 0
    midrise = turn & (weight.bits <= p.MAX_MIDRISE_BITS)
    height, width = np.array(weight.codes.shape) // weight.bits.shape
    codes = np.where(np.kron(midrise, np.ones((height, width), np.bool_)), 2 * weight.codes + 1, weight.codes)
    return replace(weight, codes=codes.astype(np.int8), midrise=midrise)


def set_constant(program: p.Program, name: str, array: Any) -> p.Program:
    return replace(program, constants=program.constants | {name: array})


def set_integers(program: p.Program, name: str, array: Any) -> p.Program:
    return replace(program, integers=program.integers | {name: np.array(array, np.int32)})


def edit_preprocess(program: p.Program, **changes: Any) -> p.Program:
    return replace(program, preprocess=replace(program.preprocess, **changes))
