"""The sums, rescalings and moves of the integer-only ops: groups, widths and dtypes, against plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from one_op import run_op
from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime.interpreter import trace
from qvit_runtime.program import Grid
from toy_integer_draft import make_grid
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program, regions_program

RNG = np.random.default_rng(0)
BUILDERS = [integer_vit_program, integer_swin_program, log2_program, regions_program]


def codes(*shape: int, bits: int = 8) -> np.ndarray:
    top = 2 ** (bits - 1)
    return RNG.integers(-top, top, shape).astype(np.int16 if bits <= 8 else np.int32 if bits == 16 else np.int64)


def rescaled(x: int, m: int, e: int, low: int = -(2**15), high: int = 2**15 - 1) -> int:
    return min(max(math.floor(Fraction(x * m, 2**e) + Fraction(1, 2)), low), high)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_toy_programs_are_lively_and_in_range(build):
    """Codes of the dtype of their width, inside their grid, most of them used: what an engine is compared on."""
    program = build(seed=4)
    images = np.random.default_rng(9).standard_normal((3, *program.buffers["image"].shape)).astype(np.float32)
    for name, array in trace(program, images).items():
        grid = program.buffers[name].grid
        if grid is None:
            assert array.dtype == np.float32
            continue
        width = max(grid.bits)
        assert array.dtype == (np.int16 if width <= 8 else np.int32 if width == 16 else np.int64), name
        assert (array >= grid.qmin.min()).all(), name
        assert (array <= grid.qmax.max()).all(), name
        assert len(np.unique(array)) >= min(2 ** min(grid.bits) - 1, 15), name
        assert (array[0] != array[1]).mean() > 0.1, name  # images differ everywhere in the network


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_an_image_does_not_depend_on_its_batch(build):
    program = build()
    images = np.random.default_rng(1).standard_normal((3, *program.buffers["image"].shape)).astype(np.float32)
    together = trace(program, images)
    alone = trace(program, images[1:2])
    for name, buffer in program.buffers.items():
        if buffer.grid is not None:
            assert np.array_equal(alone[name][0], together[name][1]), name


def test_dequantize_any_width_and_group():
    grid = Grid((32, 32), True, np.array([0.1, 3e-5], np.float32), np.zeros(2, np.float32), 0)
    x = np.array([[-(2**31), 2**31 - 1]], np.int64)
    found = run_op(i.Dequantize("x", "z"), {"x": x}, {"x": grid})
    exact = [np.float32(int(code) * float(scale)) for code, scale in zip(x[0], grid.scale, strict=True)]
    assert found[0].tolist() == [float(value) for value in exact]
    assert found.dtype == np.float32


def test_linear_accumulate_adds_its_bias():
    weight = p.Weight(RNG.integers(-128, 128, (3, 5)).astype(np.int8), np.full((3, 1), 8), np.ones((3, 1), np.float32))
    x, bias = codes(2, 4, 5), [10, -(2**30), 2**30]
    grids = {"x": make_grid(8, True, 1.0), "z": make_grid(32, True, 1.0)}
    for name in ("", "b"):
        found = run_op(
            i.LinearAccumulate("x", "z", "w", name), {"x": x}, grids, integers={"b": bias}, weights={"w": weight}
        )
        for index in np.ndindex(2, 4, 3):
            row, out = x[index[:2]].tolist(), index[2]
            expected = sum(a * b for a, b in zip(row, weight.codes[out].tolist(), strict=True)) + (
                bias[out] if name else 0
            )
            assert found[index] == expected


def test_products_of_two_activations():
    query, key, value = codes(1, 2, 3, 4), codes(1, 2, 3, 4), codes(1, 2, 3, 4)
    grids = {name: make_grid(8, True, 1.0) for name in "qkv"} | {"z": make_grid(32, True, 1.0)}
    sums = run_op(i.QueryKeyAccumulate("q", "k", "z"), {"q": query, "k": key}, grids)
    assert sums[0, 1, 2, 0] == sum(int(a) * int(b) for a, b in zip(query[0, 1, 2], key[0, 1, 0], strict=True))
    attention = np.abs(codes(1, 2, 3, 3))
    mixed = run_op(
        i.AttentionValueAccumulate("a", "v", "z"), {"a": attention, "v": value}, grids | {"a": make_grid(8, False, 1.0)}
    )
    assert mixed[0, 1, 2, 3] == sum(int(a) * int(b) for a, b in zip(attention[0, 1, 2], value[0, 1, :, 3], strict=True))


@pytest.mark.parametrize("groups", [1, 3])
def test_requantize_scales_by_the_input_group_and_clips_to_the_output_group(groups):
    """Six channels of 32 bits, one factor each or one for all, into three groups of 4, 6 and 8 bits."""
    x = codes(2, 5, 6, bits=32)
    factors, shifts = [2**30 + 7, -(2**30), 2**31 - 1, 123456789, 2**30, 5][: 6 if groups == 3 else 1], [54]
    source = make_grid(32, True, np.ones(len(factors)), 1)
    target = Grid((4, 6, 8), True, np.ones(3, np.float32), np.zeros(3, np.float32), 1)
    op = i.Requantize("x", "z", "m", "e")
    found = run_op(op, {"x": x}, {"x": source, "z": target}, integers={"m": factors, "e": shifts})
    for index in np.ndindex(2, 5, 6):
        channel = index[2]
        top = 2 ** ((4, 6, 8)[channel // 2] - 1)
        assert found[index] == rescaled(int(x[index]), factors[channel % len(factors)], 54, -top, top - 1)
    assert found.dtype == np.int16


def test_add_requantize_rounds_each_side_by_itself():
    """0.5 + 0.5 is 2, not 1."""
    left, right = np.array([[1, -1, 2**15 - 1, -3]], np.int32), np.array([[1, -1, 2**31 - 1, 8]], np.int64)
    grids = {"l": make_grid(16, True, 1.0), "r": make_grid(32, True, np.ones(4), 0), "z": make_grid(16, True, 1.0)}
    integers = {"lm": [1], "le": [1], "rm": [1, 1, 1, 3], "re": [1, 1, 1, 2]}
    found = run_op(
        i.AddRequantize("l", "r", "z", "lm", "le", "rm", "re"), {"l": left, "r": right}, grids, integers=integers
    )
    assert found.tolist() == [[2, 0, 2**15 - 1, 5]]
    assert found.dtype == np.int32


@pytest.mark.parametrize("prefix", [np.zeros((0, 3)), np.array([[7, -8, 9], [1, 2, 3]])], ids=["none", "two"])
def test_tokens_put_the_prefix_first_as_it_is(prefix):
    x, position = codes(2, 4, 3, bits=32), RNG.integers(-20000, 20000, (4, 3))
    grids = {"x": make_grid(32, True, np.ones(3), 1), "z": make_grid(16, True, 1.0)}
    integers = {"p": prefix, "position": position, "m": [3, 2**30, -5], "e": [17, 45, 18]}
    found = run_op(i.IntegerTokens("x", "z", "p", "position", "m", "e"), {"x": x}, grids, integers=integers)
    assert found[1, : len(prefix)].tolist() == prefix.tolist()
    for row, channel in np.ndindex(4, 3):
        m, e = integers["m"][channel], integers["e"][channel]
        expected = rescaled(int(x[1, row, channel]), m, e, -(2**62), 2**62) + int(position[row, channel])
        assert found[1, len(prefix) + row, channel] == min(max(expected, -(2**15)), 2**15 - 1)


@pytest.mark.parametrize("shape", [(12, 2), (3, 4, 2)])
def test_sum_tokens_starts_where_it_is_told(shape):
    x = codes(1, *shape, bits=16)
    grids = {"x": make_grid(16, True, 1.0), "z": make_grid(32, True, 1.0)}
    found = run_op(i.SumTokens("x", "z", 5), {"x": x}, grids)
    assert found[0].tolist() == [sum(x.reshape(12, 2)[5:, channel].tolist()) for channel in range(2)]
    assert found.dtype == np.int64


MOVES = {
    "split": (p.SplitHeads("x", "z", 1, 3), (4, 12), (2, 4, 2)),
    "merge": (p.MergeHeads("x", "z"), (2, 4, 3), (4, 6)),
    "partition": (p.WindowPartition("x", "z", (2, 2), (1, 1)), (3, 3, 2), (4, 4, 2)),
    "unpartition": (p.WindowMerge("x", "z", (2, 2), (1, 1)), (4, 4, 2), (3, 3, 2)),
    "patch merge": (p.PatchMerge("x", "z"), (3, 4, 2), (2, 2, 8)),
    "select": (p.SelectToken("x", "z", 2), (5, 3), (3,)),
}


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(("op", "source", "target"), MOVES.values(), ids=MOVES)
def test_codes_move_as_values_do(op, source, target, bits):
    x, grid = codes(2, *source, bits=bits), make_grid(bits, True, 1.0)
    found = run_op(op, {"x": x}, {"x": grid, "z": grid}, target)
    as_values = run_op(op, {"x": x.astype(np.float64)}, {}, target)
    assert found.dtype == x.dtype
    assert np.array_equal(found, as_values)
    assert len(np.unique(found)) > 2
