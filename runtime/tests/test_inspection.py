"""`describe`: costs against the numbers of the design, bits and placement against the Program itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qvit_runtime.inspection import PLACEMENT, describe
from qvit_runtime.interpreter import EXECUTE
from qvit_runtime.products import meeting_bits, products
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program, regions_program
from toy_programs import deit_tiny, swin_program, vit_program


@pytest.mark.parametrize(("bits", "gbitops"), [(4, 21.455), (3, 12.883)])
def test_deit_tiny_costs_what_the_design_says(bits, gbitops):
    totals = describe(deit_tiny(bits))["totals"]
    assert round(totals["gbitops"], 3) == gbitops
    assert totals["weight_codes"] == 12 * 12 * 192 * 192 + 192 * 768 + 192 * 1000


def test_head_wise_cost_is_the_mean_of_the_products():
    """Heads of (8, 2) against (8, 2) bits cost (64 + 4) / 2 per MAC, not 5 x 5."""
    program = vit_program(dim=16, depth=1, heads=2, bits=8, seed=1)
    plain = describe(program)["totals"]["gbitops"]
    for letter in "qk":
        name = f"blocks.0.attn.{letter}_codes"
        grid = program.buffers[name].grid
        object.__setattr__(grid, "bits", (8, 2))
    scores = 2 * 17 * 17 * 8  # heads x N x N x d
    assert describe(program)["totals"]["gbitops"] == pytest.approx(plain - scores * (64 - 34) / 1e9)


def test_every_op_has_a_placement():
    assert PLACEMENT.keys() == EXECUTE.keys()


@pytest.mark.parametrize(
    "program",
    [vit_program(), swin_program(), vit_program(per_channel=True), vit_program(midrise=0.5, seed=6)],
    ids=lambda p: p.name,
)
def test_the_description_is_json_and_complete(program):
    about = json.loads(json.dumps(describe(program), allow_nan=False))
    assert [w["name"] for w in about["weights"]] == list(program.weights)
    for key in ("bits", "midrise"):
        assert all(np.array_equal(w[key], getattr(program.weights[w["name"]], key)) for w in about["weights"])
    assert sum(o["count"] for o in about["placement"]) == len(program.ops)
    assert {o["op"] for o in about["placement"] if o["placement"] == "integer"} == {
        "Linear",
        "QueryKey",
        "AttentionValue",
    }
    maps = {a["name"]: a for a in about["activations"] if a["name"].endswith(".map")}
    assert maps
    for name, entry in maps.items():
        assert tuple(entry["bits"]) == program.buffers[name].grid.bits
        assert entry["signed"] is False


@pytest.mark.parametrize(
    ("build", "only"),
    [(integer_vit_program, True), (integer_swin_program, True), (log2_program, False), (regions_program, False)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_integer_programs_have_no_float_op_and_the_costs_of_their_shapes(build, only):
    program = build()
    about = json.loads(json.dumps(describe(program), allow_nan=False))
    placements = {o["placement"] for o in about["placement"]}
    assert ("float" in placements) is not only
    assert ("integer only" in placements) is (build is not regions_program)
    assert about["totals"]["integer_bytes"] == sum(4 * array.size for array in program.integers.values())
    assert {a["name"] for a in about["activations"]} >= {"image_codes"}


def test_a_two_scaled_code_is_multiplied_once_and_a_shift_counts_as_a_product():
    """The two regions of a code are never both there, and the networks are of one shape."""
    macs = {
        build: describe(build())["totals"]["macs"] for build in (integer_vit_program, log2_program, regions_program)
    }
    assert len(set(macs.values())) == 1


def test_a_two_scaled_code_of_6_bits_costs_6_bits():
    """Its program holds two codes of 5 bits. Its products meet 6 bits with those of v and of fc2."""
    program = regions_program(bits=6)
    about = describe(program)
    maps = [a for a in about["activations"] if a["name"].endswith((".map", ".gelu_codes"))]
    assert [program.buffers[a["name"]].grid.bits for a in maps] == 4 * [(5, 5)]
    assert [a["bits"] for a in maps] == 4 * [[6]]
    assert [a["shape"] for a in maps] == 2 * [[2, 17, 17], [17, 4 * 16]]
    two_scaled = [product for product in products(program) if product.left in {a["name"] for a in maps}]
    right = {"AttentionValue": 8, "Linear": 6}  # what the toy gives v and fc2
    assert [type(program.ops[product.op]).__name__ for product in two_scaled] == 2 * ["AttentionValue", "Linear"]
    for product in two_scaled:
        found = [np.unique(bits).tolist() for bits in meeting_bits(program, product)]
        assert found == [[6], [right[type(program.ops[product.op]).__name__]]]


def test_the_ops_are_looked_through_a_fixed_number_of_times():
    """Not once for every operand: a network of thousands of layers is described in no time."""

    class Counted(tuple):
        def __iter__(self):
            nonlocal scans
            scans += 1
            return super().__iter__()

    found = []
    for depth in (1, 4):
        scans, program = 0, regions_program(depth=depth)
        describe(replace(program, ops=Counted(program.ops)))
        found.append(scans)
    assert found[0] == found[1]


def test_a_shift_costs_the_bits_of_its_code():
    """4-bit log2 codes against values of 8 bits, everything else 8/8."""
    totals = describe(log2_program(depth=2))["totals"]
    shifts = 2 * 17 * 17 * 16  # depth x N x N x C
    assert totals["gbitops"] * 1e9 == pytest.approx(64 * totals["macs"] - 8 * (8 - 4) * shifts)
