"""`check` accepts what the builders make and names the fault in everything else: data, order and ends of a Program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qvit_runtime import program as p
from qvit_runtime.check import check
from qvit_runtime.check_data import ProgramError
from toy_edits import edit_buffer, edit_grid, edit_op, edit_preprocess, edit_weight, first, set_constant, set_op
from toy_programs import swin_program, vit_program

VIT = vit_program(seed=3)
F32 = np.float32
MAP = "blocks.0.attn.map"
QKV = "blocks.0.attn.qkv.weight"


def nan_at_zero(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flat[0] = np.nan
    return copy


def uniform_qkv(bits: int, code: int) -> p.Program:
    """VIT with this code everywhere in the mid-rise blocks of one weight."""
    codes, everywhere = np.full((48, 16), code, np.int8), np.ones((6, 1), np.bool_)
    return edit_weight(VIT, QKV, codes=codes, bits=np.full((6, 1), bits), midrise=everywhere)


WELL_FORMED = {
    "vit": vit_program,
    "swin": swin_program,
    "deit": lambda: vit_program(distilled=True, registers=1, layer_scale=True, qk_norm=True),
    "per channel": lambda: vit_program(per_channel=True),
    "features": lambda: vit_program(classes=0, mean_pool=True),
    "three stages": lambda: swin_program(depths=(1, 2, 1), heads=(2, 4, 8)),
    "one head": lambda: vit_program(heads=1, bits=2),
    "mid-rise": lambda: vit_program(midrise=0.5, per_channel=True),
    "mid-rise extremes": lambda: uniform_qkv(7, -127),
}


@pytest.mark.parametrize("build", WELL_FORMED.values(), ids=WELL_FORMED)
def test_what_the_builders_make_is_well_formed(build):
    check(build())


@pytest.mark.parametrize("bits", range(2, 8))
def test_mid_rise_codes_are_the_odd_ones_about_zero(bits):
    levels = [code for code in range(-128, 128) if code % 2 and abs(code) < 2**bits]
    assert len(levels) == 2**bits
    for code in range(-128, 128):
        if code in levels:
            check(uniform_qkv(bits, code))
        else:
            with pytest.raises(ProgramError, match="allowed: odd codes"):
                check(uniform_qkv(bits, code))


def test_weights_are_not_mid_rise_unless_they_say_so():
    weight = p.Weight(np.zeros((4, 6), np.int8), np.full((2, 3), 2), np.ones((2, 3), F32))
    assert weight.midrise.dtype == np.bool_
    assert weight.midrise.shape == (2, 3)
    assert not weight.midrise.any()
    assert {*weight.qmin.flat, *weight.qmax.flat} == {-2, 1}


FAULTS = {
    "program name": (lambda: replace(VIT, name=""), "program name is ''"),
    "ops is a list": (lambda: replace(VIT, ops=list(VIT.ops)), "ops is list"),
    "unknown input": (lambda: replace(VIT, input="picture"), "input is 'picture'"),
    "output holds codes": (lambda: replace(VIT, output="head.codes"), "output 'head.codes' is codes"),
    "output has two axes": (lambda: replace(VIT, output="norm"), r"output 'norm' is values \(17, 16\)"),
    "buffer misfiled": (
        lambda: replace(VIT, buffers=VIT.buffers | {"norm": p.Buffer("other", (17, 16))}),
        "buffer 'norm': name is 'other'",
    ),
    "buffer name with a newline": (
        lambda: replace(VIT, buffers=VIT.buffers | {"a\nb": p.Buffer("a\nb", (1,))}),
        "a buffer's name is",
    ),
    "rank 5": (lambda: edit_buffer(VIT, "norm", shape=(1,) * 5), "buffer 'norm': shape is"),
    "size zero": (lambda: edit_buffer(VIT, "norm", shape=(0, 16)), "buffer 'norm': shape: a size is 0"),
    "size not an int": (lambda: edit_buffer(VIT, "norm", shape=(17.0, 16)), "a size is 17.0"),
    "too many elements": (lambda: edit_buffer(VIT, "norm", shape=(1 << 20, 1 << 20)), "at most 134217728 elements"),
    "buffer nobody writes": (
        lambda: replace(VIT, buffers=VIT.buffers | {"ghost": p.Buffer("ghost", (1,))}),
        "buffer 'ghost' is written by no op",
    ),
    "grid bits 9": (lambda: edit_grid(VIT, MAP, bits=(9, 4)), "grid.bits is 9, allowed: an integer in 2..8"),
    "grid bits 1": (lambda: edit_grid(VIT, MAP, bits=(1, 4)), "grid.bits is 1"),
    "grid axis": (lambda: edit_grid(VIT, MAP, axis=3), "grid.axis is 3, allowed: an integer in 0..2"),
    "grid groups": (lambda: edit_grid(VIT, MAP, bits=(4, 4, 4)), "number of groups is 3"),
    "grid groups do not divide": (lambda: edit_grid(VIT, MAP, bits=(4, 4), axis=1), "a divisor of 17"),
    "grid scale NaN": (lambda: edit_grid(VIT, MAP, scale=np.array([1, np.nan], F32)), "grid.scale: an element is nan"),
    "grid scale zero": (lambda: edit_grid(VIT, MAP, scale=np.zeros(2, F32)), "grid.scale: an element is 0.0"),
    "grid scale dtype": (lambda: edit_grid(VIT, MAP, scale=np.ones(2)), r"grid.scale is float64 \(2,\)"),
    "grid scale shape": (lambda: edit_grid(VIT, MAP, scale=np.ones(3, F32)), r"allowed: float32 \(2,\)"),
    "grid offset infinite": (lambda: edit_grid(VIT, MAP, offset=np.full(2, np.inf, F32)), "grid.offset: an element"),
    "offset on a signed grid": (
        lambda: edit_grid(VIT, "image_codes", offset=np.ones(1, F32)),
        "grid.offset is .1.., allowed: 0 on a signed grid",
    ),
    "grid signed is 1": (lambda: edit_grid(VIT, MAP, signed=1), "bool signed"),
    "weight codes dtype": (
        lambda: edit_weight(VIT, QKV, codes=VIT.weights[QKV].codes.astype(np.int16)),
        "weight 'blocks.0.attn.qkv.weight': codes is int16",
    ),
    "weight code out of range": (
        lambda: edit_weight(VIT, QKV, bits=np.full((6, 1), 2), codes=np.full((48, 16), 2, np.int8)),
        r"block \(0, 0\) is codes 2..2, allowed: codes of 2 bits",
    ),
    "weight groups": (lambda: edit_weight(VIT, QKV, bits=np.full((5, 1), 8)), "groups is"),
    "weight bits": (lambda: edit_weight(VIT, QKV, bits=np.full((6, 1), 9)), "bits: an element is 9"),
    "weight bits float": (lambda: edit_weight(VIT, QKV, bits=np.ones((6, 1))), "bits is float64"),
    "weight scale negative": (lambda: edit_weight(VIT, QKV, scale=-VIT.weights[QKV].scale), "scale: an element is -"),
    "weight scale shape": (lambda: edit_weight(VIT, QKV, scale=np.ones((1, 6), F32)), r"scale is float32 \(1, 6\)"),
    "midrise dtype": (
        lambda: edit_weight(VIT, QKV, midrise=np.zeros((6, 1), np.uint8)),
        r"midrise is uint8 \(6, 1\), allowed: bool \(6, 1\), as bits",
    ),
    "midrise shape": (lambda: edit_weight(VIT, QKV, midrise=np.zeros((1, 6), np.bool_)), r"midrise is bool \(1, 6\)"),
    "midrise of 8 bits": (
        lambda: edit_weight(VIT, QKV, bits=np.full((6, 1), 8), midrise=np.ones((6, 1), np.bool_)),
        r"a mid-rise block is of 8 bits, allowed: 2\.\.7 bits",
    ),
    "midrise code even": (
        lambda: uniform_qkv(2, 0),
        r"block \(0, 0\) is an even code, allowed: odd codes -3\.\.3",
    ),
    "midrise code out of range": (
        lambda: uniform_qkv(2, 5),
        r"block \(0, 0\) is codes 5\.\.5, allowed: odd codes -3\.\.3",
    ),
    "weight too wide": (
        lambda: edit_weight(VIT, QKV, codes=np.zeros((1, 65537), np.int8), bits=np.full((1, 1), 2)),
        "inputs is 65537",
    ),
    "constant NaN": (
        lambda: set_constant(VIT, "prefix", nan_at_zero(VIT.constants["prefix"])),
        "constant 'prefix': an element is nan",
    ),
    "constant dtype": (lambda: set_constant(VIT, "prefix", np.zeros(3)), "constant 'prefix' is float64"),
    "preprocess size": (lambda: edit_preprocess(VIT, size=(8, 8)), r"preprocess: size is \(8, 8\)"),
    "preprocess crop": (lambda: edit_preprocess(VIT, crop=0.0), "preprocess: crop is 0.0"),
    "interpolation": (lambda: edit_preprocess(VIT, interpolation="cubic"), "interpolation is 'cubic'"),
    "crop mode": (lambda: edit_preprocess(VIT, crop_mode="centre"), "crop_mode is 'centre', allowed: center, squash"),
    "mean of two": (lambda: edit_preprocess(VIT, mean=(0.5, 0.5)), "preprocess: mean is"),
    "std zero": (lambda: edit_preprocess(VIT, std=(0.0, 1.0, 1.0)), "preprocess: std is 0.0"),
    "labels": (lambda: edit_preprocess(VIT, labels=("cat", "dog")), "labels is 2, allowed: a tuple of 0 or 5 names"),
    "metadata": (lambda: replace(VIT, metadata={"a": 1}), "metadata 'a' is 1"),
    "not an op": (lambda: set_op(VIT, 3, "conv"), "op 3 is str, allowed: Quantize, "),
    "field type": (lambda: edit_op(VIT, p.Patchify, patch=4.0), "Patchify: patch is 4.0, allowed: int"),
    "unknown buffer": (lambda: edit_op(VIT, p.Gelu, input="nowhere"), "Gelu 'blocks.0.mlp.gelu': buffer is 'nowhere'"),
    "read before written": (
        lambda: edit_op(VIT, p.Tokens, input="blocks.1.mlp.fc2"),
        "Tokens 'tokens': input is 'blocks.1.mlp.fc2', allowed: a buffer that an earlier op",
    ),
    "written twice": (
        lambda: set_op(VIT, first(VIT, p.Gelu), *[VIT.ops[first(VIT, p.Gelu)]] * 2),
        "output is 'blocks.0.mlp.gelu', allowed: a buffer that nothing has written yet",
    ),
    "op missing": (lambda: set_op(VIT, first(VIT, p.Gelu)), "input is 'blocks.0.mlp.gelu'"),
}


@pytest.mark.parametrize(("build", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_data_or_order_is_named(build, message):
    with pytest.raises(ProgramError, match=message) as caught:
        check(build())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
