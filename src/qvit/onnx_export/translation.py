"""Translation: where the buffers of a Program are in the ONNX graph that is being drawn.

A buffer of values is one float tensor. A buffer of codes is a float tensor too, the output of a DequantizeLinear, which
holds code * unit:

  one group        unit = its scale: the standard pair QuantizeLinear, DequantizeLinear
  several groups   unit = 1: the values are divided by the scale of each group first, and whoever multiplies the codes applies
                   the scales afterwards. Per-axis scales in the pair itself would be shorter, but ONNX Runtime (1.32) fuses
                   such a pair with the product behind it into a node that then fails, because it knows one scale only
  two-scaled       two tensors, low and high region, each with the scale of its region as unit

The offset of a grid is nowhere: `freeze` has folded it into the bias of the Linear that reads the codes, so the graph
subtracts it before QuantizeLinear and never adds it again. (A zero point could only do this for offsets that are multiples
of the scale; qvit learns them freely.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from qvit_runtime import program as p
from qvit_runtime.integer import expand_groups

from .graph import Graph


@dataclass(frozen=True)
class Tensors:
    """A buffer in the graph.

    names  one tensor (batch, *shape of the buffer); two for two-scaled codes, halves of the last axis
    units  what the tensors hold is code * unit; 1 for values
    heads  H where the tensor is still (batch, ..., H, N, d) and the buffer (..., N, H * d), else 0
    """

    names: tuple[str, ...]
    units: tuple[float, ...] = (1.0,)
    heads: int = 0


@dataclass
class Translation:
    """A Program half drawn.

    tensors  where each buffer is
    spans    for each op the (first, last + 1) node that it became
    """

    program: p.Program
    int2: bool
    graph: Graph = field(default_factory=Graph)
    tensors: dict[str, Tensors] = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def shape(self, buffer: str) -> tuple[int, ...]:
        return self.program.buffers[buffer].shape

    def grid(self, buffer: str) -> p.Grid:
        """The grid of a buffer of codes."""
        grid = self.program.buffers[buffer].grid
        assert grid is not None
        return grid

    def value(self, buffer: str) -> str:
        """The tensor of a buffer of values."""
        return self.tensors[buffer].names[0]

    def float_constant(self, name: str) -> str:
        """A constant of the Program."""
        return self.graph.constant(self.program.constants[name].astype(np.float32), name)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.graph.constant(np.array(value, np.float32))

    def move(self, source: str, steps: Callable[[str], str]) -> Tensors:
        """A buffer whose values or codes change places only: `steps` takes a tensor to a tensor."""
        held = self.merged(source)
        return replace(held, names=tuple(steps(name) for name in held.names))

    def merged(self, buffer: str) -> Tensors:
        """The buffer in its own shape, (..., N, H * d), also behind a MergeHeads that was put off."""
        held = self.tensors[buffer]
        if held.heads:
            *lead, tokens, channels = self.shape(buffer)
            merged = self.graph.reshape(self.swap(held.names[0], len(lead) + 4), *lead, tokens, channels)
            held = replace(held, names=(merged,), heads=0)
        return held

    def swap(self, tensor: str, rank: int) -> str:
        """Exchange the axes -3 and -2 of a tensor (batch included) of this rank."""
        order = list(range(rank))
        order[-3], order[-2] = order[-2], order[-3]
        return self.graph.add("Transpose", tensor, perm=order)


def spread(per_group: np.ndarray, buffer: p.Buffer) -> np.ndarray:
    """(groups,) of a buffer's grid -> an array that broadcasts against (batch, *shape), without needless leading axes."""
    assert buffer.grid is not None
    if len(per_group) == 1:
        return per_group[0]
    wide = expand_groups(per_group, (1, *buffer.shape), buffer.grid.axis + 1)
    return wide.reshape(wide.shape[buffer.grid.axis + 1 :])
