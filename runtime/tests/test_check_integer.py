"""The demands of the integer-only ops, one case per demand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime.check import check
from qvit_runtime.check_data import ProgramError
from toy_edits import edit_buffer, edit_grid, edit_op, edit_weight, first, set_integers, set_op
from toy_integer_draft import make_grid
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program, regions_program

VIT, SWIN = integer_vit_program(seed=3), integer_swin_program(seed=3)
LOG2, REGIONS = log2_program(seed=3), regions_program(seed=3)
F32 = np.float32
A, S, Q = "blocks.0.attn", "layers.0.blocks.1.attn", "blocks.0.attn.qkv_codes"
GELU = "blocks.0.mlp.gelu"


def widen(program: p.Program, name: str, bits: int = 16) -> p.Program:
    grid = program.buffers[name].grid
    assert grid is not None
    return edit_grid(program, name, bits=(bits,) * grid.groups)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "build",
    [integer_vit_program, integer_swin_program, log2_program, regions_program],
    ids=lambda build: build.__name__,
)
def test_what_the_builders_make_is_well_formed(build, seed):
    check(build(seed=seed))


def test_two_scaled_codes_have_one_bit_of_magnitude_at_least():
    check(edit_grid(REGIONS, "blocks.0.map", bits=(1, 1), scale=np.array([1, 2], F32)))


def test_deit_tiny_fits_its_integers():
    check(integer_vit_program(192, 1, 3, 16, 224, 1000))


FAULTS = {
    # Wide grids.
    "mixed widths": (
        lambda: edit_grid(VIT, Q, bits=(16, 8, 16)),
        "grid.bits is 16, allowed: an integer in 2..8, or 16",
    ),
    "wide unsigned": (lambda: edit_grid(VIT, "tokens", signed=False), "grid.bits is 16"),
    "24 bits": (lambda: widen(VIT, "tokens", 24), "grid.bits is 24"),
    "wide quantize": (
        lambda: widen(VIT, "image_codes"),
        "output 'image_codes' is codes of 16 bits, allowed: .* 8 bits",
    ),
    "old op on wide codes": (
        lambda: set_op(VIT, first(VIT, i.IntegerLayerNorm), p.Linear("tokens", "blocks.0.norm1", "head.weight", "")),
        "input 'tokens' is codes of 16 bits, allowed: codes of at most 8 bits",
    ),
    # Integers.
    "integers dtype": (
        lambda: replace(VIT, integers=VIT.integers | {"tokens.shift": np.ones(16)}),
        r"integers 'tokens.shift' is float64 \(16,\), allowed: int32 of 1 to 4 axes",
    ),
    "integers scalar": (lambda: set_integers(VIT, "tokens.shift", 3), r"integers 'tokens.shift' is int32 \(\)"),
    "integers -2^31": (
        lambda: set_integers(VIT, "tokens.shift", [-(2**31)]),
        "an element is -2147483648, allowed: -2147483647",
    ),
    "integers are a list": (lambda: replace(VIT, integers=[]), "integers is list"),
    # Sums.
    "linear weight": (
        lambda: edit_op(VIT, i.LinearAccumulate, weight="w"),
        "weight is 'w', allowed: the name of a weight",
    ),
    "linear bias": (lambda: edit_op(VIT, i.LinearAccumulate, bias="b"), "bias is 'b', allowed: the name of integers"),
    "linear bias shape": (lambda: set_integers(VIT, f"{A}.qkv.bias", [1]), r"is \(1,\), allowed: \(48,\)"),
    "linear columns": (
        lambda: edit_weight(VIT, f"{A}.qkv.weight", bits=np.full((48, 2), 8), scale=np.ones((48, 2), F32)),
        "column groups of 'blocks.0.attn.qkv.weight' is 2, allowed: 1",
    ),
    "linear inputs": (
        lambda: edit_weight(VIT, f"{A}.qkv.weight", codes=np.zeros((48, 15), np.int8)),
        "is 15, allowed: 16",
    ),
    "linear offset": (
        lambda: edit_grid(VIT, "blocks.0.norm1", signed=False, offset=np.ones(1, F32)),
        "offset of 'blocks.0.norm1' is .1.., allowed: 0",
    ),
    "linear output": (lambda: widen(VIT, f"{A}.qkv", 16), "is codes of 16 bits, allowed: codes of 32 bits"),
    "linear groups": (
        lambda: edit_buffer(VIT, f"{A}.qkv", grid=make_grid(32, True, np.ones(3), 1)),
        "groups of 'blocks.0.attn.qkv' is 3, allowed: 1 or 48",
    ),
    "scores of values": (lambda: edit_op(VIT, i.QueryKeyAccumulate, query="image"), "input 'image' is"),
    "scores shape": (
        lambda: edit_buffer(VIT, f"{A}.scores", shape=(2, 17, 16)),
        r"is \(2, 17, 16\), allowed: \(2, 17, 17\)",
    ),
    "mixed shapes": (
        lambda: edit_op(VIT, i.AttentionValueAccumulate, attention=f"{A}.q"),
        "attention 'blocks.0.attn.q' is",
    ),
    "sum start": (lambda: edit_op(SWIN, i.SumTokens, start=9), r"start is 9, allowed: 0\.\.8"),
    "sum output": (lambda: widen(SWIN, "sum"), "is codes of 16 bits, allowed: codes of 32 bits"),
    # Rescaling.
    "multiplier": (
        lambda: edit_op(VIT, i.Requantize, multiplier="m"),
        "multiplier is 'm', allowed: the name of integers",
    ),
    "multiplier groups": (
        lambda: set_integers(VIT, f"{Q}.multiplier", [1, 2, 3]),
        r"multiplier 'blocks.0.attn.qkv_codes.multiplier' is \(3,\), allowed: \(1,\) or \(48,\)",
    ),
    "shift 0": (
        lambda: set_integers(VIT, f"{Q}.shift", [0]),
        r"shift 'blocks.0.attn.qkv_codes.shift': an element is 0, allowed: 1\.\.62",
    ),
    "shift 63": (lambda: set_integers(VIT, f"{Q}.shift", [63]), "an element is 63"),
    "requantize to 32 bits": (lambda: widen(VIT, Q, 32), "is codes of 32 bits, allowed: codes of at most 16 bits"),
    "requantize across": (
        lambda: edit_buffer(VIT, f"{Q}", grid=make_grid(8, True, [1.0] * 17, 0)),
        "grid axis of .* is 0, allowed: 1",
    ),
    "requantize offset": (
        lambda: edit_grid(VIT, f"{A}.scores_codes", signed=False, offset=np.ones(1, F32)),
        "offset of 'blocks.0.attn.scores_codes' is .1.",
    ),
    "add shapes": (
        lambda: edit_op(
            VIT, i.AddRequantize, right=f"{A}.qkv", right_multiplier=f"{Q}.multiplier", right_shift=f"{Q}.shift"
        ),
        "right 'blocks.0.attn.qkv' is",
    ),
    "add left shift": (lambda: edit_op(VIT, i.AddRequantize, left_shift="s"), "left shift is 's'"),
    "add right multiplier": (lambda: edit_op(VIT, i.AddRequantize, right_multiplier="s"), "right multiplier is 's'"),
    "prefix out of range": (
        lambda: set_integers(VIT, "tokens.prefix", np.full((1, 16), 2**15)),
        r"prefix 'tokens.prefix': an element is 32768, allowed: -32768\.\.32767",
    ),
    "prefix shape": (lambda: set_integers(VIT, "tokens.prefix", [1] * 16), r"allowed: \(prefix tokens, 16\)"),
    "position": (
        lambda: set_integers(VIT, "tokens.position", np.zeros((17, 16))),
        r"is \(17, 16\), allowed: \(16, 16\)",
    ),
    # Functions.
    "norm shift": (lambda: edit_op(VIT, i.IntegerLayerNorm, shift=8), r"shift is 8, allowed: 9\.\.62"),
    "norm zero": (lambda: edit_op(LOG2, i.IntegerLayerNorm, zero=256), r"zero is 256, allowed: 0\.\.255"),
    "norm exponent": (
        lambda: set_integers(LOG2, "blocks.0.norm1.exponent", [9] * 16),
        r"an element is 9, allowed: 0\.\.8",
    ),
    "norm exponent on wide codes": (
        lambda: edit_op(VIT, i.IntegerLayerNorm, exponent="blocks.0.norm1.bias"),
        "input 'tokens' is codes of 16 bits, allowed: codes of at most 8 bits",
    ),
    "norm bias": (lambda: edit_op(VIT, i.IntegerLayerNorm, bias="tokens.position"), r"is \(16, 16\), allowed: \(16,\)"),
    "gelu unit": (lambda: edit_op(VIT, i.ShiftGelu, unit=0), "unit is 0"),
    "gelu fraction": (lambda: edit_op(VIT, i.ShiftGelu, fraction=31), r"fraction is 31, allowed: 1\.\.30"),
    "gelu output": (lambda: widen(VIT, GELU), "output 'blocks.0.mlp.gelu' is codes of 16 bits"),
    "gelu of wide codes": (
        lambda: widen(VIT, "blocks.0.mlp.fc1_codes"),
        "input 'blocks.0.mlp.fc1_codes' is codes of 16",
    ),
    "softmax signed": (lambda: edit_grid(VIT, f"{A}.map", signed=True), "grid of 'blocks.0.attn.map' is signed"),
    "softmax bias": (lambda: edit_op(SWIN, i.Shiftmax, bias="none"), "bias is 'none'"),
    "softmax bias shape": (lambda: edit_op(SWIN, i.Shiftmax, bias="norm.bias"), "bias 'norm.bias' is"),
    "softmax bias range": (
        lambda: set_integers(SWIN, f"{S}.position_bias", np.full((2, 16, 16), 2**28 + 1)),
        r"an element is 268435457, allowed: -268435456\.\.268435456",
    ),
    "softmax mask": (lambda: edit_op(VIT, i.Shiftmax, mask="tokens.position"), "rank 4 where there is a mask"),
    "log scale": (
        lambda: edit_grid(LOG2, "blocks.0.map", scale=np.full(1, 0.5, F32)),
        "scale of 'blocks.0.map' is 0.5, allowed: 1",
    ),
    "log linear": (lambda: edit_op(LOG2, i.LogIntSoftmax, ln2=20, linear=37), "linear is 37, allowed: at least 38"),
    "log constant": (
        lambda: edit_op(LOG2, i.LogIntSoftmax, ln2=20, linear=38, constant=361),
        "constant is 361, allowed: at least 362",
    ),
    "log wide": (lambda: widen(LOG2, "blocks.0.scores_codes"), "codes of 16 bits, allowed: .* 8 bits"),
    # Codes with a meaning of their own.
    "log2 codes elsewhere": (
        lambda: edit_op(LOG2, i.ShiftAttentionValue, value="blocks.0.map"),
        "value 'blocks.0.map': writer is LogIntSoftmax, allowed: an op that writes plain codes",
    ),
    "log2 codes in a product": (
        lambda: set_op(
            LOG2, first(LOG2, i.ShiftAttentionValue), p.AttentionValue("blocks.0.map", f"{A}.v_codes", "blocks.0.mixed")
        ),
        "input 'blocks.0.map' is written by LogIntSoftmax, allowed: that only in front of ShiftAttentionValue",
    ),
    "shifts of plain codes": (
        lambda: edit_op(LOG2, i.ShiftAttentionValue, attention="blocks.0.scores_codes"),
        "attention 'blocks.0.scores_codes': writer is Quantize, allowed: LogIntSoftmax",
    ),
    "regions elsewhere": (
        lambda: set_op(REGIONS, first(REGIONS, p.AttentionValue), p.MergeHeads("blocks.0.map", "blocks.0.mixed")),
        "written by QuantizeRegions, allowed: that only in front of Linear or AttentionValue",
    ),
    "regions groups": (
        lambda: edit_grid(
            REGIONS,
            GELU.replace("mlp.gelu", "gelu_codes"),
            bits=(5,) * 4,
            scale=np.ones(4, F32),
            offset=np.zeros(4, F32),
        ),
        "is 4, allowed: 2, the low and",
    ),
    "regions bits": (lambda: edit_grid(REGIONS, "blocks.0.map", bits=(5, 4)), r"bits of 'blocks.0.map' is \(5, 4\)"),
    "regions of unequal bits, one bit": (
        lambda: edit_grid(REGIONS, "blocks.0.map", bits=(1, 2)),
        "grid.bits is 1, allowed: .* or 1 for both regions of two-scaled codes",
    ),
    "one bit without regions": (
        lambda: edit_grid(REGIONS, "blocks.0.mixed_codes", bits=(1, 1), signed=False),
        "output 'blocks.0.mixed_codes' is codes of 1 bits, allowed: codes of at least 2 bits",
    ),
    "regions ratio": (
        lambda: edit_grid(REGIONS, "blocks.0.map", scale=np.array([1, 3], F32)),
        r"is 3.0, allowed: a power of two in 2..2\^5",
    ),
    "regions ratio too large": (lambda: edit_grid(REGIONS, "blocks.0.map", scale=np.array([1, 64], F32)), "is 64.0"),
    "regions one scale": (lambda: edit_grid(REGIONS, "blocks.0.map", scale=np.array([1, 1], F32)), "is 1.0"),
    "regions high offset": (
        lambda: edit_grid(REGIONS, "blocks.0.gelu_codes", offset=np.array([0, 1], F32)),
        "offset of the high region",
    ),
    "regions of a map offset": (
        lambda: edit_grid(REGIONS, "blocks.0.map", offset=np.array([1, 0], F32)),
        "offset of 'blocks.0.map'",
    ),
    "regions width": (
        lambda: edit_buffer(REGIONS, "blocks.0.map", shape=(2, 17, 36)),
        r"is \(2, 17, 36\), allowed: \(2, 17, 34\)",
    ),
    "regions linear": (
        lambda: edit_weight(REGIONS, "blocks.0.fc2.weight", codes=np.zeros((16, 128), np.int8)),
        "is 128, allowed: 64, half of what 'blocks.0.gelu_codes' has",
    ),
    # Moves.
    "split groups": (
        lambda: edit_buffer(VIT, Q, grid=make_grid(8, True, np.ones(24), 1)),
        "groups of 'blocks.0.attn.qkv_codes' is 24, allowed: 1 or 3 or 6",
    ),
    "split grid": (lambda: edit_grid(VIT, f"{A}.v", scale=np.ones(1, F32)), "grid of 'blocks.0.attn.v' is another one"),
    "split head axis": (
        lambda: edit_grid(SWIN, f"{S}.q", axis=2),
        "grid axis of 'layers.0.blocks.1.attn.q' is 2, allowed: 1",
    ),
    "merge patches of groups": (
        lambda: edit_buffer(SWIN, "layers.0.blocks.1.mlp.sum", grid=make_grid(16, True, np.ones(2), 2)),
        "groups of 'layers.0.blocks.1.mlp.sum' is 2, allowed: 1",
    ),
    "select grid": (lambda: edit_grid(VIT, "class_token", signed=False), "grid of 'class_token'"),
}


@pytest.mark.parametrize(("build", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(build, message):
    with pytest.raises(ProgramError, match=message) as caught:
        check(build())
    assert "\n" not in str(caught.value)
