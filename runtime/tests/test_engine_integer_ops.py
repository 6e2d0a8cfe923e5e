"""Each integer-only op alone on the engine: a grid of sizes, every width, groups on every axis, extreme codes; exact."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import PATHS, bare_program, grid, run_native
from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime.integer import code_dtype, expand_groups
from qvit_runtime.interpreter import EXECUTE

WIDTHS = [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 100]
INT32 = 2**31 - 1

each_path = pytest.mark.parametrize("path", PATHS)


def extreme_codes(rng, buffer, batch=2):
    """Codes of a buffer's grid, half of them at an end of it."""
    shape, axis = (batch, *buffer.shape), buffer.grid.axis + 1
    low, high = (expand_groups(ends.astype(np.int64), shape, axis) for ends in (buffer.grid.qmin, buffer.grid.qmax))
    ends = np.where(rng.random(shape) < 0.5, low, high)
    return np.where(rng.random(shape) < 0.5, ends, rng.integers(low, high + 1, shape)).astype(code_dtype(buffer.grid))


def assert_equal_to_interpreter(op, buffers, path, rng, integers=None, weights=None, arrays=None, threads=1):
    """Engine and interpreter on one op, whose output is the last buffer."""
    named = {name: np.array(array, np.int32) for name, array in (integers or {}).items()}
    program = bare_program([op], buffers, weights, integers=named)
    arrays = arrays or {b.name: extreme_codes(rng, b) for b in buffers[:-1]}
    expected = EXECUTE[type(op)](program, op, arrays).reshape(-1, *buffers[-1].shape)
    found = run_native(program, arrays, path, threads=threads)
    np.testing.assert_array_equal(found, expected)
    return expected


def rescale(rng, groups, wide):
    """Multipliers and shifts, ordinary and extreme ones, that take codes of this width to some 8 bits."""
    multiplier = rng.integers(2**29, 2**30, groups) * rng.choice([-1, 1, 1, 1], groups)
    shift = rng.integers(29, 33, groups) + wide
    extreme = rng.random(groups) < 0.2
    return (
        np.where(extreme, rng.choice([-INT32, 0, 1, INT32], groups), multiplier),
        np.where(extreme, rng.choice([1, 2, 61, 62], groups), shift),
    )


@each_path
@pytest.mark.parametrize("source", [4, 8, 16, 32])
@pytest.mark.parametrize("target", [2, 8, 16])
def test_requantize(source, target, path):
    rng = np.random.default_rng(0)
    for width in WIDTHS:
        for groups, axis in ((1, 0), (3, 0), (width, 2)):
            x = p.Buffer("x", (3, 4, width), grid((source,) * groups, True, 1.0, axis))
            y = p.Buffer("y", x.shape, grid((target,) * (groups if width % 2 else 1), True, 1.0, axis))
            m, e = rescale(rng, groups, source - 8 if source > 8 else 0)
            assert_equal_to_interpreter(i.Requantize("x", "y", "m", "e"), [x, y], path, rng, {"m": m, "e": e})


@each_path
def test_requantize_to_groups_of_its_own(path):
    """Sums have one group per channel, q, k and v one each and widths of their own."""
    rng = np.random.default_rng(1)
    x = p.Buffer("x", (7, 30), grid((32,) * 30, True, 1.0, 1))
    for bits in ((8, 4, 2), (16, 16, 16)):
        y = p.Buffer("y", (7, 30), grid(bits, True, 1.0, 1))
        m, e = rescale(rng, 30, 24)
        assert_equal_to_interpreter(i.Requantize("x", "y", "m", "e"), [x, y], path, rng, {"m": m, "e": e})


@each_path
@pytest.mark.parametrize(("left", "right"), [(16, 32), (32, 16), (8, 16), (4, 8), (32, 32)])
def test_add_requantize(left, right, path):
    rng = np.random.default_rng(2)
    op = i.AddRequantize("x", "y", "z", "m", "e", "n", "f")
    for width in WIDTHS:
        for target in (8, 16):
            x = p.Buffer("x", (3, 4, width), grid((left,) * 3, True, 1.0, 0))
            y = p.Buffer("y", x.shape, grid((right,) * width, True, 1.0, 2))
            z = p.Buffer("z", x.shape, grid(target, True, 1.0))
            (m, e), (n, f) = rescale(rng, 3, max(left - 8, 0)), rescale(rng, width, max(right - 8, 0))
            assert_equal_to_interpreter(op, [x, y, z], path, rng, {"m": m, "e": e, "n": n, "f": f})


