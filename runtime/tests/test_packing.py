"""Packing: the drawing in its docstring, and identity for all widths, kinds, block grids and ragged sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit_runtime.packing import pack, packed_bytes, unpack


def grid(*bits: int) -> np.ndarray:
    return np.array([bits])


NOWHERE, EVERYWHERE = np.array([[False]]), np.array([[True]])


def test_the_drawing_is_true():
    """Codes 1, 2, 3, -4, -3, -2, -1, 0 of three bits: a = 001, b = 010, ... low bit first."""
    packed = pack(np.array([[1, 2, 3, -4, -3, -2, -1, 0]], np.int8), grid(3), NOWHERE)
    bits = "".join(format(byte, "08b")[::-1] for byte in packed)
    assert bits == "100010110001101011111000"


def test_every_block_starts_on_a_byte():
    codes = np.array([[1, -1, 1, -1]], np.int8)
    assert pack(codes, grid(2, 3), np.array([[False, False]])).tolist() == [0b1101, 0b111001]
    assert packed_bytes((1, 4), grid(2, 3)).tolist() == [[1, 1]]


def test_blocks_are_in_row_major_order():
    codes = np.array([[1, 2], [3, 4]], np.int8)
    nowhere = np.zeros((2, 2), np.bool_)
    assert pack(codes, np.full((2, 2), 8), nowhere).tolist() == [1, 2, 3, 4]
    assert pack(codes.T.copy(), np.array([[8, 4], [8, 8]]), nowhere).tolist() == [1, 3, 2, 4]


def test_mid_rise_codes_of_two_bits_take_two_bits():
    """-3, -1, 1, 3 are stored as -2, -1, 0, 1, beside a block that stores what it holds."""
    codes = np.array([[-3, -1, 1, 3, -2, -1, 0, 1]], np.int8)
    assert pack(codes, grid(2, 2), np.array([[True, False]])).tolist() == [0b01001110, 0b01001110]


@st.composite
def weights(draw):
    """Codes that fill their range, bits per block and whether it is mid-rise, for ragged blocks."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 19))
    bits = np.array(draw(st.lists(st.integers(2, 8), min_size=rows * columns, max_size=rows * columns)))
    bits = bits.reshape(rows, columns)
    block = np.ones((height, width), np.int64)
    top = np.kron(1 << (bits - 1), block)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    midrise = rng.choice([False, True], bits.shape) & (bits < 8)
    codes = rng.integers(-top, top)
    return np.where(np.kron(midrise, block), 2 * codes + 1, codes).astype(np.int8), bits, midrise


@given(weights())
def test_unpack_inverts_pack(weight):
    codes, bits, midrise = weight
    packed = pack(codes, bits, midrise)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_bytes(codes.shape, bits).sum(),)
    restored = unpack(packed, codes.shape, bits, midrise)
    assert restored.dtype == np.int8
    assert np.array_equal(restored, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_extreme_codes_survive(bits):
    top = 1 << (bits - 1)
    codes = np.array([[-top, top - 1, 0, -1, -top]], np.int8)
    packed = pack(codes, grid(bits), NOWHERE)
    assert np.array_equal(unpack(packed, (1, 5), grid(bits), NOWHERE), codes)
    assert len(packed) == -(-5 * bits // 8)


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_extreme_mid_rise_codes_survive(bits):
    top = (1 << bits) - 1
    codes = np.array([[-top, top, 1, -1, -top]], np.int8)
    packed = pack(codes, grid(bits), EVERYWHERE)
    assert np.array_equal(unpack(packed, (1, 5), grid(bits), EVERYWHERE), codes)
    assert len(packed) == -(-5 * bits // 8)


@pytest.mark.parametrize("code", [2, -3])
def test_a_code_out_of_range_is_refused(code):
    with pytest.raises(ValueError, match=r"codes do not fit 2 bits, allowed: -2\.\.1"):
        pack(np.array([[code]], np.int8), grid(2), NOWHERE)


@pytest.mark.parametrize("code", [5, -5, 127, -127])
def test_a_mid_rise_code_out_of_range_is_refused(code):
    """Also beside a block of the same width in which the stored number would be a code."""
    with pytest.raises(ValueError, match=r"codes do not fit 2 bits, allowed: odd codes -3\.\.3"):
        pack(np.array([[1, code]], np.int8), grid(2, 2), np.array([[False, True]]))


@pytest.mark.parametrize("code", [0, -2, 2, -128])
def test_an_even_code_in_a_mid_rise_block_is_refused(code):
    with pytest.raises(ValueError, match="an even code in a mid-rise block, allowed: odd codes"):
        pack(np.array([[1, code]], np.int8), grid(3), EVERYWHERE)


@pytest.mark.parametrize("size", [0, 2])
def test_a_wrong_number_of_bytes_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} packed bytes, allowed: 1"):
        unpack(np.zeros(size, np.uint8), (1, 2), grid(3), NOWHERE)


def test_a_fill_bit_is_refused():
    with pytest.raises(ValueError, match="fill bit"):
        unpack(np.array([0b01000000], np.uint8), (1, 2), grid(3), NOWHERE)
