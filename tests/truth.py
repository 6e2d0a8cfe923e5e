"""The truth rule (design decision 5) as a count: fake quantization against the interpreter, op by op, on equal inputs.

Comparing two whole runs would mix the ops: one code that falls the other way at a tie changes everything behind it. So
every Quantize op gets the very values that the module's quantizer saw, and every op behind it runs in the interpreter on
the codes of those values. What an op computes may then differ only by float rounding, and a code behind it by one, and
only where the value lies within 1e-3 of a step from a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qvit.quantizers.quantizer import named_quantizers
from qvit_runtime import integer, integer_ops
from qvit_runtime import program as p
from qvit_runtime.interpreter import EXECUTE

TIE = 1e-3  # of a step


@dataclass
class Count:
    """Codes of one Quantize op: how many, how many differ, and how many of those not at a tie or by more than one."""

    codes: int
    different: int
    wrong: int


def seen_values(model: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """What every activation quantizer got, by tensor name, (B, ...) as the module has it."""
    seen: dict[str, np.ndarray] = {}
    handles = [
        quantizer.register_forward_pre_hook(lambda _, args, n=name: seen.__setitem__(n, args[0].detach().numpy()))
        for name, quantizer in named_quantizers(model).items()
        if quantizer.batched
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def compare(program: p.Program, model: nn.Module, x: Tensor) -> dict[str, Count]:
    """Counts per tensor. The interpreter is corrected to the module's codes after every Quantize op."""
    seen = seen_values(model, x)
    live: dict[str, np.ndarray] = {program.input: x.numpy()}
    counts: dict[str, Count] = {}
    for op in program.ops:
        shape = (len(x), *program.buffers[op.output].shape)
        live[op.output] = EXECUTE[type(op)](program, op, live).reshape(shape)
        if not isinstance(op, p.Quantize | integer_ops.QuantizeRegions):
            continue
        grid = program.buffers[op.output].grid
        assert grid is not None
        if isinstance(op, integer_ops.QuantizeRegions):
            theirs = seen[op.output].reshape(live[op.input].shape)
            codes = EXECUTE[type(op)](program, op, {op.input: theirs})
            counts[op.output] = _count_regions(live[op.input], live[op.output], codes, grid)
            live[op.output] = codes
            continue
        name = op.output.removesuffix(".heads")
        theirs = _like(seen[name], op, program, shape)
        codes = integer.quantize(theirs, grid)
        counts[name] = _count(live[op.input].reshape(shape), live[op.output], codes, grid)
        live[op.output] = codes
    return counts


def _like(values: np.ndarray, op: p.Quantize, program: p.Program, shape: tuple[int, ...]) -> np.ndarray:
    """The module's values in the layout of the buffer."""
    if op.output.endswith(".heads"):  # (B, N, H d) -> (..., H, N, d)
        *lead, heads, tokens, dim = shape
        return values.reshape(*lead, tokens, heads, dim).swapaxes(-3, -2)
    if values.ndim == 3 and len(shape) == 4 and values.shape[0] != shape[0]:
        return _from_windows(values, op, program, shape)
    return values.reshape(shape)


def _from_windows(values: np.ndarray, op: p.Quantize, program: p.Program, shape: tuple[int, ...]) -> np.ndarray:
    """Swin's module quantizes windows, its program the whole grid before the cut: undo the cut."""
    cut = next(o for o in program.ops if isinstance(o, p.WindowPartition) and o.input == op.output)
    merge = p.WindowMerge("windows", op.output, cut.window, cut.shift)
    return EXECUTE[p.WindowMerge](program, merge, {"windows": values})


def _count(values: np.ndarray, ours: np.ndarray, theirs: np.ndarray, grid: p.Grid) -> Count:
    axis = grid.axis + 1
    scale = integer.expand_groups(grid.scale.astype(np.float64), values.shape, axis)
    offset = integer.expand_groups(grid.offset.astype(np.float64), values.shape, axis)
    steps = (values - offset) / scale
    near_tie = _from_tie(steps) <= TIE
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    wrong = (difference > 1) | ((difference == 1) & ~near_tie)
    return Count(ours.size, int((difference > 0).sum()), int(wrong.sum()))


def _count_regions(values: np.ndarray, ours: np.ndarray, theirs: np.ndarray, grid: p.Grid) -> Count:
    """Two-scaled codes as one number, the rank of their level among all levels of the grid."""
    (low, high), top = grid.scale.astype(np.float64), int(grid.qmax[0])
    ratio = round(high / low)
    first = (top + 1) // ratio  # smallest code of the high region

    def ranks(codes: np.ndarray) -> np.ndarray:
        small, large = np.split(codes.astype(int), 2, axis=-1)
        return np.where(large > 0, top + 1 + large - first, small)

    steps = (values - grid.offset[0].astype(np.float64)) / low
    distance = np.where(steps <= top + 0.5, _from_tie(steps), _from_tie(steps / ratio))
    near_tie = (distance <= TIE) | (np.abs(steps - top - 0.5) <= TIE)  # the border is a tie of the low region
    difference = np.abs(ranks(ours) - ranks(theirs))
    wrong = (difference > 1) | ((difference == 1) & ~near_tie)
    return Count(values.size, int((difference > 0).sum()), int(wrong.sum()))


def _from_tie(steps: np.ndarray) -> np.ndarray:
    return np.abs(np.abs(steps - np.rint(steps)) - 0.5)
