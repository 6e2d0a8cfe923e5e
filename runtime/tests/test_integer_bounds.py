"""Bounds: check accepts the largest program that cannot overflow and refuses the next one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime.check import check
from qvit_runtime.check_data import ProgramError
from qvit_runtime.check_ops import CHECK
from qvit_runtime.check_scope import Scope
from qvit_runtime.integer_bounds import BOUNDS, bounds
from qvit_runtime.interpreter import trace
from toy_edits import edit_op, edit_weight, set_integers
from toy_integer_draft import make_grid
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program

VIT, LOG2 = integer_vit_program(seed=3), log2_program(seed=3)


def test_every_op_that_computes_on_integers_has_bounds():
    both_activations = {p.QueryKey, p.AttentionValue}
    assert set(BOUNDS) == set(i.IntegerOp.__args__) - {i.Dequantize, i.QuantizeRegions} | both_activations


def saturated(program: p.Program, name: str, bias: int) -> p.Program:
    """The weight `name` all -128, so that a sum reaches 128 x 128 x inputs, and this bias."""
    shape = program.weights[f"{name}.weight"].codes.shape
    program = edit_weight(program, f"{name}.weight", codes=np.full(shape, -128, np.int8))
    return set_integers(program, f"{name}.bias", [bias] * shape[0])


EDGES = {
    "linear": (
        lambda n: saturated(VIT, "head", n),
        2**31 - 1 - 16 * 128 * 128,
        "sum of products . bias is up to 2147483648",
    ),
    "negative bias": (lambda n: saturated(VIT, "head", -n), 2**31 - 1 - 16 * 128 * 128, "sum of products . bias"),
    "gelu": (
        lambda n: edit_op(VIT, i.ShiftGelu, fraction=10, unit=n),
        2**20 - 1,
        r"e1 \+ e2 is up to 2147483648, allowed: below 2\^31",
    ),
    "shiftmax": (
        lambda n: edit_op(VIT, i.Shiftmax, fraction=10, unit=n),
        (2**31 - 1) // (17 << 10),
        "sum of exponentials",
    ),
    "log softmax": (lambda n: edit_op(LOG2, i.LogIntSoftmax, ln2=1, constant=n), (2**32 - 1) // 17, r"below 2\^62"),
}


@pytest.mark.parametrize(("build", "largest", "message"), EDGES.values(), ids=EDGES)
def test_a_bound_refuses_exactly_what_could_overflow(build, largest, message):
    check(build(largest))
    with pytest.raises(ProgramError, match=message):
        check(build(largest + 1))


@pytest.mark.parametrize("kind", [p.QueryKey, i.QueryKeyAccumulate])
@pytest.mark.parametrize(
    ("signs", "longest", "message"),
    [
        ((False, False), 33_025, r"sum of products is up to 2147515650, allowed: below 2\^31, whatever the image"),
        ((True, False), 65_536, "query 'q': inner dimension is 65537, allowed: at most 65536"),
        ((True, True), 65_536, "query 'q': inner dimension is 65537, allowed: at most 65536"),
    ],
)
def test_long_products_of_activations_are_bounded_by_their_length(kind, signs, longest, message):
    """255 x 255 x d reaches 2^31 at d = 33,026, long before the limit of all inner dimensions."""
    op = p.QueryKey("q", "k", "z", 1.0) if kind is p.QueryKey else i.QueryKeyAccumulate("q", "k", "z")

    def check_scores(inner: int) -> None:
        buffers = {
            name: p.Buffer(name, (1, 1, inner), make_grid(8, sign, 1.0)) for name, sign in zip("qk", signs, strict=True)
        }
        sums = None if kind is p.QueryKey else make_grid(32, True, 1.0)
        CHECK[kind](Scope(replace(VIT, buffers=buffers | {"z": p.Buffer("z", (1, 1, 1), sums)}), "op", {}), op)

    check_scores(longest)
    with pytest.raises(ProgramError, match=message):
        check_scores(longest + 1)


def test_a_negative_and_a_positive_row_bound_the_sum_that_really_occurs():
    """The bound of a LinearAccumulate is reached by codes of -128 under weights of -128, and by nothing more."""
    program = saturated(VIT, "head", 7)
    op = next(op for op in program.ops if op.output == "head")
    (bound,) = bounds(program, op)
    assert bound.worst == 16 * 128 * 128 + 7


@pytest.mark.parametrize("build", [integer_vit_program, integer_swin_program], ids=lambda build: build.__name__)
def test_sums_stay_below_their_bounds_and_not_far(build):
    program = build(seed=6)
    images = np.random.default_rng(0).standard_normal((4, *program.buffers["image"].shape)).astype(np.float32)
    live = trace(program, images)
    for op in program.ops:
        if isinstance(op, i.LinearAccumulate | i.QueryKeyAccumulate | i.AttentionValueAccumulate | i.SumTokens):
            (bound,) = bounds(program, op)
            largest = int(np.abs(live[op.output]).max())
            assert bound.worst / 200 < largest <= bound.worst, op.output
