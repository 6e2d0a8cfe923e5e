"""Integer products are exact: every pair of widths, every awkward size, at codes that overflow anything too narrow.

Scales are one and biases zero, so a value is its accumulator: float32 holds it exactly up to 2^24 and rounds it the
same way in both backends beyond.
"""

import numpy as np
import pytest

from engine_cases import PATHS, bare_program, grid, run_native
from qvit_runtime import program as p
from qvit_runtime.interpreter import EXECUTE
from toy_edits import edit_weight, every_other_block

WIDTHS = range(2, 9)
SIZES = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65]
EXTREMES = ["low", "high", "mixed", "random"]


def codes(rng, shape, bits, signed, kind):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    choices = {"low": [low], "high": [high], "mixed": [low, high]}.get(kind, np.arange(low, high + 1))
    return rng.choice(choices, shape).astype(np.int16)


def linear(rows, inputs, outputs, bits, weight_codes, weight_bits, signed, groups=1):
    blocks = weight_bits.shape
    weight = p.Weight(weight_codes.astype(np.int8), weight_bits, np.ones(blocks, np.float32))
    axis = 1 if groups > 1 else 0
    x = p.Buffer("x", (rows, inputs), grid((bits,) * groups, signed, axis=axis))
    ops = [p.Linear("x", "y", "w", "b")]
    return bare_program(ops, [x, p.Buffer("y", (rows, outputs))], {"w": weight}, {"b": np.zeros(outputs, np.float32)})


def assert_equal_to_interpreter(program, x, path, threads=1):
    found = run_native(program, {"x": x}, path, threads=threads)
    expected = EXECUTE[p.Linear](program, program.ops[0], {"x": x})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_bits", WIDTHS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_pair_of_widths_at_extreme_codes(bits, weight_bits, path):
    rng = np.random.default_rng(bits * 10 + weight_bits)
    rows, inputs, outputs = 13, 1031, 37  # longer than every run length above 2 x 2 bits
    for kind in EXTREMES:
        for signed in (True, False):
            w = codes(rng, (outputs, inputs), weight_bits, True, kind)
            x = codes(rng, (1, rows, inputs), bits, signed, "high" if kind == "low" else kind)
            assert_equal_to_interpreter(
                linear(rows, inputs, outputs, bits, w, np.array([[weight_bits]]), signed), x, path
            )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_bits", range(2, p.MAX_MIDRISE_BITS + 1))
@pytest.mark.parametrize("bits", WIDTHS)
def test_mid_rise_weights_at_extreme_codes(bits, weight_bits, path):
    """+-(2^b - 1), as large as codes of b + 1 bits get: 16-bit sums that count on b bits overflow."""
    rng = np.random.default_rng(bits * 10 + weight_bits)
    rows, inputs, outputs = 7, 1031, 19
    top = (1 << weight_bits) - 1
    for choices in ([-top], [top], [-top, top], np.arange(-top, top + 1, 2)):
        w = rng.choice(choices, (outputs, inputs))
        for signed, kind in ((True, "low"), (False, "high"), (False, "mixed")):
            x = codes(rng, (1, rows, inputs), bits, signed, kind)
            program = linear(rows, inputs, outputs, bits, w, np.array([[weight_bits]]), signed)
            assert_equal_to_interpreter(edit_weight(program, "w", midrise=np.array([[True]])), x, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("bits", "weight_bits"), [(4, 4), (8, 8), (7, 7)])
def test_every_awkward_size(bits, weight_bits, path):
    rng = np.random.default_rng(5)
    for inputs in SIZES:
        for outputs in (1, 7, 16, 33):
            for rows in (1, 6, 25):
                w = codes(rng, (outputs, inputs), weight_bits, True, "mixed")
                x = codes(rng, (2, rows, inputs), bits, True, "mixed")
                assert_equal_to_interpreter(
                    linear(rows, inputs, outputs, bits, w, np.array([[weight_bits]]), True), x, path
                )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(197, 192, 576), (197, 768, 192), (1, 192, 1000), (49, 384, 96)]
)
def test_shapes_of_vision_transformers(rows, inputs, outputs, path):
    rng = np.random.default_rng(6)
    w = codes(rng, (outputs, inputs), 4, True, "random")
    x = codes(rng, (1, rows, inputs), 4, True, "random")
    assert_equal_to_interpreter(linear(rows, inputs, outputs, 4, w, np.array([[4]]), True), x, path, threads=2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("groups", "columns"), [(1, 3), (3, 3), (3, 1), (6, 3), (3, 6), (30, 1)])
