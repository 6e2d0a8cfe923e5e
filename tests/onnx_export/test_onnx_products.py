"""products: every form of a Linear says what the interpreter says, and no pair of products can saturate 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_integer_programs as integer_toys
import toy_programs as toys
from qvit.onnx_export.translate import translate
from qvit.onnx_export.verify import verify
from qvit_runtime import program as p
from toy_onnx import integer_weights, kinds, linear_program, random_images, stored_types


def assert_verified(program: p.Program) -> onnx.ModelProto:
    model, t = translate(program)
    onnx.checker.check_model(model, full_check=True)
    verify(model, t, random_images(program, 3))
    return model


@settings(max_examples=40)
@given(
    bits=st.lists(st.integers(2, 8), min_size=1, max_size=4).map(tuple),
    weight_bits=st.integers(2, 8),
    rows=st.sampled_from([1, 2, 6]),
    columns=st.booleans(),
    per_head=st.booleans(),
    signed=st.booleans(),
    midrise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_linear_of_any_groups_is_the_interpreters(
    bits: tuple[int, ...],
    weight_bits: int,
    rows: int,
    columns: bool,
    per_head: bool,
    signed: bool,
    midrise: bool,
    seed: int,
) -> None:
    groups = (rows, len(bits) if columns else 1)
    offset = 0.0 if signed else -0.7
    assert_verified(linear_program(bits, weight_bits, groups, per_head, signed, offset, midrise, seed))


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 8), (8, 7), (7, 8), (8, 2), (2, 8), (4, 4)])
def test_pairs_of_products_stay_in_16_bits(bits: int, weight_bits: int, per_head: bool) -> None:
    program = linear_program((bits, 2), weight_bits, (1, 2), per_head)
    weights = integer_weights(assert_verified(program))
    largest = max(int(np.abs(weight).max()) for weight in weights.values())
    assert 2 * (2**bits - 1) * largest < 2**15
    assert len(weights) == (2 if bits + weight_bits == 16 else 1)


@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 7), (8, 6), (7, 7), (8, 2)])
def test_pairs_of_mid_rise_products_stay_in_16_bits(bits: int, weight_bits: int) -> None:
    """Their codes have one bit more, so with 8-bit codes 7 bits are halved already."""
    weights = integer_weights(assert_verified(linear_program((bits, 2), weight_bits, (1, 2), midrise=True)))
    largest = max(int(np.abs(weight).max()) for weight in weights.values())
    assert 2 * (2**bits - 1) * largest < 2**15
    assert len(weights) == (2 if bits + weight_bits == 15 else 1)


def test_heads_stay_apart_where_their_scales_differ() -> None:
    mixed, uniform = (kinds(assert_verified(linear_program((4, 3), per_head=per_head))) for per_head in (True, False))
    assert "Transpose" not in mixed
    assert "ReduceSum" in mixed
    assert "Transpose" in uniform
    assert "ReduceSum" not in uniform


def test_the_codes_of_a_linear_come_straight_from_dequantize() -> None:
    """Else ONNX Runtime and OpenVINO take the weight for a compressed one and quantize the other side again."""
    for program in (
        toys.swin_program(),
        toys.vit_program(),
        integer_toys.regions_program(),
        linear_program(per_head=False),
    ):
        model = assert_verified(program)
        producer = {node.output[0]: node.op_type for node in model.graph.node}
        stored = {node.output[0] for node in model.graph.node if node.op_type == "Cast"} | set(integer_weights(model))
        weights = {
            node.output[0]
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in stored
        }
        products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
        assert len(products) >= sum(isinstance(op, p.Linear) for op in program.ops)
        assert {producer[node.input[0]] for node in products} == {"DequantizeLinear"}


@pytest.mark.parametrize(("bits", "stored"), [(2, {"INT4"}), (4, {"INT4"}), (5, {"INT8"})])
def test_stored_types(bits: int, stored: set[str]) -> None:
    assert stored_types(assert_verified(linear_program(weight_bits=bits))) == stored


@pytest.mark.parametrize(("bits", "stored"), [(2, {"INT4"}), (3, {"INT4"}), (4, {"INT8"})])
def test_stored_types_of_mid_rise_weights(bits: int, stored: set[str]) -> None:
    """-3..3 of 2 bits do not fit int2, on request neither."""
    program = linear_program(weight_bits=bits, midrise=True)
    assert stored_types(assert_verified(program)) == stored
    assert stored_types(translate(program, int2=True)[0]) == stored


def test_a_width_below_that_of_the_type_is_clipped() -> None:
    assert "Min" in kinds(assert_verified(linear_program((4,))))
    assert not {"Min", "Max"} & set(kinds(assert_verified(linear_program((8,)))))
    assert {"Min", "Max"} <= set(kinds(assert_verified(linear_program((4, 8)))))  # the low end of the narrow head


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_two_scaled_codes(bits: int) -> None:
    assert_verified(integer_toys.regions_program(bits=bits))
