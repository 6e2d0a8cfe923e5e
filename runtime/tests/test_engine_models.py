"""Whole networks: each step fed the interpreter's own inputs obeys the near-tie rule; the answers agree; nothing that
should not matter (threads, batch, position, fusion's absence, other callers) changes a bit."""

import os
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import toy_programs as toys
from engine_cases import MAX_SHARE, PATHS, check_near_ties
from qvit_runtime import program as p
from qvit_runtime import save
from qvit_runtime.engine import Engine, Runner
from qvit_runtime.integer import expand_groups, quantize
from qvit_runtime.interpreter import EXECUTE, inputs_of, run, trace

MODELS = {
    "vit mixed": lambda: toys.vit_program(dim=48, heads=3, size=28, depth=2),
    "vit 4": lambda: toys.vit_program(dim=48, heads=3, size=28, bits=4),
    "vit 8": lambda: toys.vit_program(dim=32, heads=2, bits=8),
    "vit 2": lambda: toys.vit_program(bits=2),
    "vit rich": lambda: toys.vit_program(
        dim=32, distilled=True, registers=3, layer_scale=True, qk_norm=True, per_channel=True
    ),
    "vit pooled features": lambda: toys.vit_program(mean_pool=True, classes=0),
    "vit mid-rise": lambda: toys.vit_program(dim=48, heads=3, size=28, midrise=0.5, per_channel=True),
    "vit mid-rise 2": lambda: toys.vit_program(bits=8, weight_bits=2, midrise=1.0),
    "swin mid-rise": lambda: toys.swin_program(midrise=0.5, seed=2),
    "swin mixed": lambda: toys.swin_program(dim=24),
    "swin 4": lambda: toys.swin_program(bits=4, per_channel=True),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    program = MODELS[request.param]()
    images = np.random.default_rng(3).standard_normal((3, *program.buffers[program.input].shape)).astype(np.float32)
    return program, images, trace(program, images)


def outputs_of(program, positions):
    """Buffers that these ops write and something else reads."""
    written = [program.ops[i].output for i in positions]
    outside = {name for i, op in enumerate(program.ops) if i not in positions for name in inputs_of(op)}
    return [name for name in written if name in outside or name == program.output]


def producer(program, name):
    return next(op for op in program.ops if op.output == name)


def unsettled_rows(program, positions, live):
    """Rows of an attention step whose map has a code so near a tie that the product with the values may differ."""
    maps = [program.ops[i].output for i in positions if isinstance(program.ops[i], p.Quantize)]
    grid = program.buffers[maps[0]].grid
    values = live[producer(program, maps[0]).input].astype(np.float64)
    steps = values / expand_groups(grid.scale.astype(np.float64), values.shape, grid.axis + 1)
    return (np.abs(steps - np.floor(steps) - 0.5) < 1e-4).any(axis=-1)


def assert_step_follows(program, positions, live, path, fuse):
    ops = [program.ops[i] for i in positions]
    inside = {op.output for op in ops}
    inputs = list(dict.fromkeys(name for op in ops for name in inputs_of(op) if name not in inside))
    outputs = outputs_of(program, positions)
    found = Runner(program, ops, inputs, outputs, 1, path, fuse)([live[name] for name in inputs])
    attention = any(isinstance(op, p.QueryKey) for op in ops) and len(ops) > 1
    for name, array in zip(outputs, found, strict=True):
        grid = program.buffers[name].grid
        expected = live[name]
        if grid is None:
            np.testing.assert_allclose(array, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
            continue
        op = producer(program, name)
        if isinstance(op, p.MergeHeads):  # compare per head, where the values are
            shape = program.buffers[op.input].shape
            *lead, heads, tokens, dim = shape
            array, expected = (
                codes.reshape(-1, *lead, tokens, heads, dim).swapaxes(-3, -2) for codes in (array, expected)
            )
            op, grid = producer(program, op.input), program.buffers[op.input].grid
        if not isinstance(op, p.Quantize):
            np.testing.assert_array_equal(array, expected)
            continue
        if attention:
            array = np.where(unsettled_rows(program, positions, live)[..., None], expected, array)
        ties = check_near_ties(array, expected, live[op.input], grid)
        assert ties.differing <= max(1, MAX_SHARE * ties.codes), f"{name}: {ties}"


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_each_step_obeys_the_near_tie_rule(model, path, fuse):
    program, _, live = model
    steps = Runner(program, program.ops, [program.input], [program.output], 1, path, fuse).steps
    covered = []
    for _, positions in steps:
        covered += positions
        if positions:
            assert_step_follows(program, positions, live, path, fuse)
    assert sorted(covered) == list(range(len(program.ops)))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("build", [toys.deit_tiny, lambda: toys.deit_tiny(bits=8), toys.swin_tiny])
def test_each_step_of_a_network_of_true_size(build, path):
    program = build()
    shape = (1, *program.buffers[program.input].shape)
    live = trace(program, np.random.default_rng(3).standard_normal(shape).astype(np.float32))
    steps = Runner(program, program.ops, [program.input], [program.output], 1, path, True).steps
    for _, positions in steps:
        if positions:
            assert_step_follows(program, positions, live, path, True)


@pytest.mark.parametrize("path", PATHS)
def test_a_quantize_op_alone_is_exact(path):
    rng = np.random.default_rng(4)
    values = np.concatenate([rng.standard_normal((2, 5, 37)), rng.integers(-9, 9, (2, 5, 37)) * 0.125 + 0.0625], axis=2)
    for bits, signed, axis, offset in (((4,), True, 0, 0.0), ((3, 8), False, 1, -0.3), ((2, 5, 4, 6, 7), True, 0, 0.0)):
        grid = p.Grid(bits, signed, np.full(len(bits), 0.125, np.float32), np.full(len(bits), offset, np.float32), axis)
        program = p.Program(
            "q",
            "x",
            "y",
            (p.Quantize("x", "y"),),
            {"x": p.Buffer("x", (5, 74)), "y": p.Buffer("y", (5, 74), grid)},
            {},
            {},
            p.Preprocess((1, 1)),
        )
        x = values.astype(np.float32)
        (found,) = Runner(program, program.ops, ["x"], ["y"], 1, path, True)([x])
        np.testing.assert_array_equal(found, trace(program, x)["y"])


@pytest.mark.parametrize("path", PATHS)
def test_steps_beyond_32_bits_clip(path):
    """A scale of 1e-9 makes 1e12 steps: too many to convert before clipping, so nothing is fused and all is well."""
    fine = p.Grid((4,), True, np.array([1e-9], np.float32), np.zeros(1, np.float32))
    x = p.Buffer("x", (7, 64), p.Grid((8,), True, np.ones(1, np.float32), np.zeros(1, np.float32)))
    buffers = {b.name: b for b in (x, p.Buffer("y", (7, 64)), p.Buffer("z", (7, 64), fine))}
    rng = np.random.default_rng(0)
    weight = p.Weight(rng.integers(-128, 128, (64, 64)).astype(np.int8), np.array([[8]]), np.ones((1, 1), np.float32))
    ops = (p.Linear("x", "y", "w", "b"), p.Quantize("y", "z"))
    program = p.Program(
        "q", "x", "z", ops, buffers, {"w": weight}, {"b": np.zeros(64, np.float32)}, p.Preprocess((1, 1))
    )
    codes = rng.integers(-128, 128, (1, 7, 64)).astype(np.int16)
    (found,) = Runner(program, ops, ["x"], ["z"], 1, path, True)([codes])
    values = EXECUTE[p.Linear](program, ops[0], {"x": codes})
    np.testing.assert_array_equal(found, quantize(values, fine))
    assert {-8, 7} <= set(np.unique(found))


@pytest.mark.parametrize("path", PATHS)
def test_logits_and_predicted_class_agree(model, path):
    program, images, live = model
    found = Engine(program, path=path)(images)
    expected = live[program.output]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_that_should_not_matter_changes_a_bit(model, path):
    program, images, _ = model
    batch = np.concatenate([images, images[::-1]])
    expected = Engine(program, threads=1, path=path)(batch)
    np.testing.assert_array_equal(expected[:3], expected[3:][::-1])
    for threads in (2, 3, 5):
        engine = Engine(program, threads=threads, path=path)
        np.testing.assert_array_equal(engine(batch), expected)
        np.testing.assert_array_equal(np.concatenate([engine(image[None]) for image in batch]), expected)
        np.testing.assert_array_equal(engine(batch), expected)  # memory that is used again


@pytest.mark.parametrize("threads", [1, 2])
def test_many_callers_of_several_engines(threads):
    programs = [toys.vit_program(bits=4), toys.swin_program()]
    engines = [Engine(program, threads=threads) for program in programs]
    images = [
        np.random.default_rng(i).standard_normal((2, *q.buffers[q.input].shape)).astype(np.float32)
        for i, q in enumerate(programs)
    ]
    expected = [engine(x) for engine, x in zip(engines, images, strict=True)]
    wrong = []

    def call(which):
        for _ in range(20):
            if not np.array_equal(engines[which](images[which]), expected[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call, args=(i % 2,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_an_engine_survives_a_fork():
    """Its threads do not: the child makes its own."""
    program = toys.vit_program(bits=4)
    images = np.random.default_rng(0).standard_normal((3, *program.buffers["image"].shape)).astype(np.float32)
    engine = Engine(program, threads=2)
    expected = engine(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of any fork with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine(images), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine(images), expected)


CROWDED = """
import resource, sys
import numpy as np
from qvit_runtime import load
from qvit_runtime.engine import Engine

program = load(sys.argv[1])
images = np.zeros((2, *program.buffers["image"].shape), np.float32)
expected = Engine(program, threads=1)(images)
engine = Engine(program, threads=200)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)  # room for the stacks of some 30 threads
for _ in range(2):
    try:
        engine(images)
    except ValueError as error:
        print(error)
assert np.array_equal(Engine(program, threads=3)(images), expected)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's account of a process's memory")
def test_threads_that_cannot_be_started_are_an_error(tmp_path):
    """The process, and the engine, live on."""
    save(toys.vit_program(bits=4), tmp_path / "toy.qvit")
    done = subprocess.run([sys.executable, "-c", CROWDED, tmp_path / "toy.qvit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert re.fullmatch(
            r"threads: 200 were asked for and \d+ could run \(.+\); ask for fewer, or raise this process's limits", line
        )


def test_profile_names_every_op():
    program = toys.vit_program(bits=4)
    times = Engine(program).profile(np.zeros((1, *program.buffers["image"].shape), np.float32))
    assert sorted(i for t in times for i in t.ops) == list(range(len(program.ops)))
    assert all(t.seconds >= 0 for t in times)


def test_images_are_copied_only_where_they_must_be():
    program = toys.vit_program(bits=4)
    images = np.random.default_rng(0).standard_normal((2, *program.buffers["image"].shape)).astype(np.float32)
    engine = Engine(program)
    expected = engine(images)
    read_only = images.copy()
    read_only.flags.writeable = False
    unaligned = np.zeros(images.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(images.shape)
    unaligned[...] = images
    assert not unaligned.flags.aligned
    given = [read_only, unaligned, np.asfortranarray(images), images.astype(">f4"), images.astype(np.float64)]
    for array in given:
        np.testing.assert_array_equal(engine(array), expected)
        assert engine.profile(array)
    engine._runner = lambda arrays: arrays  # what is handed over
    for array, copied in zip(given, (False, True, True, True, True), strict=True):
        handed = engine(array)
        assert handed.dtype == np.float32
        assert handed.flags.aligned
        assert handed.flags.c_contiguous
        assert np.shares_memory(handed, array) is not copied


def test_refusals_say_why(monkeypatch):
    program = toys.vit_program(bits=4)
    shape = program.buffers[program.input].shape
    engine = Engine(program)
    with pytest.raises(ValueError, match="images have shape"):
        engine(np.zeros((1, 3, 5, 5), np.float32))
    bad = np.zeros((1, *shape), np.float32)
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        engine(bad)
    assert engine(np.zeros((0, *shape), np.float32)).shape == (0, 5)
    monkeypatch.setenv("QVIT_CPU", "scalar")
    assert Engine(program).path == "scalar"
    monkeypatch.setenv("QVIT_CPU", "mmx")
    with pytest.raises(ValueError, match="unknown; QVIT_CPU takes one of"):
        Engine(program)
    monkeypatch.delenv("QVIT_CPU")
    assert run(program, np.zeros((1, *shape), np.float32)).shape == (1, 5)
