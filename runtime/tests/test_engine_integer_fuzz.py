"""Mutated integer programs on the engine: what `check` lets through runs and gives the interpreter's integers; what it
refuses the engine may refuse too, in one line, but never worse."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import numpy as np
import pytest

from engine_cases import PATHS
from qvit_runtime import program as p
from qvit_runtime.check import check
from qvit_runtime.check_data import ProgramError
from qvit_runtime.engine import Engine
from qvit_runtime.interpreter import run
from toy_edits import edit_grid, set_integers, set_op
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program

PROGRAMS = [
    integer_vit_program(depth=1, size=8),
    integer_swin_program(dim=8, depths=(1, 1), size=12, window=2),
    log2_program(depth=1, size=8),
]
NUMBERS = (-(2**31) + 1, -128, -1, 0, 1, 2, 9, 14, 30, 31, 62, 63, 2**28, 2**31 - 1)


def mutate(rng: random.Random, program: p.Program) -> p.Program:
    """One number of an op, some integers, or a grid."""
    match rng.randrange(4):
        case 0:
            step = rng.randrange(len(program.ops))
            op = program.ops[step]
            names = [field.name for field in fields(op) if field.type == "int"]
            if not names:
                return program
            name = rng.choice(names)
            value = rng.choice((*NUMBERS, getattr(op, name) - 1, getattr(op, name) + 1))
            return set_op(program, step, replace(op, **{name: value}))
        case 1 | 2:
            name = rng.choice(list(program.integers))
            array = program.integers[name].copy()
            for _ in range(rng.choice((1, 1, array.size))):
                if array.size:
                    near = int(array.flat[0]) + rng.randrange(-9, 10)
                    array.flat[rng.randrange(array.size)] = max(min(rng.choice((*NUMBERS, near)), 2**31 - 1), -(2**31))
            return set_integers(program, name, array)
        case _:
            name = rng.choice([b.name for b in program.buffers.values() if b.grid is not None])
            grid = program.buffers[name].grid
            bits = (rng.choice((2, 3, 4, 5, 6, 7, 8, 16, 32)),) * grid.groups
            return edit_grid(program, name, bits=bits, signed=rng.random() < 0.8)


def fuzz(seeds: range, path: str) -> tuple[int, int]:
    """Numbers of mutants that check let through, and that it refused."""
    ran = refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        program = rng.choice(PROGRAMS)
        for _ in range(rng.choice((1, 1, 2))):
            program = mutate(rng, program)
        images = np.random.default_rng(seed).standard_normal((1, *program.buffers["image"].shape)).astype(np.float32)
        try:
            check(program)
        except ProgramError:
            refused += 1
            _run_or_refuse(program, images, path)
            continue
        ran += 1
        found = Engine(program, path=path, threads=1 + seed % 2, fuse=seed % 3 > 0)(images)
        if program.name != PROGRAMS[2].name:  # log2 has floats inside
            np.testing.assert_array_equal(found, run(program, images), err_msg=f"seed {seed}")
    return ran, refused


def _run_or_refuse(program: p.Program, images: np.ndarray, path: str) -> None:
    try:
        Engine(program, path=path)(images)
    except ValueError as error:
        if "\n" in str(error):
            raise


@pytest.mark.parametrize("path", PATHS)
def test_mutants(path):
    ran, refused = fuzz(range(120), path)
    assert ran > 30
    assert refused > 30


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("part", range(4))
def test_many_mutants(part, path):
    ran, _ = fuzz(range(1000 + part * 1500, 2500 + part * 1500), path)
    assert ran > 0
