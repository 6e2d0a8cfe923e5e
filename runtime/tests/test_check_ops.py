"""Each op's own demands: one case per demand, named by the op it wounds."""

from __future__ import annotations

import numpy as np
import pytest

from qvit_runtime import program as p
from qvit_runtime.check import check
from qvit_runtime.check_data import ProgramError
from qvit_runtime.check_ops import CHECK
from qvit_runtime.interpreter import EXECUTE
from toy_edits import edit_buffer, edit_grid, edit_op, edit_weight, first, set_constant, set_op
from toy_programs import swin_program, vit_program

VIT = vit_program(distilled=True, layer_scale=True, seed=3)
SWIN = swin_program(seed=3)
F32 = np.float32
A = "blocks.0.attn"
S = "layers.0.blocks.1"


def test_every_op_of_the_interpreter_is_checked():
    assert CHECK.keys() == EXECUTE.keys()


def free_offset(program: p.Program, name: str) -> p.Program:
    """The same grid, unsigned and with an offset."""
    grid = program.buffers[name].grid
    assert grid is not None
    return edit_grid(program, name, signed=False, offset=np.full(grid.groups, 0.5, F32))


def one_more(program: p.Program, name: str, axis: int) -> p.Program:
    shape = list(program.buffers[name].shape)
    shape[axis] += 1
    return edit_buffer(program, name, shape=tuple(shape), grid=None)


