"""What makes the interpreter quicker changes no bit: products in float32 where they are exact, a few images at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_programs as toys
from qvit_runtime import interpreter
from qvit_runtime import program as p
from qvit_runtime.integer import float_matmul, integer_matmul, quantize
from qvit_runtime.interpreter import run, trace
from toy_integer_programs import integer_swin_program, log2_program, regions_program

WIDEST = {"int8": (-128, 127), "uint8 in int16": (0, 255)}


@pytest.mark.parametrize("left", WIDEST.values(), ids=WIDEST)
@pytest.mark.parametrize("inner", [1, 512, 513, 1023, 1024, 1025, 4000])
def test_products_of_extreme_codes_are_exact_on_both_sides_of_the_float32_border(left, inner):
    """Odd sums next to 2^24 are where float32 would begin to round."""
    rng = np.random.default_rng(inner)
    a = np.full((3, inner), left[0] or left[1], np.int16)
    a[1] = rng.choice([left[1], left[1] - 1], inner)
    b = np.full((inner, 4), -128, np.int8)
    b[:, 1] = rng.choice([-127, -128], inner)
    b[:, 2] = rng.integers(-128, 128, inner)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    np.testing.assert_array_equal(integer_matmul(a, b), expected)
    assert float_matmul(a, b).dtype == np.float64
    np.testing.assert_array_equal(float_matmul(a, b), expected)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), high=st.sampled_from([2, 100, 2**11, 2**15]))
def test_products_of_any_size_are_exact(seed, high):
    rng = np.random.default_rng(seed)
    batch, rows, inner, columns = rng.integers(1, 40, 4)
    a = rng.integers(-high, high, (batch, rows, inner), np.int32)
    b = rng.integers(-high, high, (batch, inner, columns), np.int32)
    np.testing.assert_array_equal(integer_matmul(a, b), a.astype(np.int64) @ b.astype(np.int64))


def test_quantize_leaves_its_values_alone_and_clips_to_the_widest_grid():
    grid = p.Grid((8,), False, np.array([0.5], np.float32), np.array([0.0], np.float32))
    values = np.array([[-np.inf, -1.0, 0.25, 0.75, 127.3, 1e30, np.inf]], np.float32)
    kept = values.copy()
    codes = quantize(values, grid)
    assert codes.dtype == np.int16
    assert codes.tolist() == [[0, 0, 0, 2, 255, 255, 255]]
    np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize("program", [toys.vit_program(), toys.swin_program()], ids=lambda program: program.name)
@pytest.mark.parametrize("images", [1, 7])
def test_a_few_images_at_a_time(monkeypatch, program, images):
    shape = (images, *program.buffers[program.input].shape)
    batch = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    together = trace(program, batch)[program.output]
    largest = max(np.prod(buffer.shape) for buffer in program.buffers.values())
    for at_once in (1, 2, 3):
        monkeypatch.setattr(interpreter, "PASS", int(at_once * largest))
        np.testing.assert_array_equal(run(program, batch), together)


@pytest.mark.parametrize(
    "program",
    [toys.vit_program(mean_pool=True), toys.swin_program(), integer_swin_program(), log2_program(), regions_program()],
    ids=lambda program: program.name,
)
def test_no_images_give_no_answers(program):
    shape = program.buffers[program.input].shape
    found = run(program, np.zeros((0, *shape), np.float32))
    assert (found.shape, found.dtype) == ((0, 5), np.float32)
    with pytest.raises(ValueError, match=r"images have shape \(0, 3, 7, 7\); the program takes"):
        run(program, np.zeros((0, 3, 7, 7), np.float32))
