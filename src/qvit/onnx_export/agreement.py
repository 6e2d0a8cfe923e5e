"""agreement(): how far a runtime follows the interpreter on given images, in codes and in classes.

Two sessions: the model as it is gives the outputs; a copy whose quantized codes are outputs too gives the codes. A copy, because
OpenVINO fuses less around tensors that are outputs and then rounds otherwise: its copy is nearer to the interpreter than the
model, of which only the outputs speak. ONNX Runtime runs the same nodes in both.

A runtime computes its float ops in another order than the interpreter, so now and then a value next to a tie falls to the
other side, and behind that everything moves a little, which in a network of few bits can be much. So for each image the
first buffer whose codes differ is looked at: everything in front of it is equal, so its codes may differ by 1, and only where
the interpreter's value lies next to a tie. Anything else is an error of the export or of the runtime, however small
its effect on the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvit_runtime import program as p
from qvit_runtime.integer_ops import QuantizeRegions
from qvit_runtime.interpreter import trace

from .sessions import Session
from .translate import OUTPUT, translate
from .translation import Translation, spread

CodeTensors = dict[str, list[tuple[str, int]]]  # buffer -> its uint8 tensors and their zero points
BATCH = 16
CLEAR_LEAD = 0.05


@dataclass(frozen=True)
class Agreement:
    """A runtime against the interpreter.

    images        how many
    codes         quantized codes of all of them
    codes_equal   share of the codes that is equal
    images_equal  share of the images whose codes are all equal
    first_apart   where codes differ first: how much at most, 0 when none differ
    first_tie     where codes differ first: the largest distance of the interpreter's value from a tie, in steps
    output_error  largest difference of outputs, in standard deviations of the outputs
    top1_equal    share of images of the same class
    clear         images whose class leads by more than 5 % of a standard deviation
    clear_equal   share of those of the same class
    """

    images: int
    codes: int
    codes_equal: float
    images_equal: float
    first_apart: int
    first_tie: float
    output_error: float
    top1_equal: float
    clear: int
    clear_equal: float


@dataclass
class _Tally:
    """Codes compared so far."""

    codes: int = 0
    equal: int = 0
    images_equal: int = 0
    first_apart: int = 0
    first_tie: float = 0.0


def agreement(
    program: p.Program, images: np.ndarray, open_session: Callable[[bytes], Session], int2: bool = False
) -> Agreement:
    """Run normalised images float32 (count, *input shape) through a runtime, see `sessions`, and the interpreter."""
    return compare(*translate(program, int2), images, open_session)


def compare(
    model: onnx.ModelProto, t: Translation, images: np.ndarray, open_session: Callable[[bytes], Session]
) -> Agreement:
    """`agreement` of a model that is translated already."""
    tensors = code_tensors(t)
    names = [name for pairs in tensors.values() for name, _ in pairs]
    plain = open_session(model.SerializeToString())
    watched = open_session(with_outputs(model, names).SerializeToString())
    tally, outputs, expected = _Tally(), [], []
    for at in range(0, len(images), BATCH):
        part = images[at : at + BATCH]
        known = trace(t.program, part)
        _count(tally, t, tensors, watched(part), known)
        outputs.append(plain(part)[OUTPUT])
        expected.append(known[t.program.output])
    here, there = np.concatenate(outputs), np.concatenate(expected)
    same, clear = here.argmax(1) == there.argmax(1), clear_winners(there)
    return Agreement(
        images=len(images),
        codes=tally.codes,
        codes_equal=tally.equal / tally.codes,
        images_equal=tally.images_equal / len(images),
        first_apart=tally.first_apart,
        first_tie=tally.first_tie,
        output_error=float(np.abs(here - there).max() / there.std()),
        top1_equal=float(same.mean()),
        clear=int(clear.sum()),
        clear_equal=float(same[clear].mean()) if clear.any() else 1.0,
    )


def _count(
    tally: _Tally, t: Translation, tensors: CodeTensors, seen: dict[str, np.ndarray], known: dict[str, np.ndarray]
) -> None:
    """Add one batch: buffers in the order of the program, `clean` images being those without a difference so far."""
    clean = np.ones(len(known[t.program.input]), bool)
    for op in t.program.ops:
        if not isinstance(op, p.Quantize | QuantizeRegions):
            continue
        halves = [seen[name].astype(np.int32) - zero for name, zero in tensors[op.output]]
        apart = np.abs(np.concatenate(halves, axis=-1) - known[op.output])
        tally.codes += apart.size
        tally.equal += int((apart == 0).sum())
        first = (apart > 0) & clean.reshape(-1, *[1] * (apart.ndim - 1))
        if first.any():
            tally.first_apart = max(tally.first_apart, int(apart[first].max()))
            tally.first_tie = max(tally.first_tie, float(_tie_distance(t, op, known)[first].max()))
        clean &= ~(apart > 0).reshape(len(clean), -1).any(1)
    tally.images_equal += int(clean.sum())


def _tie_distance(t: Translation, op: p.Quantize | QuantizeRegions, known: dict[str, np.ndarray]) -> np.ndarray:
    """How far each value in front of a quantization is from the middle between two codes, in steps.

    Of two-scaled codes the low region alone counts: between regions, too, it is its rounding that decides.
    """
    grid, values = t.grid(op.output), known[op.input].astype(np.float64)
    if isinstance(op, QuantizeRegions):
        steps = np.tile((values - grid.offset[0]) / grid.scale[0], 2)
    else:
        buffer = t.program.buffers[op.output]
        steps = (values - spread(grid.offset, buffer)) / spread(grid.scale, buffer)
    return np.abs(steps - np.floor(steps) - 0.5)


def clear_winners(outputs: np.ndarray) -> np.ndarray:
    """bool (count,): the largest of the outputs (count, classes) leads by more than CLEAR_LEAD of their deviation."""
    ranked = np.sort(outputs, axis=1)
    return ranked[:, -1] - ranked[:, -2:-1].max(axis=1, initial=-np.inf) > CLEAR_LEAD * outputs.std()


def code_tensors(t: Translation) -> CodeTensors:
    """Where the codes of each quantized buffer are."""
    found: CodeTensors = {}
    for op, span in zip(t.program.ops, t.spans, strict=True):
        if isinstance(op, p.Quantize | QuantizeRegions):
            nodes = [node for node in t.graph.nodes[slice(*span)] if node.op_type == "QuantizeLinear"]
            zeros = [int(numpy_helper.to_array(t.graph.initializers[node.input[2]])) for node in nodes]
            found[op.output] = [(node.output[0], zero) for node, zero in zip(nodes, zeros, strict=True)]
    return found


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with these uint8 tensors as further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    return copy
