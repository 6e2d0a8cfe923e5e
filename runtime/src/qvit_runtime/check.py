"""check: is this Program well formed? Every backend may rely on the answer, no backend repeats the question in its ops.

A Program comes from `freeze`, from a file, or from someone's own code, and the engine that runs it works with raw
pointers. So everything is decided here, before anything runs, in three passes of rising trust:

  1. the data on its own      names, shapes, grids, weights, constants, preprocess      check_data
  2. the order of the ops     an op reads what is written already, a buffer is written once      this file
  3. each op                  shapes, kinds, grids and parameters fit together      check_ops

The first thing that is wrong is raised as a ProgramError: one line with the op, buffer or field, what was found and what
is allowed.
"""

from __future__ import annotations

from dataclasses import fields

from . import integer_ops as i
from . import program as p
from .check_data import (
    MAX_ENTRIES,
    check_buffer,
    check_constant,
    check_integers,
    check_metadata,
    check_name,
    check_preprocess,
    check_weight,
    fail,
)
from .check_ops import CHECK
from .check_scope import Scope
from .interpreter import inputs_of

# Codes that do not stand for code * scale + offset: nobody else may take them for such.
READERS: dict[type, tuple[type, ...]] = {
    i.LogIntSoftmax: (i.ShiftAttentionValue,),
    i.QuantizeRegions: (p.Linear, p.AttentionValue),
}


def check(program: p.Program) -> None:
    """Return if every backend may run the program, raise ProgramError if not."""
    check_name("program name", program.name)
    _check_tables(program)
    for name, buffer in program.buffers.items():
        check_buffer(name, buffer)
    for name, weight in program.weights.items():
        check_weight(name, weight)
    for name, constant in program.constants.items():
        check_constant(name, constant)
    for name, array in program.integers.items():
        check_integers(name, array)
    _check_ends(program)
    check_preprocess(program.preprocess, program.buffers[program.input].shape, program.buffers[program.output].shape)
    check_metadata(program.metadata)
    _check_flow(program)


def _check_tables(program: p.Program) -> None:
    for field, kind in (("ops", tuple), ("buffers", dict), ("weights", dict), ("constants", dict), ("integers", dict)):
        table = getattr(program, field)
        if not isinstance(table, kind) or len(table) > MAX_ENTRIES:
            raise fail(field, type(table).__name__, f"a {kind.__name__} of at most {MAX_ENTRIES} entries")


def _check_ends(program: p.Program) -> None:
    """The input holds values (channels, height, width), the output values (classes,)."""
    for field, rank in (("input", 3), ("output", 1)):
        name = getattr(program, field)
        if name not in program.buffers:
            raise fail(field, repr(name), "the name of a buffer")
        buffer = program.buffers[name]
        if buffer.grid is not None or len(buffer.shape) != rank:
            kind = "values" if buffer.grid is None else "codes"
            raise fail(f"{field} {name!r}", f"{kind} {buffer.shape}", f"values of {rank} axes")


def _check_flow(program: p.Program) -> None:
    """Every op reads what is written already and writes one new buffer; then the op itself."""
    writers: dict[str, type] = {program.input: type(None)}
    for step, op in enumerate(program.ops):
        if type(op) not in CHECK:
            raise fail(f"op {step}", type(op).__name__, ", ".join(kind.__name__ for kind in CHECK))
        where = f"op {step} {type(op).__name__}"
        _check_fields(where, op)
        where = f"{where} {op.output!r}"
        for name in (*inputs_of(op), op.output):
            if name not in program.buffers:
                raise fail(f"{where}: buffer", repr(name), "the name of a buffer")
        for name in inputs_of(op):
            if name not in writers:
                raise fail(f"{where}: input", repr(name), "a buffer that an earlier op has written")
            if type(op) not in READERS.get(writers[name], (type(op),)):
                readers = " or ".join(kind.__name__ for kind in READERS[writers[name]])
                raise fail(
                    f"{where}: input {name!r}",
                    f"written by {writers[name].__name__}",
                    f"that only in front of {readers}",
                )
        if op.output in writers:
            raise fail(f"{where}: output", repr(op.output), "a buffer that nothing has written yet")
        CHECK[type(op)](Scope(program, where, writers), op)
        writers[op.output] = type(op)
    for name in program.buffers:
        if name not in writers:
            raise fail(f"buffer {name!r}", "written by no op", "buffers that an op writes")


def _check_fields(where: str, op: p.Op) -> None:
    """The fields of an op have the types of their annotations: nothing later has to ask."""
    for field in fields(op):
        value = getattr(op, field.name)
        match field.type:
            case "str":
                right = isinstance(value, str)
            case "int":
                right = type(value) is int
            case "float":
                right = type(value) in (int, float)
            case _:  # tuple[int, int]
                right = isinstance(value, tuple) and len(value) == 2 and all(type(item) is int for item in value)
        if not right:
            raise fail(f"{where}: {field.name}", repr(value), str(field.type))
