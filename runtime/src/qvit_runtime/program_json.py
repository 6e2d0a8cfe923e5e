"""A Program as JSON, all but its arrays: what `artifact` stores in the header and `inspect` could print.

    {"name": "deit_tiny_patch16_224", "input": "image", "output": "head",
     "preprocess": {"size": [224, 224], "crop": 0.9, "crop_mode": "center", "interpolation": "bicubic", "mean": [...], "std": [...], "labels": []},
     "metadata": {},
     "ops": [{"op": "Quantize", "input": "image", "output": "image_codes"}, ...],
     "buffers": {"image": {"shape": [3, 224, 224]},
                 "image_codes": {"shape": [3, 224, 224],
                                 "grid": {"bits": [8], "signed": true, "axis": 0, "scale": [0.02], "offset": [0.0]}}, ...},
     "weights": {"blocks.0.attn.qkv.weight": {"shape": [576, 192], "bits": [[3], [2], ...],
                                              "midrise": [[false], [true], ...]}, ...},
     "constants": ["norm.bias", ...],
     "integers": ["norm.multiplier", ...]}

Scales of grids are float32 numbers written with the digits of a float64, so they come back bit for bit. Reading is strict:
every key must be there and no other (`integers` where there are any, `midrise` where a weight has such blocks); what the
values may be, `check` says afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import program as p
from .check_ops import CHECK
from .tensor_file import FormatError

OPS = {kind.__name__: kind for kind in CHECK}


@dataclass(frozen=True)
class WeightSkeleton:
    """A weight whose codes and scales are still to be read; bits and midrise are (row_groups, column_groups)."""

    shape: tuple[int, int]
    bits: np.ndarray
    midrise: np.ndarray


@dataclass(frozen=True)
class Skeleton:
    """A Program whose arrays are still to be read."""

    program: p.Program
    weights: dict[str, WeightSkeleton]
    constants: tuple[str, ...]
    integers: tuple[str, ...]


def to_json(program: p.Program) -> dict[str, Any]:
    """The JSON object of a well-formed Program."""
    return {
        "name": program.name,
        "input": program.input,
        "output": program.output,
        "preprocess": {field.name: _plain(getattr(program.preprocess, field.name)) for field in fields(p.Preprocess)},
        "metadata": dict(program.metadata),
        "ops": [
            {"op": type(op).__name__} | {field.name: _plain(getattr(op, field.name)) for field in fields(op)}
            for op in program.ops
        ],
        "buffers": {name: _buffer_to_json(buffer) for name, buffer in program.buffers.items()},
        "weights": {name: _weight_to_json(weight) for name, weight in program.weights.items()},
        "constants": list(program.constants),
    } | ({"integers": list(program.integers)} if program.integers else {})


def _plain(value: Any) -> Any:
    """A tuple as a list, a numpy number as a Python one."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _weight_to_json(weight: p.Weight) -> dict[str, Any]:
    table: dict[str, Any] = {"shape": list(weight.codes.shape), "bits": weight.bits.tolist()}
    if weight.midrise.any():
        table["midrise"] = weight.midrise.tolist()
    return table


def _buffer_to_json(buffer: p.Buffer) -> dict[str, Any]:
    table: dict[str, Any] = {"shape": _plain(buffer.shape)}
    if buffer.grid is not None:
        grid = buffer.grid
        table["grid"] = {
            "bits": _plain(grid.bits),
            "signed": grid.signed,
            "axis": int(grid.axis),
            "scale": [float(x) for x in grid.scale],
            "offset": [float(x) for x in grid.offset],
        }
    return table


def from_json(table: dict[str, Any]) -> Skeleton:
    """The Program of a JSON object, its weights, constants and integers still empty. Raises FormatError."""
    required = [field.name for field in fields(p.Program) if field.name != "integers"]
    keys(table, "program", required, optional=("integers",))
    program = p.Program(
        name=table["name"],
        input=_text(table, "program", "input"),
        output=_text(table, "program", "output"),
        ops=tuple(_op(f"op {step}", op) for step, op in enumerate(_kind(table, "program", "ops", list))),
        buffers={name: _buffer(name, item) for name, item in _kind(table, "program", "buffers", dict).items()},
        weights={},
        constants={},
        preprocess=_preprocess(_kind(table, "program", "preprocess", dict)),
        metadata=_kind(table, "program", "metadata", dict),
    )
    weights = {name: _weight(name, item) for name, item in _kind(table, "program", "weights", dict).items()}
    integers = _names(table, "integers") if "integers" in table else ()
    return Skeleton(program, weights, _names(table, "constants"), integers)


def _names(table: dict[str, Any], key: str) -> tuple[str, ...]:
    names = _kind(table, "program", key, list)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise FormatError(f"program: {key} is not a list of different names")
    return tuple(names)


def keys(table: object, where: str, names: list[str], optional: tuple[str, ...] = ()) -> None:
    """`table` is an object with exactly these keys."""
    if not isinstance(table, dict):
        raise FormatError(f"{where} is a {type(table).__name__}, allowed: an object")
    missing = [name for name in names if name not in table]
    unknown = [name for name in table if name not in names and name not in optional]
    if missing or unknown:
        found = f"no key {missing[0]!r}" if missing else f"the unknown key {unknown[0][:60]!r}"
        raise FormatError(f"{where} has {found}, allowed: {', '.join([*names, *optional])}")


