"""A folder of hostile files: each is refused with one line that names the file and the field, and with nothing else."""

from __future__ import annotations

import json

import pytest

import golden_integer_program as integers
import golden_midrise_program as midrise
from golden_program import GOLDEN
from hostile import join, put, raw, split, with_header, with_program, with_tensor
from qvit_runtime import ArtifactError, load

GOOD = GOLDEN.read_bytes()
HEADER, PROGRAM, DATA = split(GOOD)
WITH_INTEGERS, WITH_MIDRISE = integers.GOLDEN.read_bytes(), midrise.GOLDEN.read_bytes()
SHIFT = "integers/tokens.shift"
CODES = "weight/head.weight/codes"
QKV = "blocks.0.attn.qkv.weight"
SCALE = "weight/head.weight/scale"
PATCH = "weight/patch_embed.proj.weight/codes"
PATCH_SIZE = HEADER[PATCH]["shape"][0]
DEEP = b'{"a":' * 200_000


def program(*path, value):
    return with_program(GOOD, lambda table: put(table, *path, value=value))


def op(index, **changes):
    return with_program(GOOD, lambda table: table["ops"][index].update(changes))


def step_of(table, kind):
    return next(step for step, op in enumerate(table["ops"]) if op["op"] == kind)


def midrise_of(weight, value):
    return with_program(WITH_MIDRISE, lambda table: put(table, "weights", weight, "midrise", value=value))


def rename(header):
    header["constant/other"] = header.pop("constant/norm.bias")


def swap_offsets(header):
    """Two tensors of one size trade places: the container stays consistent, the F32 data lands in the U8 tensor."""
    first, second = header[CODES], header[SCALE]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]


