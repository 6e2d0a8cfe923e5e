"""Graph: an ONNX graph under construction, and how integers are stored in it.

`add` appends a node and returns the name of its output, `constant` an initializer; both may be called in any order that
reads well, since a node only names what exists already. Names start with the op of the Program that they belong to.

Integer weights are stored in the narrowest type that holds their codes: int4 up to 4 bits, else int8; int2 up to 2 bits
when asked for. (Those of mid-rise weights take a bit more than in an artifact: ONNX has zero points, but no half ones, so
-3, -1, 1, 3 stay what they are, and are int4.) A narrow constant passes a Cast to int8 before its DequantizeLinear. Both runtimes fold that Cast when they load the
file, and see the int8 weights that they have integer kernels for. Without it they take the weight for a compressed float
one: ONNX Runtime then multiplies in float, OpenVINO quantizes the activations a second time, dynamically, and its products
are off by about 1 % of their spread. The file is the same size either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = {
    opset: version for _, version, opset, *_ in reversed(helper.VERSION_TABLE)
}  # the oldest that has the opset
STORAGE = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


class Graph:
    """Nodes, their kinds by output, and initializers; `scope` is the prefix of the names that are given out."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.kinds: dict[str, str] = {}  # output of a node -> what kind of node it is
        self.scope = ""
        self._taken: set[str] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def reserve(self, name: str) -> str:
        """A name that nothing has yet: `name`, or `name` and a number."""
        number, free = 1, name
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node of one output; returns the name of that output."""
        output = self.reserve(name or f"{self.scope}/{kind}")
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        self.kinds[output] = kind
        return output

    def rename_last(self, name: str) -> None:
        """Give the output of the last node, which nothing has read yet, another name."""
        node = self.nodes[-1]
        self.kinds[name] = self.kinds.pop(node.output[0])
        node.output[0] = node.name = name

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """An initializer; equal arrays share one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            free = self.reserve(name or f"{self.scope}/constant")
            self.initializers[free] = numpy_helper.from_array(array, free)
            self._constants[key] = free
        return self._constants[key]

    def axes(self, *axes: int) -> str:
        """Axes or a shape, as nodes want them."""
        return self.constant(np.array(axes, np.int64))

    def reshape(self, tensor: str, *shape: int) -> str:
        """To (batch, *shape)."""
        return self.add("Reshape", tensor, self.axes(0, *shape))

    def integers(self, codes: np.ndarray, width: int, name: str) -> str:
        """int8 codes of any shape, stored in `width` bits (a key of STORAGE) -> the name of an int8 tensor."""
        if width == 8:
            return self.constant(codes.astype(np.int8), name)
        name = self.reserve(name)
        raw = pack(codes, width)
        self.initializers[name] = helper.make_tensor(name, STORAGE[width], codes.shape, raw, raw=True)
        return self.add("Cast", name, to=TensorProto.INT8)


def pack(codes: np.ndarray, width: int) -> bytes:
    """int8 codes -> two's complement of `width` bits (2 or 4), the first code in the lowest bits, the end filled with 0."""
    per_byte = 8 // width
    low = codes.ravel().view(np.uint8) & (2**width - 1)
    low = np.pad(low, (0, -len(low) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * width
    return np.bitwise_or.reduce(low << shifts, axis=1).astype(np.uint8).tobytes()


def storage_width(bits: int, int2: bool) -> int:
    """Bits that weight codes of `bits` bits take in the file."""
    return 2 if bits <= 2 and int2 else 4 if bits <= 4 else 8
