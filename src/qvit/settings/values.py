"""Plain values <-> frozen dataclasses: what recipes and result files are read and written with.

A dataclass is a table of its fields. Where a field may hold one of several dataclasses (bits, heads, allocation), the table
carries `kind`, the class name; where it may hold one value or several, a list is the latter. Unknown keys are errors that list
the known ones; values are checked by the dataclass itself.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Union, get_args, get_origin, get_type_hints


def to_values(item: Any) -> Any:
    """Dataclasses as tables, tuples as lists, None left out of tables: TOML has no null, and None is always the default."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        table = {f.name: to_values(getattr(item, f.name)) for f in dataclasses.fields(item)}
        return {"kind": type(item).__name__, **{key: value for key, value in table.items() if value is not None}}
    if isinstance(item, (tuple, list)):
        return [to_values(part) for part in item]
    if isinstance(item, dict):
        return {key: to_values(value) for key, value in item.items()}
    return item


def from_values(kind: Any, value: Any, where: str) -> Any:
    """`value` as an instance of the type annotation `kind`; `where` names the place in error texts.

    Raises ValueError for unknown keys or kinds, naming the allowed ones.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, where)
    if origin is tuple:
        return _tuple(get_args(kind), value, where)
    if origin is dict and not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it must be a table")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be {'a' if kind is not int else 'an'} {kind.__name__}")
    return value


def _dataclass(kind: type, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it must be a table")
    table = {key: item for key, item in value.items() if key != "kind"}
    if value.get("kind", kind.__name__) != kind.__name__:
        raise ValueError(f"{where}.kind is {value['kind']!r}; it must be {kind.__name__!r}")
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)} in {where}; known: {', '.join(known)}")
    try:
        return kind(**{key: from_values(hints[key], item, f"{where}.{key}") for key, item in table.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    classes = {k.__name__: k for k in kinds if dataclasses.is_dataclass(k) and isinstance(k, type)}
    if isinstance(value, dict) and classes:
        name = value.get("kind") or (next(iter(classes)) if len(classes) == 1 else None)
        if not isinstance(name, str) or name not in classes:
            raise ValueError(f"{where}.kind is {name!r}; allowed: {', '.join(classes)}")
        return _dataclass(classes[name], value, where)
    if value is None and type(None) in kinds:
        return None
    others = [k for k in kinds if k is not type(None) and k not in classes.values()]
    if not others:
        raise ValueError(f"{where} is {value!r}; it must be a table with kind = {' or '.join(map(repr, classes))}")
    is_list = isinstance(value, (list, tuple))
    return from_values(next((k for k in others if (get_origin(k) is tuple) == is_list), others[0]), value, where)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {value!r}; it must be a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(from_values(kinds[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries; it must have {len(kinds)}")
    return tuple(
        from_values(k, item, f"{where}[{index}]") for index, (k, item) in enumerate(zip(kinds, value, strict=True))
    )
