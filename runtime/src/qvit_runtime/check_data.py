"""What a well-formed grid, buffer, weight, constant, array of integers and preprocess are: the data of a Program, before any op is looked at.

The limits are not decoration, each one keeps a promise made elsewhere:

  inner dimension <= 65,536     255 x 128 x 65,536 < 2^31: an int32 accumulator of 8-bit codes and weights never overflows
                                (of two activations, both unsigned, it could: `integer_bounds`)
  1e-12 <= scale <= 1e12        scale_x * scale_w * accumulator stays a finite float32, so a product never yields NaN
  elements <= 2^27              one buffer of one image is at most 512 MiB, whatever a file claims

`fail` is how every check speaks: one line, where it is, what was found, what is allowed.
"""

from __future__ import annotations

import numpy as np

from . import program as p
from .integer_ops import WIDE_BITS

MAX_NAME = 200
MAX_RANK = 4
MAX_ELEMENTS = 1 << 27
MAX_INNER = 1 << 16
MIN_SCALE, MAX_SCALE = 1e-12, 1e12
MAX_CONSTANT = 1e12
MAX_INTEGER = (1 << 31) - 1
MAX_ENTRIES = 100_000
MAX_TEXT = 10_000
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash", "border")


class ProgramError(ValueError):
    """A Program that no backend may run; the message is one line."""


def fail(where: str, found: object, allowed: str) -> ProgramError:
    """The error that says where, what was found and what is allowed, on one line of bounded length."""
    text = " ".join(str(found).split())
    return ProgramError(f"{where} is {text[:120]}, allowed: {allowed}")


