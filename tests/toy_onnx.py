"""Programs for the tests of the ONNX export: `linear_program` around one Linear, and what a model holds."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from qvit_runtime import program as p
from toy_edits import every_other_block


def linear_program(
    bits: tuple[int, ...] = (4, 4),
    weight_bits: int = 4,
    weight_groups: tuple[int, int] = (1, 1),
    per_head: bool = True,
    signed: bool = True,
    offset: float = 0.0,
    midrise: bool = False,
    seed: int = 0,
) -> p.Program:
    """values (H, N, d) -> Quantize -> MergeHeads -> Linear -> one token; H = len(bits), or one group if not per_head.

    The weight has its extreme codes, so that what does not fit shows; every other block of it is mid-rise, if `midrise`.
    """
    rng = np.random.default_rng(seed)
    heads, tokens, dim, out = len(bits), 3, 4, 6
    groups = bits if per_head else bits[:1]
    scale = rng.uniform(0.5, 1.5, len(groups)).astype(np.float32) * 2.0 / (1 << max(bits))
    offsets = np.full(len(groups), offset, np.float32)
    apart, flat = (
        p.Grid(groups, signed, scale, offsets, 0),
        p.Grid(groups, signed, scale, offsets, 1 if per_head else 0),
    )
    top = 1 << (weight_bits - 1)
    codes = rng.choice([-top, -1, 0, 1, top - 1], (out, heads * dim)).astype(np.int8)
    weight = p.Weight(
        codes, np.full(weight_groups, weight_bits), rng.uniform(0.5, 1.5, weight_groups).astype(np.float32)
    )
    if midrise:
        weight = every_other_block(weight)
    buffers = {
        "x": p.Buffer("x", (heads, tokens, dim)),
        "codes": p.Buffer("codes", (heads, tokens, dim), apart),
        "merged": p.Buffer("merged", (tokens, heads * dim), flat),
        "y": p.Buffer("y", (tokens, out)),
        "z": p.Buffer("z", (out,)),
    }
    ops = (
        p.Quantize("x", "codes"),
        p.MergeHeads("codes", "merged"),
        p.Linear("merged", "y", "w", "b"),
        p.SelectToken("y", "z", 1),
    )
    constants = {"b": rng.standard_normal(out).astype(np.float32)}
    return p.Program("one linear", "x", "z", ops, buffers, {"w": weight}, constants, p.Preprocess((tokens, dim)))


def random_images(program: p.Program, count: int, seed: int = 3) -> np.ndarray:
    """Normalised white noise, float32 (count, *input shape)."""
    shape = program.buffers[program.input].shape
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def integer_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Stored weight codes of more than one element, by name, as int32."""
    narrow = (onnx.TensorProto.INT2, onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type in narrow and tensor.dims]
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.int32) for tensor in tensors}


def stored_types(model: onnx.ModelProto) -> set[str]:
    """Types of the stored weights."""
    weights = integer_weights(model)
    return {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer if t.name in weights}
