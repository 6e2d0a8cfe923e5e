"""The container of an artifact: named tensors and text metadata in the safetensors layout, read without trust.

    +----------+----------------------------------+--------------------------------+
    | length n | header: n bytes of JSON          | data: the tensors, gapless     |
    | u64 LE   | padded with spaces to 8 bytes    | in the order of their offsets  |
    +----------+----------------------------------+--------------------------------+

    header = {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

Why our own reader and writer of a format that has a package: the same Program must give the same bytes on every machine
(the package writes its metadata in hash order), a hostile file must be refused with the name of the field before
anything is allocated, and the runtime has one dependency less. Tests hold both against the package.

Only F32, I32 and U8 are in use. They come in this order, so that all are aligned; in a dtype the order is that of the names.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

MAX_HEADER = 16 << 20
MAX_DATA = 1 << 32
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
NAMES = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}

Tensors = dict[str, np.ndarray]


class FormatError(ValueError):
    """A file that does not follow the format; the message names the field, on one line."""


def encode(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """Bytes of a file that holds these float32, int32 and uint8 tensors."""
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (NAMES[item[1].dtype], item[0])):
        kind = NAMES[tensor.dtype]
        part = np.ascontiguousarray(tensor, DTYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(content: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors (copies) and metadata of the bytes of a file. Raises FormatError."""
    if len(content) < 8:
        raise FormatError(f"the file has {len(content)} bytes, allowed: at least 8")
    length, rest = int.from_bytes(content[:8], "little"), len(content) - 8
    if length > min(MAX_HEADER, rest):
        raise FormatError(f"header length is {length}, allowed: at most {min(MAX_HEADER, rest)}")
    header = parse_json("header", content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("__metadata__ is not a table of texts")
    data = memoryview(content)[8 + length :]
    spans = sorted(_span(name, entry) for name, entry in header.items())
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise FormatError(f"tensor {name[:100]!r}: data_offsets begin at {begin}, allowed: {position}")
        position = end
    if position != len(data):
        raise FormatError(f"data has {len(data)} bytes, allowed: {position}, the end of the last tensor")
    return {name: _tensor(header[name], data[begin:end]) for begin, end, name in spans}, metadata


def _span(name: str, entry: object) -> tuple[int, int, str]:
    """(begin, end, name) of a tensor whose header entry is consistent in itself."""
    where = f"tensor {name[:100]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: allowed: dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise FormatError(f"{where}: dtype is {str(kind)[:20]!r}, allowed: {', '.join(DTYPES)}")
    if not is_sizes(shape) or len(shape) > 8:
        raise FormatError(f"{where}: shape is {str(shape)[:60]}, allowed: at most 8 sizes")
    if not is_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets is {str(offsets)[:60]}, allowed: [begin, end]")
    begin, end = offsets
    size = bound = DTYPES[kind].itemsize
    for length in shape:
        size *= length
        bound *= max(length, 1)
    if bound > MAX_DATA:  # (0, 2^32, 2^32) has no bytes, and still no array may have this shape
        raise FormatError(f"{where}: shape is {str(shape)[:60]}, allowed: at most {MAX_DATA} bytes")
    if end - begin != size:
        raise FormatError(f"{where}: data_offsets span {end - begin} bytes, allowed: {size}, as its shape says")
    return begin, end, name


def _tensor(entry: dict[str, Any], data: memoryview) -> np.ndarray:
    dtype = DTYPES[entry["dtype"]]
    return np.frombuffer(data, dtype).reshape(entry["shape"]).astype(dtype.newbyteorder("="))


def is_sizes(value: object) -> bool:
    """A list of ints (not bools) in 0..2^32."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_DATA for item in value)


def parse_json(where: str, text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 in which no key appears twice and every number is finite."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where} is a {type(value).__name__}, allowed: an object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FormatError(f"key {name[:100]!r} appears twice")
    return table


def _no_constant(text: str) -> float:
    raise FormatError(f"a number is {text}, allowed: finite numbers")