def test_row_and_column_groups_of_different_widths(groups, columns, path):
    """The heads of proj: blocks of 10 inputs are no multiple of a quad, so a quad reaches into the next head."""
    rng = np.random.default_rng(7)
    program, x = mixed_groups(rng, groups, columns)
    assert_equal_to_interpreter(program, x, path)
    midrise = every_other_block(program.weights["w"])
    assert midrise.midrise.any() != midrise.midrise.all()
    assert_equal_to_interpreter(edit_weight(program, "w", **vars(midrise)), x, path)


def mixed_groups(rng, groups, columns):
    rows, inputs, outputs = 9, 30, 40
    weight_bits = rng.integers(2, 9, (4, columns))
    spread = np.kron(weight_bits, np.ones((outputs // 4, inputs // columns), int))
    w = np.array([[rng.integers(-(1 << (b - 1)), 1 << (b - 1)) for b in line] for line in spread])
    x_bits = tuple(int(b) for b in rng.integers(2, 9, groups))
    program = linear(rows, inputs, outputs, 8, w, weight_bits, True)
    program.buffers["x"] = p.Buffer("x", (rows, inputs), grid(x_bits, True, axis=1 if groups > 1 else 0))
    x = np.concatenate([codes(rng, (1, rows, inputs // groups), b, True, "mixed") for b in x_bits], axis=2)
    return program, x


def heads_program(kind, shape, keys, left_bits, right_bits, signed, right_signed):
    *lead, heads, tokens, width = shape
    axis = len(lead)
    left = p.Buffer(
        "left", (*lead, heads, tokens, width if kind is p.QueryKey else keys), grid(left_bits, signed, axis=axis)
    )
    right = p.Buffer("right", (*lead, heads, keys, width), grid(right_bits, right_signed, axis=axis))
    if kind is p.QueryKey:
        return bare_program(
            [p.QueryKey("left", "right", "out", 1.0)], [left, right, p.Buffer("out", (*lead, heads, tokens, keys))]
        )
    return bare_program([p.AttentionValue("left", "right", "out")], [left, right, p.Buffer("out", shape)])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [p.QueryKey, p.AttentionValue])
def test_products_of_heads(kind, path):
    rng = np.random.default_rng(8)
    for tokens in (1, 2, 3, 5, 16, 17, 33, 65):
        for width in (1, 3, 8, 16, 20, 64):
            left_bits, right_bits = (tuple(int(b) for b in rng.integers(2, 9, 3)) for _ in range(2))
            for signed in (True, False):
                program = heads_program(kind, (2, 3, tokens, width), tokens, left_bits, right_bits, signed, True)
                inputs = {}
                for name, bits, is_signed in (("left", left_bits, signed), ("right", right_bits, True)):
                    shape = program.buffers[name].shape
                    one = (1, shape[0], 1, *shape[2:])
                    inputs[name] = np.concatenate([codes(rng, one, b, is_signed, "mixed") for b in bits], axis=2)
                found = run_native(program, inputs, path)
                expected = EXECUTE[kind](program, program.ops[0], inputs)
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [p.QueryKey, p.AttentionValue])
@pytest.mark.parametrize("right_bits", [2, 7, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_unsigned_keys_and_values(kind, right_bits, signed, path):
    rng = np.random.default_rng(9)
    program = heads_program(kind, (2, 19, 20), 19, (8, 8), (right_bits, right_bits), signed, False)
    inputs = {
        "left": codes(rng, (1, *program.buffers["left"].shape), 8, signed, "mixed"),
        "right": codes(rng, (1, *program.buffers["right"].shape), right_bits, False, "mixed"),
    }
    found = run_native(program, inputs, path)
    np.testing.assert_array_equal(found, EXECUTE[kind](program, program.ops[0], inputs))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("width", "signs", "query", "key"),
    [
        (33_025, (False, False), 255, 255),
        (65_536, (True, False), 127, 255),
        (65_536, (True, False), -128, 255),
        (65_536, (False, True), 255, -128),
    ],
)
def test_the_longest_products_of_activations(width, signs, query, key, path):
    """All codes as large as they get; 33,026 unsigned ones could overflow, so the engine does not load them."""

    def program(width):
        buffers = [p.Buffer(name, (1, 1, width), grid(8, sign)) for name, sign in zip("qk", signs, strict=True)]
        return bare_program([p.QueryKey("q", "k", "out", 1.0)], [*buffers, p.Buffer("out", (1, 1, 1))])

    inputs = {name: np.full((1, 1, 1, width), code, np.int16) for name, code in (("q", query), ("k", key))}
    assert run_native(program(width), inputs, path).item() == np.float32(width * query * key)
    with pytest.raises(ValueError, match=r"op 0 \(QueryKey\): has sums that could leave 32 bits"):
        run_native(program(width + 1), inputs, path)