def check_name(where: str, name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise fail(where, repr(name), f"1 to {MAX_NAME} printable characters")


def check_int(where: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise fail(where, repr(value), f"an integer in {low}..{high}")


def check_float(where: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, float | int | np.floating) or isinstance(value, bool) or not low <= value <= high:
        raise fail(where, repr(value), f"a number in {low:g}..{high:g}")


def check_array(where: str, array: object, dtype: type, shape: tuple[int, ...], low: float, high: float) -> None:
    """An array of this dtype and shape with all elements in [low, high]; NaN is in no range."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise fail(where, found, f"{np.dtype(dtype).name} {shape}")
    good = (array >= low) & (array <= high)
    if not good.all():
        raise fail(f"{where}: an element", array[~good][0], f"{low:g}..{high:g}")


def check_buffer(name: str, buffer: p.Buffer) -> None:
    where = f"buffer {name!r}"
    check_name("a buffer's name", name)
    if not isinstance(buffer, p.Buffer):
        raise fail(where, type(buffer).__name__, "a Buffer")
    if buffer.name != name:
        raise fail(f"{where}: name", repr(buffer.name), "the name it is filed under")
    check_shape(f"{where}: shape", buffer.shape)
    if buffer.grid is not None:
        check_grid(f"{where}: grid", buffer.grid, buffer.shape)


def check_shape(where: str, shape: object) -> None:
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= MAX_RANK:
        raise fail(where, repr(shape), f"a tuple of 1 to {MAX_RANK} sizes")
    elements = 1
    for size in shape:
        check_int(f"{where}: a size", size, 1, MAX_ELEMENTS)
        elements *= int(size)
    if elements > MAX_ELEMENTS:
        raise fail(where, f"{shape}, {elements} elements", f"at most {MAX_ELEMENTS} elements")


def check_grid(where: str, grid: p.Grid, shape: tuple[int, ...]) -> None:
    if not isinstance(grid, p.Grid) or not isinstance(grid.bits, tuple) or not isinstance(grid.signed, bool):
        raise fail(where, repr(grid), "a Grid with a tuple of bits and a bool signed")
    check_int(f"{where}.axis", grid.axis, 0, len(shape) - 1)
    check_int(f"{where}: number of groups", grid.groups, 1, shape[grid.axis])
    if shape[grid.axis] % grid.groups:
        raise fail(f"{where}: number of groups", grid.groups, f"a divisor of {shape[grid.axis]}, axis {grid.axis}")
    may_be_wide = grid.signed and all(bits == grid.bits[0] for bits in grid.bits)
    may_be_region = not grid.signed and grid.bits == (1, 1)  # 2-bit two-scaled codes: a flag and one bit
    for bits in grid.bits:
        whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
        if not whole or not (p.MIN_BITS <= bits <= p.MAX_BITS or (may_be_wide and bits in WIDE_BITS) or may_be_region):
            allowed = "an integer in 2..8, or 16 or 32 for all groups of a signed grid, or 1 for both regions of two-scaled codes"
            raise fail(f"{where}.bits", bits, allowed)
    check_array(f"{where}.scale", grid.scale, np.float32, (grid.groups,), MIN_SCALE, MAX_SCALE)
    check_array(f"{where}.offset", grid.offset, np.float32, (grid.groups,), -MAX_CONSTANT, MAX_CONSTANT)
    if grid.signed and grid.offset.any():
        raise fail(f"{where}.offset", grid.offset, "0 on a signed grid")


def check_weight(name: str, weight: p.Weight) -> None:
    where = f"weight {name!r}"
    check_name("a weight's name", name)
    if not isinstance(weight, p.Weight):
        raise fail(where, type(weight).__name__, "a Weight")
    codes, bits, scale, midrise = weight.codes, weight.bits, weight.scale, weight.midrise
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.ndim != 2:
        raise fail(f"{where}: codes", _describe(codes), "int8 (out, in)")
    out_features, in_features = codes.shape
    check_int(f"{where}: outputs", out_features, 1, MAX_ELEMENTS)
    check_int(f"{where}: inputs", in_features, 1, MAX_INNER)
    if not isinstance(bits, np.ndarray) or bits.dtype.kind not in "iu" or bits.ndim != 2 or bits.size == 0:
        raise fail(f"{where}: bits", _describe(bits), "integers (row_groups, column_groups)")
    rows, columns = bits.shape
    if out_features % rows or in_features % columns:
        raise fail(f"{where}: groups", bits.shape, f"divisors of its shape {codes.shape}")
    check_array(f"{where}: bits", bits, bits.dtype.type, (rows, columns), p.MIN_BITS, p.MAX_BITS)
    check_array(f"{where}: scale", scale, np.float32, (rows, columns), MIN_SCALE, MAX_SCALE)
    if not isinstance(midrise, np.ndarray) or midrise.dtype != np.bool_ or midrise.shape != (rows, columns):
        raise fail(f"{where}: midrise", _describe(midrise), f"bool {(rows, columns)}, as bits")
    if (bits[midrise] > p.MAX_MIDRISE_BITS).any():
        raise fail(f"{where}: a mid-rise block", f"of {bits[midrise].max()} bits", f"2..{p.MAX_MIDRISE_BITS} bits")
    _check_codes(where, weight, codes.reshape(rows, out_features // rows, columns, in_features // columns))


def _check_codes(where: str, weight: p.Weight, blocks: np.ndarray) -> None:
    """Codes (row group, row, column group, column) are in the range of their block, and odd where it is mid-rise."""
    low, high = blocks.min(axis=(1, 3)), blocks.max(axis=(1, 3))
    even = weight.midrise & (np.bitwise_and.reduce(blocks, axis=(1, 3)) & 1 == 0)
    bad = (low < weight.qmin) | (high > weight.qmax) | even
    if bad.any():
        row, column = at = tuple(int(i) for i in np.argwhere(bad)[0])
        found = "an even code" if even[at] else f"codes {low[at]}..{high[at]}"
        odd = f"odd codes {weight.qmin[at]}..{weight.qmax[at]}"
        allowed = odd if weight.midrise[at] else f"codes of {weight.bits[at]} bits"
        raise fail(f"{where}: block ({row}, {column})", found, allowed)


def check_constant(name: str, array: np.ndarray) -> None:
    where = f"constant {name!r}"
    check_name("a constant's name", name)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not 1 <= array.ndim <= MAX_RANK:
        raise fail(where, _describe(array), f"float32 of 1 to {MAX_RANK} axes")
    check_array(where, array, np.float32, array.shape, -MAX_CONSTANT, MAX_CONSTANT)


def check_integers(name: str, array: np.ndarray) -> None:
    where = f"integers {name!r}"
    check_name("a name of integers", name)
    if not isinstance(array, np.ndarray) or array.dtype != np.int32 or not 1 <= array.ndim <= MAX_RANK:
        raise fail(where, _describe(array), f"int32 of 1 to {MAX_RANK} axes")
    if (array < -MAX_INTEGER).any():
        raise fail(f"{where}: an element", array.min(), f"-{MAX_INTEGER}..{MAX_INTEGER}")


def check_preprocess(preprocess: p.Preprocess, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
    where = "preprocess"
    if not isinstance(preprocess, p.Preprocess):
        raise fail(where, type(preprocess).__name__, "a Preprocess")
    if not isinstance(preprocess.size, tuple) or len(preprocess.size) != 2:
        raise fail(f"{where}: size", repr(preprocess.size), "(height, width)")
    for side in preprocess.size:
        check_int(f"{where}: size", side, 1, MAX_ELEMENTS)
    if preprocess.size != input_shape[1:]:
        raise fail(f"{where}: size", preprocess.size, f"the input's (height, width) {input_shape[1:]}")
    check_float(f"{where}: crop", preprocess.crop, 0.01, 1.0)
    for field, allowed in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if getattr(preprocess, field) not in allowed:
            raise fail(f"{where}: {field}", repr(getattr(preprocess, field)), ", ".join(allowed))
    channels = input_shape[0]
    for field, low in (("mean", -1e6), ("std", 1e-6)):
        numbers = getattr(preprocess, field)
        if not isinstance(numbers, tuple) or len(numbers) != channels:
            raise fail(f"{where}: {field}", repr(numbers), f"a tuple of {channels} numbers, one per channel")
        for number in numbers:
            check_float(f"{where}: {field}", number, low, 1e6)
    labels = preprocess.labels
    if not isinstance(labels, tuple) or len(labels) not in (0, output_shape[-1]):
        found = len(labels) if isinstance(labels, tuple) else type(labels).__name__
        raise fail(f"{where}: labels", found, f"a tuple of 0 or {output_shape[-1]} names")
    for label in labels:
        check_text(f"{where}: a label", label, "")


def check_metadata(metadata: dict[str, str]) -> None:
    if not isinstance(metadata, dict) or len(metadata) > MAX_ENTRIES:
        raise fail("metadata", type(metadata).__name__, f"a dict of at most {MAX_ENTRIES} texts")
    for key, value in metadata.items():
        check_name("a metadata key", key)
        check_text(f"metadata {key!r}", value)


def check_text(where: str, text: object, also: str = "\n\t") -> None:
    """Printable text, which half a surrogate is not: it could be neither shown nor stored."""
    if not isinstance(text, str) or len(text) > MAX_TEXT or not all(c.isprintable() or c in also for c in text):
        raise fail(where, repr(text), f"at most {MAX_TEXT} printable characters")


def _describe(array: object) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
