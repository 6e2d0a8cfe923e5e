"""translate(): a Program as an ONNX graph, one function per op and one dict from op to function, as in the interpreter.

Float ops become the ONNX op of the same meaning, in float32. What ONNX cannot say, in a way that both ONNX Runtime and
OpenVINO compute exactly, is refused by name: the integer-only ops of I-ViT and FQ-ViT are products of up to 62 bits and
floor shifts. ONNX has 64-bit integers, but OpenVINO computes them in 32 bits on a CPU, and BitShift has no signed form.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p

from . import moves, products
from .graph import IR_VERSION
from .translation import Tensors, Translation

OPSET = 21  # the oldest with everything in use, so what every runtime loads; 22 to 27 change nothing that is used here
INT2_OPSET = 25  # the oldest with int2
INPUT, OUTPUT = "images", "output"


class OnnxExportError(ValueError):
    """The Program cannot be written as ONNX, or what was written does not agree; the text says which op and what to do."""


def translate(program: p.Program, int2: bool = False) -> tuple[onnx.ModelProto, Translation]:
    """The model, input `images` (batch, channels, height, width) and output `output`, and where everything is in it.

    int2  store weights of 2 bits as int2: opset 25, ONNX Runtime only

    Raises OnnxExportError for an op that ONNX cannot say.
    """
    t = Translation(program, int2)
    for name in (INPUT, OUTPUT):
        t.graph.reserve(name)
    t.tensors[program.input] = Tensors((INPUT,))
    for step, op in enumerate(program.ops):
        t.graph.scope, first = op.output, len(t.graph.nodes)
        if type(op) not in TRANSLATE:
            raise _refusal(program, step, op)
        t.tensors[op.output] = TRANSLATE[type(op)](t, op)
        _name_after_buffer(t, op.output, first)
        t.spans.append((first, len(t.graph.nodes)))
    return _model(t), t


def _name_after_buffer(t: Translation, buffer: str, first: int) -> None:
    """The last node of an op gives its output the name of the buffer; that of the network is called `output`."""
    held, nodes = t.tensors[buffer], t.graph.nodes
    if len(nodes) > first and held.names == (nodes[-1].output[0],):
        name = OUTPUT if buffer == t.program.output else t.graph.reserve(buffer)
        t.graph.rename_last(name)
        t.tensors[buffer] = dataclasses.replace(held, names=(name,))


def _model(t: Translation) -> onnx.ModelProto:
    program, graph = t.program, t.graph
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *t.shape(buffer)])
        for name, buffer in ((INPUT, program.input), (OUTPUT, program.output))
    ]
    drawn = helper.make_graph(
        graph.nodes, program.name or "qvit", ends[:1], ends[1:], list(graph.initializers.values())
    )
    opset = INT2_OPSET if t.int2 else OPSET
    model = helper.make_model(
        drawn, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION[opset], producer_name="qvit"
    )
    how = dataclasses.asdict(program.preprocess)
    labels = how.pop("labels")
    facts = {"preprocess": json.dumps(how), "labels": json.dumps(labels), "qvit": json.dumps(program.metadata)}
    helper.set_model_props(model, facts)
    return model


METHOD_OF = {i.LogIntSoftmax: "FQ-ViT", i.ShiftAttentionValue: "FQ-ViT", i.IntegerLayerNorm: "I-ViT and FQ-ViT"}


def _refusal(program: p.Program, step: int, op: p.Op) -> OnnxExportError:
    kind = type(op)
    return OnnxExportError(
        f"op {step} {kind.__name__} {op.output!r} of {program.name or 'the program'} cannot be exported: this op of "
        f"{METHOD_OF.get(kind, 'I-ViT')} computes in 64-bit integers and floor shifts, which OpenVINO has in 32 bits only; run the "
        f".qvit file with qvit_runtime.Engine, or quantize with a method whose LayerNorm, softmax and GELU are float "
        f"(qvit, lsq, ptq, tsptq, qvit-irm)"
    )


def _softmax(t: Translation, op: p.Softmax) -> Tensors:
    scores = t.value(op.input)
    if op.bias:
        scores = t.graph.add("Add", scores, t.float_constant(op.bias))
    if op.mask:
        mask = t.graph.constant(t.program.constants[op.mask][:, None].astype("float32"), op.mask)
        scores = t.graph.add("Add", scores, mask)
    return Tensors((t.graph.add("Softmax", scores, axis=-1),))


def _layer_norm(t: Translation, op: p.LayerNorm) -> Tensors:
    constants = t.float_constant(op.weight), t.float_constant(op.bias)
    return Tensors((t.graph.add("LayerNormalization", t.value(op.input), *constants, axis=-1, epsilon=op.eps),))


def _gelu(t: Translation, op: p.Gelu) -> Tensors:
    return Tensors((t.graph.add("Gelu", t.value(op.input)),))


def _add(t: Translation, op: p.Add) -> Tensors:
    return Tensors((t.graph.add("Add", t.value(op.left), t.value(op.right)),))


def _multiply(t: Translation, op: p.Multiply) -> Tensors:
    return Tensors((t.graph.add("Mul", t.value(op.input), t.float_constant(op.factor)),))


def _mean_tokens(t: Translation, op: p.MeanTokens) -> Tensors:
    flat = t.graph.reshape(t.value(op.input), -1, t.shape(op.input)[-1])
    kept = moves.slice_axis(t.graph, flat, 1, op.start, moves.END) if op.start else flat
    return Tensors((t.graph.add("ReduceMean", kept, t.graph.axes(1), keepdims=0),))


TRANSLATE: dict[type, Callable[..., Tensors]] = {
    p.Quantize: products.quantize,
    p.Patchify: moves.patchify,
    p.Linear: products.linear,
    p.SplitHeads: moves.split_heads,
    p.MergeHeads: moves.merge_heads,
    p.QueryKey: products.query_key,
    p.Softmax: _softmax,
    p.AttentionValue: products.attention_value,
    p.LayerNorm: _layer_norm,
    p.Gelu: _gelu,
    p.Add: _add,
    p.Multiply: _multiply,
    p.Tokens: moves.tokens,
    p.WindowPartition: moves.window_partition,
    p.WindowMerge: moves.window_merge,
    p.PatchMerge: moves.patch_merge,
    p.SelectToken: moves.select_token,
    p.MeanTokens: _mean_tokens,
    i.Dequantize: products.dequantize,
    i.QuantizeRegions: products.quantize_regions,
}
