"""inspect: what a Program is made of, as plain data: bits per layer and head, sizes, cost, and what runs on integers.

Cost of one image, as everywhere in qvit: BitOPs = MACs x weight bits x activation bits, for the attention products the
bits of both operands, for layers with several groups the mean over the groups of the products. `products` counts.

Placement of an op:

  integer only   integers in, integers out, rounding included; `integer_only` proves it of whole programs
  integer        multiplies integers and accumulates exactly; only its epilogue, one multiplication per sum, is float
  rounds         the border: values in and codes out, or codes in and values out
  moves          rearranges codes or values, computes nothing
  float          computes on float32 values
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from . import integer_ops as i
from . import program as p
from .packing import packed_bytes
from .products import Product, code_bits, code_shape, meeting_bits, products

PLACEMENT: dict[type, str] = {
    p.Linear: "integer",
    p.QueryKey: "integer",
    p.AttentionValue: "integer",
    p.Quantize: "rounds",
    p.Patchify: "moves",
    p.SplitHeads: "moves",
    p.MergeHeads: "moves",
    p.WindowPartition: "moves",
    p.WindowMerge: "moves",
    p.PatchMerge: "moves",
    p.SelectToken: "moves",
    p.Softmax: "float",
    p.LayerNorm: "float",
    p.Gelu: "float",
    p.Add: "float",
    p.Multiply: "float",
    p.Tokens: "float",
    p.MeanTokens: "float",
    i.Dequantize: "rounds",
    i.QuantizeRegions: "rounds",
    i.LinearAccumulate: "integer only",
    i.QueryKeyAccumulate: "integer only",
    i.AttentionValueAccumulate: "integer only",
    i.Requantize: "integer only",
    i.AddRequantize: "integer only",
    i.IntegerTokens: "integer only",
    i.SumTokens: "integer only",
    i.IntegerLayerNorm: "integer only",
    i.ShiftGelu: "integer only",
    i.Shiftmax: "integer only",
    i.LogIntSoftmax: "integer only",
    i.ShiftAttentionValue: "integer",
}

Rounding = (  # what decides the bits of an activation; sums and what moves codes about do not
    p.Quantize
    | i.QuantizeRegions
    | i.Requantize
    | i.AddRequantize
    | i.IntegerTokens
    | i.IntegerLayerNorm
    | i.Shiftmax
    | i.LogIntSoftmax
)


def describe(program: p.Program) -> dict[str, Any]:
    """A JSON-able description of a well-formed program."""
    weights = [_weight(name, weight) for name, weight in program.weights.items()]
    codes = sum(weight.codes.size for weight in program.weights.values())
    packed = sum(weight["packed_bytes"] for weight in weights)
    multiplied = products(program)
    return {
        "name": program.name,
        "input": list(program.buffers[program.input].shape),
        "output": list(program.buffers[program.output].shape),
        "preprocess": asdict(program.preprocess),
        "metadata": dict(program.metadata),
        "totals": {
            "ops": len(program.ops),
            "weight_codes": codes,
            "average_weight_bits": sum(weight["average_bits"] * weight["codes"] for weight in weights) / max(codes, 1),
            "packed_weight_bytes": packed,
            "constant_bytes": sum(constant.nbytes for constant in program.constants.values()),
            "integer_bytes": sum(array.nbytes for array in program.integers.values()),
            "macs": sum(product.macs for product in multiplied),
            "gbitops": sum(_bitops(program, product) for product in multiplied) / 1e9,
        },
        "weights": weights,
        "activations": [_activation(op.output, program) for op in program.ops if isinstance(op, Rounding)],
        "placement": _placement(program),
    }


def _weight(name: str, weight: p.Weight) -> dict[str, Any]:
    out_features, in_features = weight.codes.shape
    return {
        "name": name,
        "shape": [out_features, in_features],
        "bits": weight.bits.tolist(),
        "midrise": weight.midrise.tolist(),
        "average_bits": float(weight.bits.mean()),
        "codes": weight.codes.size,
        "packed_bytes": int(packed_bytes((out_features, in_features), weight.bits).sum()),
    }


def _activation(name: str, program: p.Program) -> dict[str, Any]:
    grid = program.buffers[name].grid
    assert grid is not None
    return {
        "name": name,
        "shape": list(code_shape(program, name)),
        "bits": code_bits(program, name).tolist(),
        "signed": grid.signed,
        "offset": bool(grid.offset.any()),
        "axis": grid.axis,
    }


def _placement(program: p.Program) -> list[dict[str, Any]]:
    counts = Counter(type(op) for op in program.ops)
    order = ["integer only", "integer", "rounds", "moves", "float"]
    kinds = sorted(counts, key=lambda kind: (order.index(PLACEMENT[kind]), kind.__name__))
    return [{"op": kind.__name__, "count": counts[kind], "placement": PLACEMENT[kind]} for kind in kinds]


def _bitops(program: p.Program, product: Product) -> float:
    left, right = meeting_bits(program, product)
    return product.macs * float((left * right).mean())
