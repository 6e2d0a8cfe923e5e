"""Weight codes at their learned width: a 3-bit code takes three bits of the file, not eight.

The codes of a weight are cut into its blocks, row groups first:

    codes (out, in)            +-------+-------+
    2 x 2 groups               |   0   |   1   |      file:  | block 0 | block 1 | block 2 | block 3 |
                               +-------+-------+
                               |   2   |   3   |
                               +-------+-------+

A block is its codes in row-major order, each as the low `bits` bits of its two's complement (of a mid-rise block, whose
codes are odd, (code - 1) / 2 takes the place of the code), written one after the other into a stream of bits that starts at the low end of the first byte. For bits = 3 and codes a, b, c, ...:

    byte           0                 1                 2
    bit     0 1 2 3 4 5 6 7   0 1 2 3 4 5 6 7   0 1 2 3 4 5 6 7
            a a a b b b c c   c d d d e e e f   f f g g g h h h          8 codes in 3 bytes

The last byte of a block is filled up with zero bits, so every block starts on a byte; readers refuse a fill that is not
zero, so that equal weights have equal bytes. The widths of the blocks and which are mid-rise stand elsewhere (the
artifact's header): the length of everything follows from them before a byte is read.
"""

from __future__ import annotations

import numpy as np


def packed_bytes(shape: tuple[int, int], bits: np.ndarray) -> np.ndarray:
    """Bytes of each block, int64 (row_groups, column_groups), for codes of this (out, in) shape."""
    rows, columns = bits.shape
    count = (shape[0] // rows) * (shape[1] // columns)
    return (count * bits.astype(np.int64) + 7) // 8


def pack(codes: np.ndarray, bits: np.ndarray, midrise: np.ndarray) -> np.ndarray:
    """int8 codes (out, in), bits and midrise (row_groups, column_groups) -> uint8 (sum of packed_bytes,).

    Raises ValueError when a code does not fit its block's bits, or is even in a mid-rise block.
    """
    blocks, sizes = _blocks(codes, bits), packed_bytes((codes.shape[0], codes.shape[1]), bits).ravel()
    odd = midrise.ravel()
    if not (blocks[odd] & 1).all():
        raise ValueError("an even code in a mid-rise block, allowed: odd codes")
    blocks = np.where(odd[:, None], blocks >> 1, blocks)  # the shift rounds down: (code - 1) / 2 of odd codes
    starts = np.cumsum(sizes) - sizes
    packed = np.zeros(int(sizes.sum()), np.uint8)
    for width in np.unique(bits):
        chosen = np.flatnonzero(bits.ravel() == width)
        top = 1 << (int(width) - 1)
        beyond = chosen[(blocks[chosen].min(axis=1) < -top) | (blocks[chosen].max(axis=1) >= top)]
        if len(beyond):
            allowed = f"odd codes {1 - 2 * top}..{2 * top - 1}" if odd[beyond[0]] else f"{-top}..{top - 1}"
            raise ValueError(f"codes do not fit {width} bits, allowed: {allowed}")
        # (blocks, codes) -> (blocks, codes, 8), of which the low bits are kept
        stream = np.unpackbits(blocks[chosen].view(np.uint8)[..., None], axis=-1, bitorder="little")[..., :width]
        rows = np.packbits(stream.reshape(len(chosen), -1), axis=1, bitorder="little")
        packed[starts[chosen][:, None] + np.arange(rows.shape[1])] = rows
    return packed


def unpack(packed: np.ndarray, shape: tuple[int, int], bits: np.ndarray, midrise: np.ndarray) -> np.ndarray:
    """uint8 (bytes,) -> int8 codes (out, in): the inverse of `pack`. A mid-rise block has at most 7 bits.

    Raises ValueError when the number of bytes does not follow from the shape and bits, or a fill bit is set.
    """
    sizes = packed_bytes(shape, bits).ravel()
    if packed.shape != (int(sizes.sum()),):
        raise ValueError(f"{packed.size} packed bytes, allowed: {int(sizes.sum())}")
    starts = np.cumsum(sizes) - sizes
    count = (shape[0] // bits.shape[0]) * (shape[1] // bits.shape[1])
    blocks = np.empty((bits.size, count), np.int8)
    for width in np.unique(bits):
        chosen = np.flatnonzero(bits.ravel() == width)
        rows = packed[starts[chosen][:, None] + np.arange(sizes[chosen[0]])]
        if count * width % 8 and (rows[:, -1] >> (count * width % 8)).any():
            raise ValueError("a fill bit behind a block is set, allowed: zero")
        low = _low_bits(rows, int(width), count)
        sign = np.uint8(1 << (int(width) - 1))
        blocks[chosen] = ((low ^ sign) - sign).view(np.int8)  # extend the sign from `width` to 8 bits
    odd = midrise.ravel()
    blocks[odd] = 2 * blocks[odd] + 1
    rows_of_blocks = blocks.reshape(*bits.shape, shape[0] // bits.shape[0], shape[1] // bits.shape[1])
    return np.ascontiguousarray(rows_of_blocks.swapaxes(1, 2)).reshape(shape)


def _low_bits(rows: np.ndarray, width: int, count: int) -> np.ndarray:
    """uint8 (blocks, bytes) -> uint8 (blocks, count), the streams cut into codes of `width` bits, not sign-extended.

    Eight codes are `width` whole bytes: they become one 64-bit word, out of which each code is shifted.
    """
    octets = -(-count // 8)
    stream = np.zeros((len(rows), octets * width), np.uint8)
    stream[:, : rows.shape[1]] = rows
    words = np.zeros((len(rows), octets, 8), np.uint8)
    words[..., :width] = stream.reshape(len(rows), octets, width)
    word = words.view("<u8")[..., 0]
    low = np.empty((len(rows), octets, 8), np.uint8)
    for place in range(8):
        low[..., place] = (word >> np.uint64(place * width)) & np.uint64((1 << width) - 1)
    return low.reshape(len(rows), -1)[:, :count]


def _blocks(codes: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """(out, in) -> (row_groups * column_groups, codes of a block), contiguous."""
    (rows, columns), (out_features, in_features) = bits.shape, codes.shape
    cut = codes.reshape(rows, out_features // rows, columns, in_features // columns).swapaxes(1, 2)
    return np.ascontiguousarray(cut).reshape(rows * columns, -1)