FAULTS = {
    "quantize codes": (lambda: edit_op(VIT, p.Quantize, output="class_token"), "output 'class_token' is values"),
    "quantize shape": (lambda: edit_buffer(VIT, "image_codes", shape=(3, 16, 8)), "output 'image_codes' is"),
    "patchify values": (lambda: edit_op(VIT, p.Patchify, input="image"), "input 'image' is values, allowed: codes"),
    "patchify rank": (lambda: edit_buffer(VIT, "patches", shape=(4, 4, 2, 24)), "output 'patches' is"),
    "patchify patch": (lambda: edit_op(VIT, p.Patchify, patch=17), r"patch is 17, allowed: 1\.\.16"),
    "patchify patch zero": (lambda: edit_op(VIT, p.Patchify, patch=0), "patch is 0"),
    "patchify grid": (lambda: edit_grid(VIT, "patches", scale=np.ones(1, F32)), "grid of 'patches' is another one"),
    "patchify groups": (
        lambda: edit_grid(VIT, "image_codes", bits=(8,) * 3, scale=np.ones(3, F32), offset=np.zeros(3, F32)),
        "groups of 'image_codes' is 3",
    ),
    "linear values": (lambda: edit_op(VIT, p.Linear, input="image"), "input 'image' is values"),
    "linear weight": (lambda: edit_op(VIT, p.Linear, weight="w"), "weight is 'w', allowed: the name of a weight"),
    "linear bias": (lambda: edit_op(VIT, p.Linear, bias="b"), "bias is 'b', allowed: the name of a constant"),
    "linear bias shape": (
        lambda: set_constant(VIT, "patch_embed.proj.bias", np.zeros(15, F32)),
        r"bias 'patch_embed.proj.bias' is \(15,\), allowed: \(16,\)",
    ),
    "linear inner": (
        lambda: edit_weight(VIT, f"{A}.qkv.weight", codes=np.zeros((48, 15), np.int8)),
        "is 15, allowed: 16, as 'blocks.0.attn.codes' has",
    ),
    "linear output": (lambda: one_more(VIT, f"{A}.qkv", 1), r"output 'blocks.0.attn.qkv' is \(18, 49\)"),
    "linear group axis": (
        lambda: edit_grid(VIT, f"{A}.codes", bits=(4, 4), scale=np.ones(2, F32), offset=np.zeros(2, F32)),
        "groups of 'blocks.0.attn.codes' is 2 along axis 0, allowed: 1, or more along axis 1",
    ),
    "split part": (lambda: edit_op(VIT, p.SplitHeads, part=3), r"part is 3, allowed: 0\.\.2"),
    "split negative part": (lambda: edit_op(VIT, p.SplitHeads, part=-1), "part is -1"),
    "split parts": (lambda: edit_op(VIT, p.SplitHeads, parts=2), "2 parts x 2 heads x 8"),
    "split tokens": (lambda: one_more(VIT, f"{A}.q", 1), r"is \(2, 19, 8\), allowed: \(2, 18, 8\)"),
    "split rank": (lambda: edit_buffer(VIT, f"{A}.q", shape=(18, 16)), "allowed: rank 3"),
    "merge axis": (lambda: edit_grid(VIT, f"{A}.merged", axis=0), "grid axis of 'blocks.0.attn.merged' is 0"),
    "merge bits": (lambda: edit_grid(VIT, f"{A}.merged", bits=(2, 3)), "grid of 'blocks.0.attn.merged'"),
    "merge sign": (lambda: edit_grid(VIT, f"{A}.merged", signed=False), "grid of 'blocks.0.attn.merged'"),
    "merge to values": (lambda: edit_buffer(VIT, f"{A}.merged", grid=None), "output 'blocks.0.attn.merged' is values"),
    "merge groups not heads": (lambda: edit_grid(VIT, f"{A}.mixed_codes", axis=1), "along axis 1, allowed: 1, or"),
    "qk offset": (lambda: free_offset(VIT, f"{A}.q_codes"), r"offset of 'blocks.0.attn.q_codes' is \[0.5 0.5\]"),
    "qk axis": (lambda: edit_grid(VIT, f"{A}.k_codes", axis=2), "groups of 'blocks.0.attn.k_codes'"),
    "qk factor": (lambda: edit_op(VIT, p.QueryKey, factor=0.0), "factor is 0.0"),
    "qk factor NaN": (lambda: edit_op(VIT, p.QueryKey, factor=float("nan")), "factor is nan"),
    "qk shapes": (lambda: edit_op(VIT, p.QueryKey, key=f"{A}.codes"), "'blocks.0.attn.codes' is"),
    "qk output": (lambda: one_more(VIT, f"{A}.scores", 2), "output 'blocks.0.attn.scores' is"),
    "softmax codes": (lambda: edit_op(VIT, p.Softmax, input=f"{A}.q_codes"), "is codes, allowed: values"),
    "softmax bias": (lambda: edit_op(SWIN, p.Softmax, bias="prefix"), "bias is 'prefix'"),
    "softmax bias shape": (lambda: edit_op(VIT, p.Softmax, bias="norm.bias"), "bias 'norm.bias' is"),
    "softmax mask": (lambda: edit_op(VIT, p.Softmax, mask="norm.bias"), "rank 4 where there is a mask"),
    "softmax mask shape": (
        lambda: set_constant(SWIN, f"{S}.mask", np.zeros((3, 16, 16), F32)),
        r"mask 'layers.0.blocks.1.mask' is \(3, 16, 16\), allowed: \(4, 16, 16\)",
    ),
    "av offset": (lambda: free_offset(VIT, f"{A}.map"), "offset of 'blocks.0.attn.map'"),
    "av shapes": (lambda: edit_op(VIT, p.AttentionValue, value="image_codes"), "attention 'blocks.0.attn.map' is"),
    "layer norm eps": (lambda: edit_op(VIT, p.LayerNorm, eps=0.0), "eps is 0.0"),
    "layer norm weight": (lambda: edit_op(VIT, p.LayerNorm, weight="prefix"), "weight 'prefix' is"),
    "layer norm bias": (lambda: edit_op(VIT, p.LayerNorm, bias="prefix"), "bias 'prefix' is"),
    "gelu shape": (lambda: one_more(VIT, "blocks.0.mlp.gelu", 0), "output 'blocks.0.mlp.gelu' is"),
    "gelu codes": (lambda: edit_op(VIT, p.Gelu, input="blocks.0.mlp.codes"), "is codes, allowed: values"),
    "add shapes": (lambda: edit_op(VIT, p.Add, right=f"{A}.qkv"), "right 'blocks.0.attn.qkv' is"),
    "multiply factor": (lambda: edit_op(VIT, p.Multiply, factor="prefix"), "factor 'prefix' is"),
    "tokens prefix": (lambda: edit_op(VIT, p.Tokens, prefix="none"), "prefix is 'none'"),
    "tokens prefix shape": (lambda: edit_op(VIT, p.Tokens, prefix="norm.bias"), r"allowed: \(prefix tokens, 16\)"),
    "tokens position": (lambda: edit_op(VIT, p.Tokens, position="prefix"), "position 'prefix' is"),
    "tokens output": (lambda: one_more(VIT, "tokens", 0), r"output 'tokens' is \(19, 16\)"),
    "window": (lambda: edit_op(SWIN, p.WindowPartition, window=(6, 4)), r"window is \(6, 4\), allowed: .*5, 5"),
    "window zero": (lambda: edit_op(SWIN, p.WindowPartition, window=(0, 4)), r"window is \(0, 4\)"),
    "window not a pair": (lambda: edit_op(SWIN, p.WindowPartition, window=(4,)), r"window is \(4,\)"),
    "shift": (lambda: edit_op(SWIN, p.WindowPartition, shift=(4, 0)), r"shift is \(4, 0\)"),
    "negative shift": (lambda: edit_op(SWIN, p.WindowPartition, shift=(0, -1)), r"shift is \(0, -1\)"),
    "window offset": (lambda: free_offset(SWIN, f"{S}.attn.codes"), "offset of 'layers.0.blocks.1.attn.codes'"),
    "window output": (lambda: edit_buffer(SWIN, f"{S}.windows", shape=(4, 15, 16)), "output 'layers.0.blocks.1.wind"),
    "window rank": (
        lambda: set_op(VIT, first(VIT, p.Gelu), p.WindowPartition("tokens", "blocks.0.mlp.gelu", (1, 1), (0, 0))),
        r"input 'tokens' is \(18, 16\), allowed: rank 3",
    ),
    "merge window": (lambda: edit_op(SWIN, p.WindowMerge, window=(5, 5)), r"the windows of \(5, 5, 16\)"),
    "patch merge": (lambda: one_more(SWIN, "layers.1.downsample.merged", 0), "output 'layers.1.downsample.merged'"),
    "select": (lambda: edit_op(VIT, p.SelectToken, index=18), r"index is 18, allowed: 0\.\.17"),
    "select negative": (lambda: edit_op(VIT, p.SelectToken, index=-1), "index is -1"),
    "mean start": (lambda: edit_op(SWIN, p.MeanTokens, start=9), r"start is 9, allowed: 0\.\.8"),
}


@pytest.mark.parametrize(("build", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_an_op_is_named(build, message):
    with pytest.raises(ProgramError, match=message) as caught:
        check(build())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("columns", [1, 2, 4, 8, 16])
def test_column_groups_nest_in_the_groups_of_the_input(columns):
    """proj of a four-head stage: input groups 4, so 1, 2, 4, 8, ... column groups nest."""
    name = "layers.1.blocks.0.attn.proj.weight"
    bits = np.full((1, columns), 8)
    check(edit_weight(SWIN, name, bits=bits, scale=np.ones((1, columns), F32)))


def test_column_groups_that_do_not_nest_are_refused():
    program = vit_program(dim=36, heads=6, seed=1)
    name = "blocks.0.attn.proj.weight"
    wounded = edit_weight(program, name, bits=np.full((1, 4), 8), scale=np.ones((1, 4), F32))
    with pytest.raises(ProgramError, match="is 4 against 6 input groups"):
        check(wounded)
