"""`save` and `load`: bit for bit, the golden file, the size that was promised, and what a failure leaves behind."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

import golden_integer_program as integers
import golden_midrise_program as midrise
from golden_program import GOLDEN, golden_program
from hostile import split
from qvit_runtime import ArtifactError, ProgramError, load, run, save
from qvit_runtime import program as p
from qvit_runtime.artifact import from_bytes, to_bytes, version_of
from qvit_runtime.integer_ops import IntegerOp
from toy_edits import edit_grid
from toy_integer_programs import integer_swin_program, integer_vit_program, log2_program, regions_program
from toy_programs import deit_tiny, swin_program, vit_program

VIT = vit_program(distilled=True, layer_scale=True, qk_norm=True, registers=1, seed=5)


def assert_same(left: p.Program, right: p.Program) -> None:
    """Equal in every field, arrays bit for bit and with their dtypes."""

    def arrays(program: p.Program) -> dict[str, np.ndarray]:
        found = program.constants | {f"integers {name}": array for name, array in program.integers.items()}
        for name, weight in program.weights.items():
            found |= {f"{name}.{part}": value for part, value in vars(weight).items()}
        for name, buffer in program.buffers.items():
            if buffer.grid is not None:
                found |= {f"{name}.scale": buffer.grid.scale, f"{name}.offset": buffer.grid.offset}
        return found

    def rest(program: p.Program) -> list:
        grids = [
            (b.name, b.shape, b.grid and (b.grid.bits, b.grid.signed, b.grid.axis)) for b in program.buffers.values()
        ]
        return [program.name, program.input, program.output, program.ops, grids, program.preprocess, program.metadata]

    assert rest(left) == rest(right)
    mine, other = arrays(left), arrays(right)
    assert list(mine) == list(other)
    for name in mine:
        assert mine[name].dtype == other[name].dtype, name
        assert np.array_equal(mine[name], other[name]), name


PROGRAMS = [
    VIT,
    swin_program(seed=5),
    vit_program(per_channel=True),
    vit_program(midrise=0.5, seed=6),
    integer_vit_program(),
    integer_swin_program(),
    log2_program(),
    regions_program(),
]
GOLDENS = [
    (golden_program(), GOLDEN),
    (integers.golden_integer_program(), integers.GOLDEN),
    (midrise.golden_midrise_program(), midrise.GOLDEN),
]
VERSION_NAMES = ["version 1", "version 2", "version 3"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_load_gives_back_what_was_saved(tmp_path, program):
    path = tmp_path / "toy.qvit"
    save(program, path)
    restored = load(path)
    assert_same(restored, program)
    images = np.random.default_rng(0).standard_normal((2, *program.buffers["image"].shape)).astype(np.float32)
    assert np.array_equal(run(restored, images), run(program, images))


def test_labels_and_metadata_travel(tmp_path):
    labels = ("tench", "Käfer", "猫", 'a "b" \\ c', "e")
    program = replace(VIT, preprocess=replace(VIT.preprocess, labels=labels), metadata={"recipe": "line\nline"})
    save(program, tmp_path / "toy.qvit")
    restored = load(tmp_path / "toy.qvit")
    assert restored.preprocess == program.preprocess
    assert restored.metadata == {"recipe": "line\nline"}


@pytest.mark.parametrize(("program", "path"), GOLDENS, ids=VERSION_NAMES)
def test_a_golden_file_is_what_save_writes(program, path):
    assert to_bytes(program) == path.read_bytes()


@pytest.mark.parametrize(("program", "path"), GOLDENS, ids=VERSION_NAMES)
def test_a_golden_file_is_readable(program, path):
    assert_same(load(path), program)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_a_file_has_the_lowest_version_of_its_program(program):
    """Old readers read what they know; `integers` and `midrise` are not even keys where there are none."""
    header, table, _ = split(to_bytes(program))
    odd = {name for name, weight in program.weights.items() if weight.midrise.any()}
    is_new = any(isinstance(op, IntegerOp) for op in program.ops)
    assert header["__metadata__"]["version"] == ("3" if odd else "2" if is_new else "1")
    assert ("integers" in table) == bool(program.integers)
    assert {name for name, entry in table["weights"].items() if "midrise" in entry} == odd


def test_mid_rise_weights_take_the_bytes_of_their_width():
    sizes = []
    for share in (0.0, 1.0):
        program = vit_program(bits=2, midrise=share)
        assert all(w.midrise.all() == bool(share) for w in program.weights.values() if w.bits.max() < 8)
        header, _, _ = split(to_bytes(program))
        sizes.append({name: entry["shape"] for name, entry in header.items() if name.endswith("/codes")})
    assert sizes[0] == sizes[1]


def test_heads_split_on_codes_are_version_2():
    """Without any integer-only op: an old reader knows SplitHeads on values only."""
    grid = p.Grid((8,), True, np.ones(1, np.float32), np.zeros(1, np.float32))
    program = replace(
        VIT,
        ops=(*VIT.ops, p.Quantize("blocks.0.attn.qkv", "codes"), p.SplitHeads("codes", "split", 0, 3)),
        buffers=VIT.buffers
        | {
            "codes": p.Buffer("codes", VIT.buffers["blocks.0.attn.qkv"].shape, grid),
            "split": p.Buffer("split", VIT.buffers["blocks.0.attn.q"].shape, grid),
        },
    )
    assert version_of(program) == "2"
    assert_same(from_bytes(to_bytes(program)), program)


def test_an_artifact_is_a_safetensors_file():
    tensors = safetensors.numpy.load(to_bytes(VIT))
    assert len(tensors) == len(VIT.constants) + 2 * len(VIT.weights)
    assert all(np.array_equal(tensors[f"constant/{name}"], array) for name, array in VIT.constants.items())
    program = integers.golden_integer_program()
    tensors = safetensors.numpy.load_file(integers.GOLDEN)
    assert len(tensors) == len(program.integers) + 2 * len(program.weights)
    assert all(np.array_equal(tensors[f"integers/{name}"], array) for name, array in program.integers.items())
    assert safetensors.numpy.load_file(GOLDEN).keys() == {f"constant/{n}" for n in golden_program().constants} | {
        f"weight/{n}/{part}" for n in golden_program().weights for part in ("codes", "scale")
    }


def test_a_file_that_the_safetensors_package_wrote_is_readable():
    """It orders metadata and alignment as it likes; the Program is the same."""
    with safetensors.safe_open(GOLDEN, "numpy") as file:
        metadata = file.metadata()
    content = safetensors.numpy.save(safetensors.numpy.load_file(GOLDEN), metadata)
    assert_same(from_bytes(content), golden_program())


def test_deit_tiny_at_three_bits_is_at_most_2_8_megabytes():
    size = len(to_bytes(deit_tiny(bits=3)))
    assert 2_400_000 < size <= 2_800_000


def test_a_program_that_is_not_well_formed_is_not_written(tmp_path):
    path = tmp_path / "toy.qvit"
    with pytest.raises(ProgramError, match=r"grid\.scale"):
        save(edit_grid(VIT, "image_codes", scale=np.zeros(1, np.float32)), path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "toy.qvit"
    save(VIT, path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(swin_program(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.qvit"]


def test_a_saved_file_has_ordinary_permissions(tmp_path):
    path, plain = tmp_path / "toy.qvit", tmp_path / "plain"
    save(VIT, path)
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "broken.qvit"
    path.write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"broken\.qvit: the file has 5 bytes, allowed: at least 8"):
        load(path)


def test_a_missing_file_is_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.qvit")
