"""Products: the integer products of a Program, and which bits meet which in them.

A product has a left operand, whose rows stream through it, and a right one, which the engine packs once:

    op                left            right       pairs of bits that meet
    Linear            its input       weights     each block of weights with the group of the inputs that it multiplies
    QueryKey          queries         keys        head by head
    AttentionValue    attention map   values      head by head

Every pair stands for an equal share of the multiply-accumulates, so the cost of a product is a mean over its pairs.
ShiftAttentionValue shifts v by the codes of the map; it is counted like the product that it replaces, at the map's bits.

A two-scaled code (`QuantizeRegions`) is one code of k bits, a region flag and k - 1 bits of magnitude, though the program
holds it as two of k - 1 bits, of which one is 0. `code_bits` and `code_shape` count it as what it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import integer_ops as i
from . import program as p


@dataclass(frozen=True)
class Product:
    """One integer product.

    op     its position in the program
    macs   multiply-accumulates per image
    left   the buffer of its left operand
    right  its right operand: a weight of a Linear, else a buffer
    """

    op: int
    macs: int
    left: str
    right: str


def products(program: p.Program) -> list[Product]:
    """The integer products of a program, in order of execution."""
    found = []
    for position, op in enumerate(program.ops):
        match op:
            case p.Linear() | i.LinearAccumulate():
                rows = int(np.prod(program.buffers[op.input].shape[:-1]))
                found.append(Product(position, rows * program.weights[op.weight].codes.size, op.input, op.weight))
            case p.QueryKey() | i.QueryKeyAccumulate():
                found.append(Product(position, _score_macs(program, op.output, op.query), op.query, op.key))
            case p.AttentionValue() | i.AttentionValueAccumulate() | i.ShiftAttentionValue():
                found.append(Product(position, _value_macs(program, op.output, op.value), op.attention, op.value))
    return found


def meeting_bits(program: p.Program, product: Product) -> tuple[np.ndarray, np.ndarray]:
    """(left, right) bits of the pairs that meet, two integer arrays of one shape."""
    weight = program.weights.get(product.right)
    return _pairs(program, product, None if weight is None else weight.bits)


def multiplied_bits(program: p.Program, product: Product) -> tuple[np.ndarray, np.ndarray]:
    """`meeting_bits` of the numbers that are multiplied: those of a mid-rise weight of b bits have b + 1."""
    weight = program.weights.get(product.right)
    return _pairs(program, product, None if weight is None else weight.code_bits)


def _pairs(program: p.Program, product: Product, weight_bits: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`weight_bits` (row groups, column groups), or None where the right operand is a buffer."""
    left = code_bits(program, product.left)
    if weight_bits is None:
        return np.broadcast_arrays(left, code_bits(program, product.right))  # type: ignore[return-value]
    columns = weight_bits.shape[1]
    blocks = max(columns, len(left))
    return np.broadcast_arrays(  # type: ignore[return-value]
        np.repeat(left, blocks // len(left)), np.repeat(weight_bits, blocks // columns, axis=1)
    )


def code_bits(program: p.Program, buffer: str) -> np.ndarray:
    """Bits of the codes of a buffer, integers (groups,); a two-scaled code has k bits and one group."""
    grid = program.buffers[buffer].grid
    assert grid is not None
    return np.array([1 + grid.bits[0]] if buffer in program.two_scaled else grid.bits)


def code_shape(program: p.Program, buffer: str) -> tuple[int, ...]:
    """Shape of the codes of a buffer; two-scaled codes have that of the values they stand for."""
    *lead, width = program.buffers[buffer].shape
    return (*lead, width // 2 if buffer in program.two_scaled else width)


def _score_macs(program: p.Program, output: str, query: str) -> int:
    return int(np.prod(program.buffers[output].shape)) * program.buffers[query].shape[-1]


def _value_macs(program: p.Program, output: str, value: str) -> int:
    """Of the two regions of a two-scaled code only one is ever multiplied."""
    return int(np.prod(program.buffers[output].shape)) * program.buffers[value].shape[-2]
