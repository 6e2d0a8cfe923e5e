"""prove: what is integer-only, what is not and why, how wide the integers are; and `inspect --integers`, which shows it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qvit_runtime import integer_ops as i
from qvit_runtime import program as p
from qvit_runtime import save
from qvit_runtime.cli import main
from qvit_runtime.integer_only import CODES, NotIntegerOnly, Width, prove, widest
from qvit_runtime.interpreter import trace
from toy_edits import first, set_op
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program, regions_program
from toy_programs import vit_program

VIT = integer_vit_program(seed=3)


@pytest.mark.parametrize("build", [integer_vit_program, integer_swin_program], ids=lambda build: build.__name__)
def test_integer_programs_are_proved(build):
    program = build()
    widths = prove(program)
    written = [op.output for op in program.ops if not isinstance(op, i.Dequantize)]
    assert [width.buffer for width in widths if width.quantity == CODES] == written
    assert all(width.worst < 2 ** (width.bits - 1) for width in widths if width.quantity != CODES)
    assert all(width.register <= 32 for width in widths if "sum of products" in width.quantity)


def test_widths_are_the_bits_of_the_codes_and_hold_every_code():
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    live = trace(VIT, images)
    for width in prove(VIT):
        if width.quantity == CODES:
            grid = VIT.buffers[width.buffer].grid
            assert grid is not None
            assert width.bits == max(grid.bits)
            assert np.abs(live[width.buffer].astype(np.int64)).max() <= width.worst


def test_a_width_by_hand():
    """head: 16 inputs of 8 bits; the rows of its weight decide, and the bias of each row."""
    weight, bias = VIT.weights["head.weight"].codes.astype(int), VIT.integers["head.bias"]
    worst = max(int(128 * abs(row).sum() + abs(int(b))) for row, b in zip(weight, bias, strict=True))
    bits = next(n for n in range(2, 64) if worst <= 2 ** (n - 1) - 1)
    assert Width("LinearAccumulate", "head", "sum of products + bias", worst, bits) in prove(VIT)


@pytest.mark.parametrize(("bits", "register"), [(8, 8), (9, 16), (16, 16), (17, 32), (32, 32), (33, 64), (63, 64)])
def test_register(bits, register):
    assert Width("", "", "", 0, bits).register == register


NOT = {
    "float": (vit_program, "op 2 Linear 'patch_embed.proj' writes float values"),
    "log2": (log2_program, "op 2 Linear 'patch_embed.proj' writes float values"),
    "regions": (regions_program, "op 2 Linear 'patch_embed.proj' writes float values"),
    "a float op at the end": (
        lambda: replace(
            VIT, ops=(*VIT.ops, p.Gelu("logits", "again")), buffers=VIT.buffers | {"again": p.Buffer("again", (5,))}
        ),
        "op 50 Gelu 'again' reads float values",
    ),
    "out and in again": (
        lambda: set_op(
            replace(VIT, buffers=VIT.buffers | {"out": p.Buffer("out", VIT.buffers["norm"].shape)}),
            first(VIT, p.SelectToken),
            i.Dequantize("norm", "out"),
            p.Quantize("out", "class_token"),
        ),
        "Quantize 'class_token' reads float values, allowed: Quantize of the image first, Dequantize last",
    ),
}


@pytest.mark.parametrize(("build", "message"), NOT.values(), ids=NOT)
def test_the_first_float_op_is_named(build, message):
    with pytest.raises(NotIntegerOnly, match=message):
        prove(build())


def test_widest_keeps_one_of_each_kind_and_counts_them():
    widths = [
        Width("Requantize", "a", CODES, 128, 8),
        Width("Requantize", "a", "x m + half", 5000, 14),
        Width("Requantize", "b", CODES, 2**15, 16),
        Width("Requantize", "b", "x m + half", 4999, 14),
    ]
    assert widest(widths) == [(widths[2], 2), (widths[1], 2)]


def test_inspect_prints_the_verdict_and_the_table(tmp_path, capsys):
    path = str(tmp_path / "toy.qvit")
    save(VIT, path)
    assert main(["inspect", path, "--integers"]) == 0
    verdict, empty, head, *rows = capsys.readouterr().out.splitlines()
    assert verdict == f"{path}: integer-only from the first Quantize to the last Dequantize"
    assert empty == ""
    assert head.split() == ["op", "count", "what", "worst", "case", "bits", "register"]
    assert "Requantize" in "".join(rows)
    squares = next(row for row in rows if "sum of squares" in row)
    assert squares.split()[-3:] == [f"{16 * (2**16 - 1) ** 2:,}", "37", "64"]


def test_inspect_says_why_not(tmp_path, capsys):
    path = str(tmp_path / "toy.qvit")
    save(log2_program(), path)
    assert main(["inspect", path, "--integers"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: not integer-only: op 2 Linear 'patch_embed.proj' writes float values, allowed: ")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("build", "proved"), [(integer_vit_program, True), (log2_program, False)], ids=["proved", "refused"]
)
def test_inspect_as_json(tmp_path, capsys, build, proved):
    path = str(tmp_path / "toy.qvit")
    save(build(), path)
    assert main(["inspect", path, "--integers", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["integer_only"] is proved
    assert (len(result["widths"]) > 100) is proved
    assert proved == ("not" not in result["verdict"])
    for width in result["widths"]:
        assert width.keys() == {"op", "buffer", "quantity", "worst", "bits", "register"}
