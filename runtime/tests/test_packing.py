"""Packing: the drawing in its docstring, and identity for all widths, block grids and ragged sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit_runtime.packing import pack, packed_bytes, unpack


def grid(*bits: int) -> np.ndarray:
    return np.array([bits])


def test_the_drawing_is_true():
    """Codes 1, 2, 3, -4, -3, -2, -1, 0 of three bits: a = 001, b = 010, ... low bit first."""
    packed = pack(np.array([[1, 2, 3, -4, -3, -2, -1, 0]], np.int8), grid(3))
    bits = "".join(format(byte, "08b")[::-1] for byte in packed)
    assert bits == "100010110001101011111000"


def test_every_block_starts_on_a_byte():
    codes = np.array([[1, -1, 1, -1]], np.int8)
    assert pack(codes, grid(2, 3)).tolist() == [0b1101, 0b111001]
    assert packed_bytes((1, 4), grid(2, 3)).tolist() == [[1, 1]]


def test_blocks_are_in_row_major_order():
    codes = np.array([[1, 2], [3, 4]], np.int8)
    assert pack(codes, np.full((2, 2), 8)).tolist() == [1, 2, 3, 4]
    assert pack(codes.T.copy(), np.array([[8, 4], [8, 8]])).tolist() == [1, 3, 2, 4]


@st.composite
def weights(draw):
    """Codes that fill their range, bits per block, for ragged blocks."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 19))
    bits = np.array(draw(st.lists(st.integers(2, 8), min_size=rows * columns, max_size=rows * columns)))
    bits = bits.reshape(rows, columns)
    top = np.kron(1 << (bits - 1), np.ones((height, width), np.int64))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-top, top).astype(np.int8), bits


@given(weights())
def test_unpack_inverts_pack(weight):
    codes, bits = weight
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_bytes(codes.shape, bits).sum(),)
    restored = unpack(packed, codes.shape, bits)
    assert restored.dtype == np.int8
    assert np.array_equal(restored, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_extreme_codes_survive(bits):
    top = 1 << (bits - 1)
    codes = np.array([[-top, top - 1, 0, -1, -top]], np.int8)
    assert np.array_equal(unpack(pack(codes, grid(bits)), (1, 5), grid(bits)), codes)
    assert len(pack(codes, grid(bits))) == -(-5 * bits // 8)


@pytest.mark.parametrize("code", [2, -3])
def test_a_code_out_of_range_is_refused(code):
    with pytest.raises(ValueError, match=r"codes do not fit 2 bits, allowed: -2\.\.1"):
        pack(np.array([[code]], np.int8), grid(2))


@pytest.mark.parametrize("size", [0, 2])
def test_a_wrong_number_of_bytes_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} packed bytes, allowed: 1"):
        unpack(np.zeros(size, np.uint8), (1, 2), grid(3))


def test_a_fill_bit_is_refused():
    with pytest.raises(ValueError, match="fill bit"):
        unpack(np.array([0b01000000], np.uint8), (1, 2), grid(3))
