"""Networks of the integer-only methods on the engine: integers are equal bit for bit, whatever the path, the fusion, the
threads, the batch or the position in it. Of I-ViT these are all numbers, the logits included."""

import numpy as np
import pytest

import toy_integer_programs as toys
from engine_cases import PATHS, run_ops
from qvit_runtime import program as p
from qvit_runtime.engine import Engine, Runner
from qvit_runtime.integer_ops import IntegerOp
from qvit_runtime.interpreter import inputs_of, trace
from toy_programs import vit_program

INTEGER_ONLY = {
    "vit": toys.integer_vit_program,
    "vit of odd sizes": lambda: toys.integer_vit_program(dim=42, depth=1, heads=3, patch=5, size=35, classes=7),
    "vit, 4-bit weights": lambda: toys.integer_vit_program(dim=48, heads=3, weight_bits=4),
    "vit, 2-bit weights, mid-rise": lambda: toys.integer_vit_program(weight_bits=2, midrise=0.5),
    "swin": toys.integer_swin_program,
    "swin, wider": lambda: toys.integer_swin_program(dim=40, heads=(4, 8), size=28, window=3),
}
PARTLY_FLOAT = {
    "log2": toys.log2_program,
    "log2, 2 bits": lambda: toys.log2_program(dim=24, heads=3, size=28, map_bits=2),
    "log2, 8 bits": lambda: toys.log2_program(map_bits=8),
    "regions": toys.regions_program,
    "regions, 8 bits": lambda: toys.regions_program(dim=24, heads=3, size=28, bits=8),
    "regions, 2 bits": lambda: toys.regions_program(bits=2),
}
MOVES = (p.SplitHeads, p.MergeHeads, p.WindowPartition, p.WindowMerge, p.PatchMerge, p.SelectToken, p.Patchify)


def traced(build):
    program = build()
    images = np.random.default_rng(3).standard_normal((3, *program.buffers[program.input].shape)).astype(np.float32)
    return program, images, trace(program, images)


@pytest.fixture(scope="module", params=INTEGER_ONLY)
def integer_only(request):
    return traced(INTEGER_ONLY[request.param])


@pytest.fixture(scope="module", params=INTEGER_ONLY | PARTLY_FLOAT)
def model(request):
    return traced((INTEGER_ONLY | PARTLY_FLOAT)[request.param])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_integer_only_logits_are_equal_bit_for_bit(integer_only, threads, fuse, path):
    program, images, live = integer_only
    engine = Engine(program, threads=threads, path=path, fuse=fuse)
    np.testing.assert_array_equal(engine(images), live[program.output])
    np.testing.assert_array_equal(engine(images[1:2]), live[program.output][1:2])


@pytest.mark.parametrize("path", PATHS)
def test_every_op_on_integers_is_exact(model, path):
    """One op at a time, on the interpreter's own inputs; so are the moves of codes."""
    program, _, live = model
    compared = set()
    for op in program.ops:
        codes = program.buffers[op.output].grid is not None
        if isinstance(op, IntegerOp) or (isinstance(op, MOVES) and codes):
            inputs = {name: live[name] for name in inputs_of(op)}
            (found,) = run_ops(program, [op], inputs, [op.output], path)
            np.testing.assert_array_equal(found, live[op.output], err_msg=op.output)
            compared.add(type(op))
    assert len(compared) >= 2


@pytest.mark.parametrize("path", PATHS)
def test_products_of_regions_agree(path):
    program, _, live = traced(PARTLY_FLOAT["regions, 8 bits"])
    regions = {op.output for op in program.ops if type(op).__name__ == "QuantizeRegions"}
    products = [op for op in program.ops if isinstance(op, p.Linear | p.AttentionValue) and inputs_of(op)[0] in regions]
    assert len(products) == 4
    for op in products:
        (found,) = run_ops(program, [op], {name: live[name] for name in inputs_of(op)}, [op.output], path)
        expected = live[op.output]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("path", PATHS)
def test_nothing_that_should_not_matter_changes_a_bit(model, path):
    program, images, live = model
    batch = np.concatenate([images, images[::-1]])
    expected = Engine(program, threads=1, path=path)(batch)
    np.testing.assert_array_equal(expected[:3], expected[3:][::-1])
    engine = Engine(program, threads=2, path=path)
    np.testing.assert_array_equal(engine(batch), expected)
    np.testing.assert_array_equal(np.concatenate([engine(image[None]) for image in batch]), expected)
    assert np.abs(expected[:3] - live[program.output]).max() < 0.1 * np.abs(live[program.output]).max()


def test_chains_become_one_step():
    names = {name for name, _ in steps(toys.integer_vit_program())}
    assert {
        "LinearAccumulate+Requantize+SplitHeads+SplitHeads+SplitHeads",
        "QueryKeyAccumulate+Requantize+Shiftmax+AttentionValueAccumulate+Requantize+MergeHeads",
        "LinearAccumulate+AddRequantize",
        "ShiftGelu+Requantize",
    } <= names


def steps(program):
    return Runner(program, program.ops, [program.input], [program.output], 1, "", True).steps


@pytest.mark.parametrize("build", [toys.integer_vit_program, toys.integer_swin_program, toys.log2_program])
def test_every_op_belongs_to_one_step(build):
    program = build()
    assert sorted(i for _, ops in steps(program) for i in ops) == list(range(len(program.ops)))


@pytest.mark.parametrize("path", PATHS)
def test_heads_in_their_columns_can_be_looked_at(path):
    """q is a view of the qkv codes in a fused plan; asked for, it is copied out of its columns."""
    program, images, live = traced(INTEGER_ONLY["swin"])
    name = next(op.output for op in program.ops if isinstance(op, p.SplitHeads))
    found, logits = Runner(program, program.ops, [program.input], [name, program.output], 2, path, True)([images])
    np.testing.assert_array_equal(found, live[name])
    np.testing.assert_array_equal(logits, live[program.output])


def test_a_class_token_needs_one_row_of_the_last_block():
    """Rows that nobody reads are not computed: the same logits without them."""
    program, images, live = traced(lambda: toys.integer_vit_program(depth=1))
    everything = [op.output for op in program.ops if program.buffers[op.output].grid is not None]
    whole = Runner(program, program.ops, [program.input], [program.output, *everything], 1, "", True)([images])
    np.testing.assert_array_equal(whole[0], live[program.output])
    np.testing.assert_array_equal(Engine(program)(images), live[program.output])
    for name, array in zip(everything, whole[1:], strict=True):
        np.testing.assert_array_equal(array, live[name], err_msg=name)


def test_wide_codes_stay_out_of_float_ops():
    program = vit_program(bits=4)
    name = next(op.output for op in program.ops if isinstance(op, p.Quantize))
    grid = p.Grid((16,), True, np.ones(1, np.float32), np.zeros(1, np.float32))
    program.buffers[name] = p.Buffer(name, program.buffers[name].shape, grid)
    with pytest.raises(ValueError, match=r"op 0 \(Quantize\): takes or makes wide codes"):
        Engine(program)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_networks_of_true_size(path):
    for build in (
        lambda: toys.integer_vit_program(192, 12, 3, 16, 224, 1000),
        lambda: toys.integer_swin_program(96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 224, 7, 1000),
    ):
        program = build()
        images = np.random.default_rng(3).standard_normal((1, 3, 224, 224)).astype(np.float32)
        expected = trace(program, images, keep=(program.output,))[program.output]
        np.testing.assert_array_equal(Engine(program, path=path)(images), expected)