@each_path
@pytest.mark.parametrize("prefixes", [0, 1, 3])
def test_integer_tokens(prefixes, path):
    rng = np.random.default_rng(3)
    for width in WIDTHS:
        x = p.Buffer("x", (5, width), grid((32,) * width, True, 1.0, 1))
        y = p.Buffer("y", (prefixes + 5, width), grid(16, True, 1.0))
        m, e = rescale(rng, width, 18)
        prefix = rng.integers(-(2**15), 2**15, (prefixes, width))
        position = rng.choice([-INT32, -1000, 0, 1000, INT32], (5, width))
        integers = {"a": prefix, "p": position, "m": m, "e": e}
        assert_equal_to_interpreter(i.IntegerTokens("x", "y", "a", "p", "m", "e"), [x, y], path, rng, integers)


@each_path
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_sum_tokens(bits, path):
    rng = np.random.default_rng(4)
    for width in WIDTHS:
        for shape, signed in (((9, width), True), ((3, 4, width), bits == 16)):
            x = p.Buffer("x", shape, grid((bits,) * width, signed, 1.0, len(shape) - 1))
            assert_equal_to_interpreter(
                i.SumTokens("x", "y", 2), [x, p.Buffer("y", (width,), grid(32, True, 1.0))], path, rng
            )


@each_path
@pytest.mark.parametrize("bits", [5, 8, 16, 32])
def test_dequantize(bits, path):
    rng = np.random.default_rng(5)
    for groups, axis in ((1, 0), (4, 0), (3, 1), (33, 2)):
        scale = rng.uniform(1e-3, 1e3, groups)
        x = p.Buffer("x", (4, 3, 33), grid((bits,) * groups, True, scale, axis))
        assert_equal_to_interpreter(i.Dequantize("x", "y"), [x, p.Buffer("y", x.shape)], path, rng)
        if bits <= 8:
            offset = rng.uniform(-5, 5, groups).astype(np.float32)
            x = p.Buffer("x", (4, 3, 33), p.Grid((bits,) * groups, False, scale.astype(np.float32), offset, axis))
            assert_equal_to_interpreter(i.Dequantize("x", "y"), [x, p.Buffer("y", x.shape)], path, rng)


@each_path
@pytest.mark.parametrize(("bits", "signed"), [(2, True), (7, False), (8, True), (8, False)])
def test_linear_accumulate(bits, signed, path):
    rng = np.random.default_rng(6)
    for inputs in WIDTHS:
        for outputs in (1, 7, 16, 33, 65):
            for rows in (1, 6, 25):
                codes = rng.choice([-128, 127, 3], (outputs, inputs)).astype(np.int8)
                weight = p.Weight(codes, np.array([[8]]), np.ones((1, 1), np.float32))
                x = p.Buffer("x", (rows, inputs), grid(bits, signed, 1.0))
                y = p.Buffer("y", (rows, outputs), grid(32, True, 1.0))
                limit = 2**31 - 1 - int(np.abs(codes.astype(int)).sum(1).max()) * 255
                bias = rng.choice([-limit, 0, 1000, limit], outputs)
                op = i.LinearAccumulate("x", "y", "w", "b" if inputs % 3 else "")
                assert_equal_to_interpreter(op, [x, y], path, rng, {"b": bias}, {"w": weight}, threads=2)


def assert_fused_equals_ops(path, rng, residual_bits, target, inputs=50, rows=19):
    """LinearAccumulate -> Requantize or AddRequantize, per channel: integers, codes in, codes out."""
    for outputs in WIDTHS:
        codes = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        x = p.Buffer("x", (rows, inputs), grid(8, True, 1.0))
        y = p.Buffer("y", (rows, outputs), grid((32,) * outputs, True, 1.0, 1))
        z = p.Buffer("z", y.shape, grid(target, True, 1.0))
        m, e = rescale(rng, outputs, 10)
        n, f = rescale(rng, 1, 0)
        integers = {"m": m, "e": e, "n": n, "f": f, "b": rng.integers(-(2**20), 2**20, outputs)}
        first, buffers = i.LinearAccumulate("x", "y", "w", "b"), [x, y, z]
        second = i.Requantize("y", "z", "m", "e")
        if residual_bits:
            buffers.insert(1, p.Buffer("r", y.shape, grid(residual_bits, True, 1.0)))
            second = (
                i.AddRequantize("r", "y", "z", "n", "f", "m", "e")
                if outputs % 2
                else i.AddRequantize("y", "r", "z", "m", "e", "n", "f")
            )
        named = {name: np.array(array, np.int32) for name, array in integers.items()}
        weight = p.Weight(codes, np.array([[8]]), np.ones((1, 1), np.float32))
        program = bare_program([first, second], buffers, {"w": weight}, integers=named)
        live = {b.name: extreme_codes(rng, b) for b in buffers if b.name in "xr"}
        arrays = dict(live)
        for op in program.ops:
            live[op.output] = EXECUTE[type(op)](program, op, live)
        for threads in (1, 2):
            np.testing.assert_array_equal(run_native(program, arrays, path, threads=threads), live["z"])


