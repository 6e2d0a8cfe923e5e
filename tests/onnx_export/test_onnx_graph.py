"""graph: integers of 2 and 4 bits as onnx reads them, names, shared constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qvit.onnx_export.graph import IR_VERSION, Graph, pack, storage_width


@given(st.sampled_from([2, 4]), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_packed_codes_are_what_onnx_unpacks(width: int, shape: list[int], seed: int) -> None:
    top = 1 << (width - 1)
    codes = np.random.default_rng(seed).integers(-top, top, shape).astype(np.int8)
    graph = Graph()
    assert graph.nodes == []
    graph.integers(codes, width, "w")
    assert graph.nodes[0].op_type == "Cast"
    assert np.array_equal(numpy_helper.to_array(graph.initializers["w"]).astype(np.int8), codes)
    assert len(graph.initializers["w"].raw_data) == -(-codes.size * width // 8)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(np.array([1, -1, 7], np.int8), 4) == bytes([0xF1, 0x07])
    assert pack(np.array([1, -1, -2, 0, 1], np.int8), 2) == bytes([0b00101101, 0b01])


def test_wide_codes_need_no_cast() -> None:
    graph = Graph()
    assert graph.integers(np.array([[-128, 127]], np.int8), 8, "w") == "w"
    assert graph.nodes == []


@pytest.mark.parametrize(("bits", "plain", "with_int2"), [(2, 4, 2), (3, 4, 4), (4, 4, 4), (5, 8, 8), (8, 8, 8)])
def test_weights_take_the_narrowest_type(bits: int, plain: int, with_int2: int) -> None:
    assert (storage_width(bits, int2=False), storage_width(bits, int2=True)) == (plain, with_int2)


def test_equal_constants_are_one_and_names_are_never_given_twice() -> None:
    graph = Graph()
    graph.scope = "op"
    one = graph.constant(np.zeros(3, np.float32))
    assert graph.constant(np.zeros(3, np.float32), "other name") == one
    others = {graph.constant(np.zeros(3, np.int32)), graph.constant(np.zeros((3, 1), np.float32)), graph.axes(0, 0, 0)}
    assert len(others | {one}) == 4
    assert [graph.add("Neg", one), graph.add("Neg", one), graph.reserve("op/Neg")] == ["op/Neg", "op/Neg_2", "op/Neg_3"]


def test_the_file_version_is_the_oldest_of_its_opset() -> None:
    assert (IR_VERSION[20], IR_VERSION[21], IR_VERSION[25]) == (9, 10, 13)
