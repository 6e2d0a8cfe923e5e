"""verify(): does the graph say what the Program says? Asked before anything is written.

Two questions, both answered by the reference evaluator of the onnx package, which is the specification in numpy and no
product's reading of it:

  every op       its nodes alone, fed with what the interpreter has in front of the op. Codes must be equal, all of them;
                 values within 1e-5 of the largest value of their buffer (float32 against float64)
  the whole      images to output, by the rule of `agreement`: for each image the first codes that differ may differ by 1,
                 within 1e-3 of a step from a tie

The first question reaches every op, the second the shipped model from its input to its output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qvit_runtime import program as p
from qvit_runtime.interpreter import inputs_of, trace

from .agreement import compare
from .graph import IR_VERSION
from .sessions import reference_session
from .translate import OnnxExportError
from .translation import Translation

VALUE_TOLERANCE = 1e-5
TIE_TOLERANCE = 1e-3
ADVICE = "nothing was written, please report this with the .qvit file"


@dataclass(frozen=True)
class Verification:
    """What was compared.

    codes        quantized codes, all equal
    value_error  largest difference of values behind one op, as a share of the largest value of the buffer
    """

    codes: int
    value_error: float


def verify(model: onnx.ModelProto, t: Translation, images: np.ndarray) -> Verification:
    """Compare on normalised images float32 (batch, *input shape). Raises OnnxExportError at the first disagreement."""
    known = trace(t.program, images)
    codes, value_error = 0, 0.0
    for op, span in zip(t.program.ops, t.spans, strict=True):
        if span[0] == span[1]:
            continue
        found = _run_alone(model, t, op, span, known)
        expected = graph_arrays(t, op.output, known)
        if t.program.buffers[op.output].grid is not None:
            codes += _same_codes(t, op, found, expected)
        else:
            value_error = max(value_error, _close_values(op, found[0], expected[0]))
    whole = compare(model, t, images, reference_session)
    if whole.first_apart > 1 or whole.first_tie > TIE_TOLERANCE:
        raise OnnxExportError(
            f"the whole network as ONNX leaves the interpreter by {whole.first_apart} codes, {whole.first_tie:.2g} steps from "
            f"a tie; {ADVICE}"
        )
    return Verification(codes, value_error)


def graph_arrays(t: Translation, buffer: str, known: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the tensors of a buffer hold, float32, from the interpreter's buffers by name."""
    held, array = t.tensors[buffer], known[buffer].astype(np.float32)
    if held.heads:
        *lead, channels = array.shape
        array = array.reshape(*lead, held.heads, channels // held.heads).swapaxes(-3, -2)
    parts = np.split(array, len(held.names), axis=-1)
    return [part * np.float32(unit) for part, unit in zip(parts, held.units, strict=True)]


def _run_alone(
    model: onnx.ModelProto, t: Translation, op: p.Op, span: tuple[int, int], known: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """The nodes of one op on the interpreter's inputs -> the tensors of its output."""
    nodes = t.graph.nodes[slice(*span)]
    feeds = {
        name: array
        for buffer in inputs_of(op)
        for name, array in zip(t.tensors[buffer].names, graph_arrays(t, buffer, known), strict=True)
    }
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "op",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in feeds],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in t.tensors[op.output].names],
        [tensor for name, tensor in t.graph.initializers.items() if name in read],
    )
    opsets = list(model.opset_import)
    part = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION[opsets[0].version])
    return list(ReferenceEvaluator(part).run(None, feeds))


def _same_codes(t: Translation, op: p.Op, found: list[np.ndarray], expected: list[np.ndarray]) -> int:
    for here, there, unit in zip(found, expected, t.tensors[op.output].units, strict=True):
        _same_shape(op, here, there)
        wrong = np.rint(here / np.float32(unit)) != np.rint(there / np.float32(unit))
        if wrong.any():
            raise _disagreement(op, f"{int(wrong.sum())} of {there.size} codes differ from the interpreter's")
    return sum(array.size for array in expected)


def _close_values(op: p.Op, found: np.ndarray, expected: np.ndarray) -> float:
    _same_shape(op, found, expected)
    error = float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
    if not error <= VALUE_TOLERANCE:  # NaN is no agreement
        raise _disagreement(op, f"values differ from the interpreter's by {error:.2g} of the largest one")
    return error


def _same_shape(op: p.Op, found: np.ndarray, expected: np.ndarray) -> None:
    """Asked first: numpy would stretch one array to the other, or give an error of its own."""
    if found.shape != expected.shape:
        raise _disagreement(op, f"its shape is {found.shape} and not {expected.shape}")


def _disagreement(op: p.Op, what: str) -> OnnxExportError:
    return OnnxExportError(f"{type(op).__name__} {op.output!r} as ONNX: {what}; {ADVICE}")