@each_path
@pytest.mark.parametrize(("residual_bits", "target"), [(0, 8), (0, 16), (16, 16), (16, 8), (8, 16), (32, 16)])
def test_linear_accumulate_with_what_follows(residual_bits, target, path):
    assert_fused_equals_ops(path, np.random.default_rng(7), residual_bits, target)
    assert_fused_equals_ops(path, np.random.default_rng(8), residual_bits, target, inputs=3, rows=1)


@each_path
@pytest.mark.parametrize("kind", [i.QueryKeyAccumulate, i.AttentionValueAccumulate])
def test_products_of_heads(kind, path):
    rng = np.random.default_rng(9)
    for tokens in (1, 2, 3, 5, 16, 17, 33, 65):
        for width in (1, 3, 8, 16, 20, 64):
            for lead in ((3,), (2, 3)):
                axis = len(lead) - 1
                widths = [tuple(int(b) for b in rng.integers(2, 9, 3)) for _ in range(2)]
                signed = bool(rng.integers(2))
                inner = width if kind is i.QueryKeyAccumulate else tokens
                left = p.Buffer("l", (*lead, tokens, inner), grid(widths[0], signed, 1.0, axis))
                right = p.Buffer("r", (*lead, tokens, width), grid(widths[1], True, 1.0, axis))
                columns = tokens if kind is i.QueryKeyAccumulate else width
                out = p.Buffer("o", (*lead, tokens, columns), grid((32,) * 3, True, 1.0, axis))
                assert_equal_to_interpreter(kind("l", "r", "o"), [left, right, out], path, rng)


@each_path
@pytest.mark.parametrize(("bits", "target"), [(8, 8), (16, 8), (16, 16), (5, 4)])
def test_integer_layer_norm(bits, target, path):
    rng = np.random.default_rng(10)
    for width in WIDTHS:
        for shift in (9, 24, 40, 62):
            x = p.Buffer("x", (6, width), grid(bits, True, 1.0))
            y = p.Buffer("y", x.shape, grid(target, True, 1.0))
            size = min(2**shift >> 20, INT32) + 1
            integers = {"m": rng.integers(-size, size, width), "b": rng.choice([-INT32, -999, 0, 999, INT32], width)}
            arrays = extreme_codes(rng, x)
            arrays[0, 0] = arrays[0, 0, 0]  # a constant row has no deviation
            op = i.IntegerLayerNorm("x", "y", "m", "b", shift, zero=int(rng.integers(-8, 8)))
            assert_equal_to_interpreter(op, [x, y], path, rng, integers, arrays={"x": arrays})


@each_path
def test_integer_layer_norm_with_factors(path):
    rng = np.random.default_rng(11)
    for width in WIDTHS:
        x = p.Buffer("x", (6, width), grid((8,) * width, False, 1.0, 1))
        y = p.Buffer("y", x.shape, grid(8, False, 1.0))
        integers = {"m": rng.integers(-(2**20), 2**20, width), "b": rng.integers(-9999, 9999, width)}
        integers["a"] = rng.integers(0, 9, width)
        assert_equal_to_interpreter(i.IntegerLayerNorm("x", "y", "m", "b", 42, "a", 117), [x, y], path, rng, integers)


@each_path
@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (3, True)])
def test_shift_gelu(bits, signed, path):
    rng = np.random.default_rng(12)
    x = p.Buffer("x", (9, 70), grid(bits, signed, 1.0))
    y = p.Buffer("y", x.shape, grid(32, True, 1.0))
    for unit, fraction in ((1, 1), (7, 14), (2**20 - 1, 10)):
        assert_equal_to_interpreter(i.ShiftGelu("x", "y", unit, fraction), [x, y], path, rng)


