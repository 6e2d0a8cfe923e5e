"""Ops that only move elements, on values or codes alike: codes are moved behind their DequantizeLinear, where 0 is code 0.

Every shape is known but the batch, which Reshape takes over from its input (a 0 in its place). Two things ONNX has no op for:

  roll    two slices, exchanged                                       (shifted windows)
  prefix  pad with rows of zeros in front, then add a constant that holds the prefix there and the position elsewhere
"""

from __future__ import annotations

import numpy as np

from qvit_runtime import program as p

from .graph import Graph
from .translation import Tensors, Translation

END = np.iinfo(np.int64).max  # a slice up to the end


def slice_axis(graph: Graph, tensor: str, axis: int, start: int, stop: int) -> str:
    return graph.add("Slice", tensor, graph.axes(start), graph.axes(stop), graph.axes(axis))


def _roll(graph: Graph, tensor: str, axis: int, shift: int) -> str:
    """numpy.roll, |shift| below the length"""
    if not shift:
        return tensor
    front = slice_axis(graph, tensor, axis, -shift, END)
    return graph.add("Concat", front, slice_axis(graph, tensor, axis, 0, -shift), axis=axis)


def _pad(graph: Graph, tensor: str, before: list[int], after: list[int]) -> str:
    """Zeros in front of and behind each axis."""
    return graph.add("Pad", tensor, graph.axes(*before, *after)) if any(before) or any(after) else tensor


def patchify(t: Translation, op: p.Patchify) -> Tensors:
    channels, height, width = t.shape(op.input)
    rows, cols, graph = height // op.patch, width // op.patch, t.graph

    def steps(x: str) -> str:
        if height % op.patch or width % op.patch:
            x = slice_axis(graph, slice_axis(graph, x, 2, 0, rows * op.patch), 3, 0, cols * op.patch)
        cut = graph.reshape(x, channels, rows, op.patch, cols, op.patch)
        return graph.reshape(graph.add("Transpose", cut, perm=[0, 2, 4, 1, 3, 5]), *t.shape(op.output))

    return t.move(op.input, steps)


def split_heads(t: Translation, op: p.SplitHeads) -> Tensors:
    *lead, heads, tokens, dim = t.shape(op.output)
    width = heads * dim

    def steps(x: str) -> str:
        part = slice_axis(t.graph, x, len(lead) + 2, op.part * width, (op.part + 1) * width)
        return t.swap(t.graph.reshape(part, *lead, tokens, heads, dim), len(lead) + 4)

    return t.move(op.input, steps)


def merge_heads(t: Translation, op: p.MergeHeads) -> Tensors:
    """Put off: a Linear with one scale per head wants the heads apart."""
    held = t.tensors[op.input]
    return Tensors(held.names, held.units, heads=t.shape(op.input)[-3])


def window_partition(t: Translation, op: p.WindowPartition) -> Tensors:
    rows, cols, channels = t.shape(op.input)
    (height, width), graph = op.window, t.graph
    down, across = -(-rows // height), -(-cols // width)

    def steps(x: str) -> str:
        x = _roll(graph, _roll(graph, x, 1, -op.shift[0]), 2, -op.shift[1])
        x = _pad(graph, x, [0] * 4, [0, down * height - rows, across * width - cols, 0])
        x = graph.reshape(x, down, height, across, width, channels)
        return graph.reshape(graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), *t.shape(op.output))

    return t.move(op.input, steps)


def window_merge(t: Translation, op: p.WindowMerge) -> Tensors:
    rows, cols, channels = t.shape(op.output)
    (height, width), graph = op.window, t.graph
    down, across = -(-rows // height), -(-cols // width)

    def steps(x: str) -> str:
        x = graph.reshape(x, down, across, height, width, channels)
        x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        x = graph.reshape(x, down * height, across * width, channels)
        if rows % height or cols % width:
            x = slice_axis(graph, slice_axis(graph, x, 1, 0, rows), 2, 0, cols)
        return _roll(graph, _roll(graph, x, 1, op.shift[0]), 2, op.shift[1])

    return t.move(op.input, steps)


def patch_merge(t: Translation, op: p.PatchMerge) -> Tensors:
    rows, cols, channels = t.shape(op.input)
    merged_rows, merged_cols, _ = t.shape(op.output)

    def steps(x: str) -> str:
        x = _pad(t.graph, x, [0] * 4, [0, rows % 2, cols % 2, 0])
        x = t.graph.reshape(x, merged_rows, 2, merged_cols, 2, channels)
        return t.graph.reshape(t.graph.add("Transpose", x, perm=[0, 1, 3, 4, 2, 5]), *t.shape(op.output))

    return t.move(op.input, steps)


def select_token(t: Translation, op: p.SelectToken) -> Tensors:
    index = t.graph.constant(np.array(op.index, np.int64))
    return t.move(op.input, lambda x: t.graph.add("Gather", x, index, axis=1))


def tokens(t: Translation, op: p.Tokens) -> Tensors:
    """Prefix rows in front, position added."""
    prefix, position = t.program.constants[op.prefix], t.program.constants[op.position]
    rows = t.graph.constant(np.concatenate([prefix, position]).astype(np.float32), op.position)
    padded = _pad(t.graph, t.value(op.input), [0, len(prefix), 0], [0, 0, 0])
    return Tensors((t.graph.add("Add", padded, rows),))
