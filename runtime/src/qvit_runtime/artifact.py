"""The `.qvit` file: `save` writes a Program, `load` reads it back bit for bit. The layout is on one page in docs/format.md.

A file is a safetensors container (`tensor_file`). Its metadata says which format and version it is and holds the Program
as JSON (`program_json`); its tensors are

    weight/NAME/codes    U8   packed as the widths and mid-rise blocks of the JSON say (`packing`)
    weight/NAME/scale    F32  (row_groups, column_groups)
    constant/NAME        F32
    integers/NAME        I32

Nothing in a file is trusted. Sizes are compared before anything is allocated, so a file can never ask for more memory
than a small multiple of its own size; names must be exactly the expected ones; in the end `check` decides about the
Program as a whole. Nothing is unpickled, nothing is executed.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np

from . import atomic
from . import program as p
from .check import check
from .check_data import ProgramError
from .integer_ops import IntegerOp
from .packing import pack, packed_bytes, unpack
from .program_json import Skeleton, from_json, keys, to_json
from .tensor_file import MAX_DATA, NAMES, FormatError, Tensors, decode, encode, parse_json

FORMAT, VERSIONS = "qvit", ("1", "2", "3")


class ArtifactError(ValueError):
    """A file that is not a `.qvit` artifact this version can read; the message is one line: file, field, found, allowed."""


def to_bytes(program: p.Program) -> bytes:
    """The content of an artifact. Raises ProgramError when the program is not well formed."""
    check(program)
    tensors: Tensors = {f"constant/{name}": constant for name, constant in program.constants.items()}
    tensors |= {f"integers/{name}": array for name, array in program.integers.items()}
    for name, weight in program.weights.items():
        tensors[f"weight/{name}/codes"] = pack(weight.codes, weight.bits, weight.midrise)
        tensors[f"weight/{name}/scale"] = weight.scale
    text = json.dumps(to_json(program), separators=(",", ":"), allow_nan=False)
    return encode(tensors, {"format": FORMAT, "version": version_of(program), "program": text})


def version_of(program: p.Program) -> str:
    """The lowest format version that has everything in this program.

    "2" brought the integer-only ops, their integers, and SplitHeads, PatchMerge and SelectToken on codes; wide codes come
    with them. "3" brought mid-rise blocks of weights. Everything else still is "1", which an older reader reads.
    """
    if any(weight.midrise.any() for weight in program.weights.values()):
        return "3"
    moves_codes = (
        isinstance(op, p.SplitHeads | p.PatchMerge | p.SelectToken) and program.buffers[op.input].grid is not None
        for op in program.ops
    )
    has_new_ops = any(isinstance(op, IntegerOp) for op in program.ops)
    return "2" if program.integers or has_new_ops or any(moves_codes) else "1"


def save(program: p.Program, path: str | os.PathLike[str]) -> None:
    """Write an artifact, atomically: after a crash the path holds the old file or the whole new one.

    Raises ProgramError when the program is not well formed; then nothing is written.
    """
    atomic.write(path, to_bytes(program))


def load(path: str | os.PathLike[str]) -> p.Program:
    """Read an artifact into a well-formed Program.

    Raises ArtifactError for anything that is wrong with the content, OSError when the file cannot be read at all.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_DATA:
            raise ArtifactError(f"{path}: the file has {size} bytes, allowed: at most {MAX_DATA}")
        content = file.read()
    try:
        return from_bytes(content)
    except (FormatError, ProgramError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def from_bytes(content: bytes) -> p.Program:
    """The Program of an artifact's content. Raises FormatError or ProgramError."""
    tensors, metadata = decode(content)
    keys(metadata, "__metadata__", ["format", "version", "program"])
    for key, allowed in (("format", (FORMAT,)), ("version", VERSIONS)):
        if metadata[key] not in allowed:
            names = ", ".join(map(repr, allowed))
            raise FormatError(f"__metadata__: {key} is {metadata[key][:20]!r}, allowed: {names}")
    skeleton = from_json(parse_json("program", metadata["program"].encode("utf-8", "surrogatepass")))
    _check_names(skeleton, tensors)
    program = replace(
        skeleton.program,
        weights={name: _weight(name, skeleton, tensors) for name in skeleton.weights},
        constants={name: _typed(f"constant/{name}", "F32", tensors) for name in skeleton.constants},
        integers={name: _typed(f"integers/{name}", "I32", tensors) for name in skeleton.integers},
    )
    check(program)
    if metadata["version"] != version_of(program):
        found, needed = metadata["version"], version_of(program)
        raise FormatError(f"__metadata__: version is {found!r}, allowed: {needed!r}, the lowest that its program needs")
    return program


def _check_names(skeleton: Skeleton, tensors: Tensors) -> None:
    """The tensors are those the Program calls for: none missing, none too many."""
    expected = {f"constant/{name}" for name in skeleton.constants}
    expected |= {f"integers/{name}" for name in skeleton.integers}
    expected |= {f"weight/{name}/{part}" for name in skeleton.weights for part in ("codes", "scale")}
    for name in sorted(expected ^ tensors.keys()):
        raise FormatError(f"tensor {name[:100]!r} is {'missing' if name in expected else 'not used by the program'}")


def _typed(name: str, kind: str, tensors: Tensors) -> np.ndarray:
    """The tensor of this name, which must have this dtype."""
    found = NAMES[tensors[name].dtype]
    if found != kind:
        raise FormatError(f"tensor {name[:100]!r}: dtype is {found}, allowed: {kind}")
    return tensors[name]


def _weight(name: str, skeleton: Skeleton, tensors: Tensors) -> p.Weight:
    bare = skeleton.weights[name]
    packed, where = tensors[f"weight/{name}/codes"], f"tensor {f'weight/{name}/codes'[:100]!r}"
    size = int(packed_bytes(bare.shape, bare.bits).sum())
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise FormatError(
            f"{where} is {packed.dtype} {packed.shape}, allowed: uint8 ({size},), as its shape and bits say"
        )
    try:
        codes = unpack(packed, bare.shape, bare.bits, bare.midrise)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None
    return p.Weight(codes, bare.bits, _typed(f"weight/{name}/scale", "F32", tensors), bare.midrise)