@each_path
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("biased", [False, True])
def test_shiftmax(bits, biased, path):
    rng = np.random.default_rng(13)
    for tokens in (1, 2, 7, 8, 9, 15, 16, 17, 33, 65):
        x = p.Buffer("x", (2, 3, tokens, tokens), grid(bits, True, 1.0))
        for target in (2, 8):
            y = p.Buffer("y", x.shape, grid(target, False, 2.0**-target))
            for unit, fraction in ((11, 12), (INT32 // max(tokens, 2) >> 12, 12), (1, 24)):
                bias = rng.choice([-(2**28), -20, 0, 20], (3, tokens, tokens)) if biased else None
                mask = rng.choice([-(2**28), 0], (2, tokens, tokens)) if biased else None
                integers = {"b": bias, "m": mask} if biased else {}
                names = ("b", "m") if biased else ("", "")
                assert_equal_to_interpreter(i.Shiftmax("x", "y", unit, fraction, *names), [x, y], path, rng, integers)


@each_path
@pytest.mark.parametrize("biased", [False, True])
def test_log_int_softmax(biased, path):
    rng = np.random.default_rng(14)
    for tokens in (1, 2, 7, 17, 65, 100):
        x = p.Buffer("x", (2, 3, tokens, tokens), grid(8, True, 1.0))
        for target in (2, 4, 8):
            y = p.Buffer("y", x.shape, grid(target, False, 1.0))
            for scale in (0.6, 0.05, 0.004):
                ln2, linear, constant = np.ceil(np.log(2) / scale), 2.70738 / scale, 2.79212 / scale**2
                integers = {"b": rng.integers(-40, 40, (3, tokens, tokens))} if biased else {}
                op = i.LogIntSoftmax("x", "y", int(ln2), int(linear), int(constant), "b" if biased else "")
                assert_equal_to_interpreter(op, [x, y], path, rng, integers)


@each_path
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_shift_attention_value(bits, path):
    rng = np.random.default_rng(15)
    for tokens in (1, 5, 17, 65, 300):
        for width in (1, 7, 8, 9, 16, 20, 64):
            attention = p.Buffer("a", (3, tokens, tokens), grid(bits, False, 1.0))
            value_bits = tuple(int(b) for b in rng.integers(2, 9, 3))
            value = p.Buffer("v", (3, tokens, width), grid(value_bits, True, rng.uniform(0.01, 1.0, 3), 0))
            out = p.Buffer("o", value.shape)
            arrays = {"v": extreme_codes(rng, value, 1)}
            arrays["a"] = rng.integers(0, 2**bits, (1, *attention.shape)).astype(np.int16)
            assert_equal_to_interpreter(
                i.ShiftAttentionValue("a", "v", "o"),
                [attention, value, out],
                path,
                rng,
                arrays=dict(sorted(arrays.items())),
            )


@each_path
@pytest.mark.parametrize("bits", [1, 2, 5, 7])
def test_quantize_regions(bits, path):
    rng = np.random.default_rng(16)
    for width in WIDTHS:
        for m in range(1, bits + 1):
            step, offset = np.float32(0.03), np.float32(-0.17)
            scale = np.array([step, step * 2**m], np.float32)
            regions = p.Grid((bits, bits), False, scale, np.array([offset, 0], np.float32), 1)
            ties = (rng.integers(-3, 2 ** (bits + m) + 9, (2, 5, width)) / 2 * step + offset).astype(np.float32)
            values = np.where(rng.random(ties.shape) < 0.1, rng.choice([-1e30, 1e30, 0]), ties).astype(np.float32)
            buffers = [p.Buffer("x", (5, width)), p.Buffer("y", (5, 2 * width), regions)]
            assert_equal_to_interpreter(i.QuantizeRegions("x", "y"), buffers, path, rng, arrays={"x": values})


@each_path
@pytest.mark.parametrize("bits", [3, 8, 16, 32])
def test_moves_of_codes(bits, path):
    rng = np.random.default_rng(17)

    def groups(count=1, axis=0):
        return grid((bits,) * count, True, 1.0, axis)

    image, square = p.Buffer("x", (5, 7, 6), groups(6, 2)), p.Buffer("x", (5, 7, 6), groups())
    cut = p.Buffer("y", (6, 9, 6), groups(6, 2))
    assert_equal_to_interpreter(p.WindowPartition("x", "y", (3, 3), (1, 2)), [image, cut], path, rng)
    windows = p.Buffer("x", (6, 9, 6), groups(6, 2))
    assert_equal_to_interpreter(
        p.WindowMerge("x", "y", (3, 3), (1, 2)), [windows, p.Buffer("y", (5, 7, 6), groups(6, 2))], path, rng
    )
    assert_equal_to_interpreter(p.PatchMerge("x", "y"), [square, p.Buffer("y", (3, 4, 24), groups())], path, rng)
    heads = p.Buffer("x", (2, 3, 5, 4), groups(3, 1))
    assert_equal_to_interpreter(p.MergeHeads("x", "y"), [heads, p.Buffer("y", (2, 5, 12), groups(3, 2))], path, rng)
    qkv = p.Buffer("x", (2, 5, 24), groups(6, 2))
    assert_equal_to_interpreter(
        p.SplitHeads("x", "y", 1, 3), [qkv, p.Buffer("y", (2, 2, 5, 4), groups(2, 1))], path, rng
    )
    tokens = p.Buffer("x", (5, 6), groups(6, 1))
    assert_equal_to_interpreter(p.SelectToken("x", "y", 3), [tokens, p.Buffer("y", (6,), groups(6, 0))], path, rng)
