"""Take an artifact apart, change one thing without any of the writer's checks, and put it together again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Table = dict[str, Any]


def split(content: bytes) -> tuple[Table, Table, bytes]:
    """Header, Program (both as JSON objects) and data of an artifact."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["program"]), content[8 + length :]


def join(header: Table, program: Table | str, data: bytes) -> bytes:
    text = program if isinstance(program, str) else json.dumps(program)
    header = header | {"__metadata__": header["__metadata__"] | {"program": text}}
    return raw(json.dumps(header).encode(), data)


def raw(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def with_program(content: bytes, change: Callable[[Table], Any]) -> bytes:
    """`change` edits the Program's JSON in place, or returns what shall stand there instead."""
    header, program, data = split(content)
    changed = change(program)
    return join(header, program if changed is None else changed, data)


def with_header(content: bytes, change: Callable[[Table], Any]) -> bytes:
    header, _, data = split(content)
    change(header)
    return raw(json.dumps(header).encode(), data)


def with_tensor(content: bytes, name: str, **changes: Any) -> bytes:
    return with_header(content, lambda header: header[name].update(changes))


def put(program: Table, *path: Any, value: Any) -> None:
    """program[path[0]][path[1]]... = value"""
    *front, last = path
    for key in front:
        program = program[key]
    program[last] = value