def _kind(table: dict[str, Any], where: str, key: str, kind: type) -> Any:
    if not isinstance(table[key], kind):
        raise FormatError(f"{where}: {key} is a {type(table[key]).__name__}, allowed: {kind.__name__}")
    return table[key]


def _text(table: dict[str, Any], where: str, key: str) -> str:
    text: str = _kind(table, where, key, str)
    return text


def _op(where: str, table: object) -> p.Op:
    if not isinstance(table, dict) or not isinstance(table.get("op"), str) or table["op"] not in OPS:
        found = table.get("op") if isinstance(table, dict) else type(table).__name__
        raise FormatError(f"{where} is {str(found)[:40]!r}, allowed: {', '.join(OPS)}")
    kind = OPS[table["op"]]
    names = [field.name for field in fields(kind)]
    keys(table, f"{where} {table['op']}", ["op", *names])
    op: p.Op = kind(**{field.name: _field(field.type, table[field.name]) for field in fields(kind)})
    return op


def _field(annotation: object, value: Any) -> Any:
    """JSON has one kind of number and no tuples; anything else is left for `check` to refuse."""
    if isinstance(value, list):
        return tuple(value)
    if annotation == "float" and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    return value


def _buffer(name: str, table: object) -> p.Buffer:
    where = f"buffer {name[:100]!r}"
    keys(table, where, ["shape"], ("grid",))
    assert isinstance(table, dict)
    shape = tuple(_kind(table, where, "shape", list))
    return p.Buffer(name, shape, _grid(f"{where}: grid", table["grid"]) if "grid" in table else None)


def _grid(where: str, table: object) -> p.Grid:
    keys(table, where, [field.name for field in fields(p.Grid)])
    assert isinstance(table, dict)
    bits, signed = _kind(table, where, "bits", list), _kind(table, where, "signed", bool)
    return p.Grid(tuple(bits), signed, _floats(table, where, "scale"), _floats(table, where, "offset"), table["axis"])


def _floats(table: dict[str, Any], where: str, key: str) -> np.ndarray:
    """A list of numbers that are float32 exactly: a file rounds nothing."""
    numbers = _kind(table, where, key, list)
    if not all(type(number) is float and abs(number) <= 3e38 for number in numbers):
        raise FormatError(f"{where}: {key} is {str(numbers)[:60]}, allowed: a list of float32 numbers")
    array = np.array(numbers, np.float32)
    if array.astype(np.float64).tolist() != numbers:
        raise FormatError(f"{where}: {key} has a number that is not a float32, allowed: float32 numbers")
    return array


def _weight(name: str, table: object) -> WeightSkeleton:
    """Checked as far as unpacking depends on it."""
    where = f"weight {name[:100]!r}"
    keys(table, where, ["shape", "bits"], ("midrise",))
    assert isinstance(table, dict)
    shape, bits = table["shape"], _kind(table, where, "bits", list)
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 1 <= n <= 1 << 27 for n in shape):
        raise FormatError(f"{where}: shape is {str(shape)[:60]}, allowed: [out, in]")
    columns = len(bits[0]) if bits and isinstance(bits[0], list) else 0
    for row in bits:
        good = isinstance(row, list) and len(row) == columns
        if not good or not all(type(b) is int and p.MIN_BITS <= b <= p.MAX_BITS for b in row):
            raise FormatError(f"{where}: bits has the row {str(row)[:60]}, allowed: rows of equal length of 2..8")
    if columns == 0 or shape[0] % len(bits) or shape[1] % columns:
        raise FormatError(f"{where}: bits has {len(bits)} x {columns} groups, allowed: divisors of {shape}")
    widths = np.array(bits, np.int64)
    midrise = np.zeros(widths.shape, np.bool_)
    if "midrise" in table:
        midrise = _midrise(where, _kind(table, where, "midrise", list), widths)
    return WeightSkeleton((shape[0], shape[1]), widths, midrise)


def _midrise(where: str, rows: list[Any], bits: np.ndarray) -> np.ndarray:
    """One bool for each of `bits`; a true one at least, for elsewhere the key is absent."""
    fits = len(rows) == len(bits) and all(isinstance(row, list) and len(row) == bits.shape[1] for row in rows)
    if not fits or not all(type(odd) is bool for row in rows for odd in row):
        raise FormatError(f"{where}: midrise is {str(rows)[:60]}, allowed: rows of true and false, as many as bits has")
    midrise = np.array(rows, np.bool_)
    widest = bits.max(where=midrise, initial=0)
    if not p.MIN_BITS <= widest <= p.MAX_MIDRISE_BITS:
        found = f"true at {widest} bits" if widest else "true nowhere"
        raise FormatError(f"{where}: midrise is {found}, allowed: at 2..{p.MAX_MIDRISE_BITS} bits, or no such key")
    return midrise


def _preprocess(table: dict[str, Any]) -> p.Preprocess:
    names = [field.name for field in fields(p.Preprocess)]
    keys(table, "preprocess", names)
    return p.Preprocess(**{field.name: _field(field.type, table[field.name]) for field in fields(p.Preprocess)})