FILES = {
    "empty": (b"", "the file has 0 bytes"),
    "seven bytes": (GOOD[:7], "the file has 7 bytes"),
    "header cut": (GOOD[:500], "header length is"),
    "data cut": (GOOD[:-1], "data has"),
    "one byte more": (GOOD + b"\0", "data has"),
    "huge header length": (b"\xff" * 8 + GOOD[8:], "header length is 18446744073709551615"),
    "text file": (b"this is no artifact at all, only some text\n" * 40, "header length is"),
    "header is not JSON": (raw(b"{nonsense", DATA), "header is not JSON"),
    "header is not UTF-8": (raw(b'{"\xff":1}', DATA), "header is not JSON"),
    "header is a list": (raw(b"[]", DATA), "header is a list"),
    "header is deep": (raw(DEEP, DATA), "header is not JSON"),
    "header has a giant number": (raw(b'{"a":' + b"9" * 5000 + b"}", DATA), "header is not JSON"),
    "no metadata": (with_header(GOOD, lambda h: h.pop("__metadata__")), "__metadata__ is not"),
    "metadata of numbers": (with_header(GOOD, lambda h: put(h, "__metadata__", "version", value=1)), "__metadata__ is"),
    "another format": (with_header(GOOD, lambda h: put(h, "__metadata__", "format", value="pt")), "format is 'pt'"),
    "version of the future": (
        with_header(GOOD, lambda h: put(h, "__metadata__", "version", value="4")),
        "version is '4', allowed: '1', '2', '3'",
    ),
    "version too high for its program": (
        with_header(GOOD, lambda h: put(h, "__metadata__", "version", value="2")),
        "version is '2', allowed: '1', the lowest that its program needs",
    ),
    "no version": (with_header(GOOD, lambda h: h["__metadata__"].pop("version")), "__metadata__ has no key 'version'"),
    "unknown metadata": (with_header(GOOD, lambda h: put(h, "__metadata__", "x", value="")), "the unknown key 'x'"),
    "duplicate tensor": (
        raw(json.dumps(HEADER).replace('"constant/norm.bias"', '"constant/norm.weight"').encode(), DATA),
        "header: key 'constant/norm.weight' appears twice",
    ),
    "tensor renamed": (with_header(GOOD, rename), "tensor 'constant/norm.bias' is missing"),
    "tensor without dtype": (with_header(GOOD, lambda h: h[CODES].pop("dtype")), "allowed: dtype, shape and data_off"),
    "dtype unknown": (with_tensor(GOOD, CODES, dtype="I64"), "dtype is 'I64', allowed: F32, I32, U8"),
    "dtype is a list": (with_tensor(GOOD, CODES, dtype=[]), r"dtype is '\[\]'"),
    "dtype swapped": (with_tensor(GOOD, "constant/norm.bias", dtype="U8", shape=[32]), "dtype is U8, allowed: F32"),
    "codes as floats": (
        with_tensor(GOOD, PATCH, dtype="F32", shape=[PATCH_SIZE // 4]),
        "proj.weight/codes' is float32",
    ),
    "shape negative": (with_tensor(GOOD, CODES, shape=[-3, -4]), r"shape is \[-3, -4\]"),
    "shape of floats": (with_tensor(GOOD, CODES, shape=[12.0]), "shape is"),
    "shape of bools": (with_tensor(GOOD, CODES, shape=[True, 12]), "shape is"),
    "shape huge": (with_tensor(GOOD, CODES, shape=[1 << 31, 1 << 31]), "allowed: at most 4294967296 bytes"),
    "shape huge and empty": (with_tensor(GOOD, CODES, shape=[0] + [1 << 32] * 3), "allowed: at most 4294967296 bytes"),
    "shape does not fit": (with_tensor(GOOD, CODES, shape=[13]), "bytes, allowed: 13"),
    "rank 9": (with_tensor(GOOD, CODES, shape=[1] * 9), "allowed: at most 8 sizes"),
    "offsets backwards": (with_tensor(GOOD, CODES, data_offsets=[12, 0]), "data_offsets span -12"),
    "offsets beyond the end": (
        with_tensor(GOOD, CODES, data_offsets=[1 << 30, (1 << 30) + 12]),
        "data_offsets span|data_offsets begin",
    ),
    "offsets overlap": (with_tensor(GOOD, SCALE, data_offsets=[0, 4]), "data_offsets begin at"),
    "offsets are not a pair": (with_tensor(GOOD, CODES, data_offsets=[0]), "allowed: .begin, end"),
    "tensors swapped": (with_header(GOOD, swap_offsets), "data_offsets span"),
    "program is not JSON": (join(HEADER, "{", DATA), "program is not JSON"),
    "program is deep": (join(HEADER, DEEP.decode(), DATA), "program is not JSON"),
    "program with half a surrogate": (program("name", value="\ud800"), "program name is"),
    "program with NaN": (program("preprocess", "crop", value=float("nan")), "program: a number is NaN"),
    "program with infinity": (program("preprocess", "crop", value=float("inf")), "program: a number is Infinity"),
    "program is a number": (join(HEADER, "7", DATA), "program is a int"),
    "program key missing": (with_program(GOOD, lambda t: t.pop("ops") and None), "program has no key 'ops'"),
    "program key unknown": (program("extra", value=1), "program has the unknown key 'extra'"),
    "program key twice": (
        join(HEADER, json.dumps(PROGRAM).replace('"input": "image"', '"input": "image", "input": "image"', 1), DATA),
        "program: key 'input' appears twice",
    ),
    "name is a number": (program("name", value=3), "program name is 3"),
    "input unknown": (program("input", value="x"), "input is 'x'"),
    "ops is an object": (program("ops", value={}), "program: ops is a dict"),
    "op unknown": (op(0, op="Eval"), "op 0 is 'Eval', allowed: Quantize"),
    "op is a list": (op(0, op=[]), "op 0 is"),
    "op key missing": (with_program(GOOD, lambda t: t["ops"][0].pop("input") and None), "op 0 Quantize has no key"),
    "op key unknown": (op(0, shell="rm"), "op 0 Quantize has the unknown key 'shell'"),
    "op input is a list": (op(0, input=["image"]), "op 0 Quantize: input is"),
    "op patch huge": (op(1, patch=1 << 40), "patch is 1099511627776"),
    "op order": (program("ops", value=PROGRAM["ops"][::-1]), "allowed: a buffer that an earlier op has written"),
    "no ops": (program("ops", value=[]), "is written by no op"),
    "buffer huge": (program("buffers", "tokens", "shape", value=[1 << 40, 8]), "a size is 1099511627776"),
    "buffer product huge": (program("buffers", "tokens", "shape", value=[1 << 26] * 4), "at most 134217728 elements"),
    "buffer shape is a text": (program("buffers", "tokens", "shape", value="88"), "buffer 'tokens': shape is a str"),
    "buffer key unknown": (program("buffers", "tokens", "dtype", value="f4"), "buffer 'tokens' has the unknown key"),
    "grid scale zero": (program("buffers", "image_codes", "grid", "scale", value=[0.0]), "grid.scale: an element is 0"),
    "grid scale too exact": (program("buffers", "image_codes", "grid", "scale", value=[0.1]), "is not a float32"),
    "grid scale overflows": (program("buffers", "image_codes", "grid", "scale", value=[1e300]), "scale is"),
    "grid scale is a text": (program("buffers", "image_codes", "grid", "scale", value=["1"]), "scale is"),
    "grid bits 64": (program("buffers", "image_codes", "grid", "bits", value=[64]), "grid.bits is 64"),
    "grid bits empty": (program("buffers", "image_codes", "grid", "bits", value=[]), "number of groups is 0"),
    "grid signed is 1": (program("buffers", "image_codes", "grid", "signed", value=1), "signed is a int"),
    "grid axis is a text": (program("buffers", "image_codes", "grid", "axis", value="0"), "grid.axis is '0'"),
    "weight shape huge": (program("weights", "head.weight", "shape", value=[1 << 26, 1 << 26]), "allowed: uint8"),
    "weight shape other": (program("weights", "head.weight", "shape", value=[3, 9]), "head.weight/codes' is uint8"),
    "weight shape zero": (program("weights", "head.weight", "shape", value=[0, 8]), "shape is"),
    "weight bits 1": (program("weights", "head.weight", "bits", value=[[1]]), "bits has the row"),
    "weight bits ragged": (program("weights", "head.weight", "bits", value=[[2], [2, 2], [2]]), "bits has the row"),
    "weight bits empty": (program("weights", "head.weight", "bits", value=[]), "bits has 0 x 0 groups"),
    "weight groups": (program("weights", "head.weight", "bits", value=[[2], [2]]), "bits has 2 x 1 groups"),
    "constants unhashable": (program("constants", value=[["a"]]), "constants is not a list of different names"),
    "constants twice": (program("constants", value=PROGRAM["constants"] * 2), "constants is not a list of different"),
    "constant missing": (program("constants", value=PROGRAM["constants"][1:]), "is not used by the program"),
    "labels too many": (program("preprocess", "labels", value=["a"] * 4), "labels is 4"),
    "label is a number": (program("preprocess", "labels", value=[1, 2, 3]), "a label is 1"),
    "label with a newline": (program("preprocess", "labels", value=["a\nb", "c", "d"]), "a label is"),
    "size of floats": (program("preprocess", "size", value=[8.0, 8.0]), "preprocess: size is 8.0"),
    "interpolation is a list": (program("preprocess", "interpolation", value=[]), "interpolation is"),
    "version too low for its program": (
        with_header(WITH_INTEGERS, lambda h: put(h, "__metadata__", "version", value="1")),
        "version is '1', allowed: '2', the lowest that its program needs",
    ),
    "integers as floats": (with_tensor(WITH_INTEGERS, SHIFT, dtype="F32"), "dtype is F32, allowed: I32"),
    "integers without their tensor": (
        with_program(WITH_INTEGERS, lambda t: t["integers"].append("more")),
        "tensor 'integers/more' is missing",
    ),
    "integers without their name": (
        with_program(WITH_INTEGERS, lambda t: t["integers"].remove("tokens.shift")),
        "tensor 'integers/tokens.shift' is not used by the program",
    ),
    "integers twice": (
        with_program(WITH_INTEGERS, lambda t: t["integers"].append("tokens.shift")),
        "integers is not a list of different names",
    ),
    "integers are an object": (
        with_program(WITH_INTEGERS, lambda t: put(t, "integers", value={})),
        "integers is a dict",
    ),
    "unit is astronomic": (
        with_program(WITH_INTEGERS, lambda t: put(t, "ops", step_of(t, "Shiftmax"), "unit", value=10**4000)),
        "unit is 1000000",
    ),
    "fraction is astronomic": (
        with_program(WITH_INTEGERS, lambda t: put(t, "ops", step_of(t, "ShiftGelu"), "fraction", value=1 << 40)),
        r"fraction is 1099511627776, allowed: 1\.\.30",
    ),
    "mid-rise weights in version 1": (
        with_header(WITH_MIDRISE, lambda h: put(h, "__metadata__", "version", value="1")),
        "version is '1', allowed: '3', the lowest that its program needs",
    ),
    "midrise of numbers": (midrise_of(QKV, [[1], [0], [1], [0], [0], [0]]), "midrise is .*, allowed: rows of true and"),
    "midrise is a bool": (midrise_of(QKV, True), "midrise is a bool, allowed: list"),
    "midrise without rows": (midrise_of(QKV, [True] * 6), "midrise is .*, allowed: rows of true and false, as many"),
    "midrise of another shape": (
        midrise_of(QKV, [[True] * 6]),
        "midrise is .*, allowed: rows of true and false, as many",
    ),
    "midrise nowhere": (
        midrise_of(QKV, [[False]] * 6),
        "midrise is true nowhere, allowed: at 2..7 bits, or no such key",
    ),
    "midrise at 8 bits": (midrise_of(QKV, [[True]] * 6), "midrise is true at 8 bits, allowed: at 2..7 bits"),
    "program metadata of numbers": (program("metadata", value={"a": 1}), "metadata 'a' is 1"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=[name.replace(" ", "_") for name in FILES])
def test_a_hostile_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "hostile.qvit"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 600


def poisoned(name: str, data: bytes) -> bytes:
    """Bytes put over the front of one tensor's data."""
    begin = HEADER[name]["data_offsets"][0]
    return raw(json.dumps(HEADER).encode(), DATA[:begin] + data + DATA[begin + len(data) :])


NAN, INFINITY, NEGATIVE = b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xbf"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (SCALE, NAN, "weight 'head.weight': scale: an element is nan"),
        (SCALE, INFINITY, "scale: an element is inf"),
        (SCALE, NEGATIVE, "scale: an element is -1.0"),
        ("constant/norm.bias", NAN, "constant 'norm.bias': an element is nan"),
        ("constant/norm.bias", INFINITY, "constant 'norm.bias': an element is inf"),
    ],
)
def test_poisoned_numbers_are_refused(tmp_path, name, data, message):
    path = tmp_path / "poisoned.qvit"
    path.write_bytes(poisoned(name, data))
    with pytest.raises(ArtifactError, match=message):
        load(path)
