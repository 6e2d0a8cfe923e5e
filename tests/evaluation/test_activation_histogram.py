"""activations.json against a count by hand, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import qvit_runtime
from qvit.evaluation.activation_histogram import (
    ACTIVATIONS,
    BINS,
    IMAGES,
    GroupCounts,
    activation_histograms,
    write_activations,
)
from qvit.evaluation.grid_histogram import BARS, bar_shares, codes_per_bar
from qvit.system.runs import Run
from qvit_runtime.integer_ops import QuantizeRegions
from qvit_runtime.program import MAX_BITS, Quantize
from toy_integer_programs import integer_vit_program, log2_program, regions_program
from toy_programs import swin_program, vit_program


def images(program: qvit_runtime.Program, count: int = 3) -> np.ndarray:
    shape = program.buffers[program.input].shape
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32) * 1.5


@pytest.mark.parametrize("make", [vit_program, swin_program], ids=["vit", "swin"])
def test_every_group_is_the_count_by_hand(make: Callable[[], qvit_runtime.Program]) -> None:
    program = make()
    batch = images(program)
    found = activation_histograms(program, batch)
    live = qvit_runtime.trace(program, batch)
    rounded = {op.output: op.input for op in program.ops if isinstance(op, Quantize)}
    assert found["images"] == 3
    assert found["tensors"].keys() == rounded.keys()
    some_are_clipped = False
    for name, source in rounded.items():
        grid = program.buffers[name].grid
        assert grid is not None
        assert found["tensors"][name]["signed"] == grid.signed
        groups = found["tensors"][name]["groups"]
        assert [group["bits"] for group in groups] == list(grid.bits)
        for number, group in enumerate(groups):
            size = live[name].shape[grid.axis + 1] // grid.groups
            chosen = range(number * size, (number + 1) * size)
            codes = live[name].take(chosen, grid.axis + 1)
            u = (live[source].take(chosen, grid.axis + 1) - grid.offset[number]) / grid.scale[number]
            low, high = int(grid.qmin[number]), int(grid.qmax[number])
            merged = codes_per_bar(group["bits"])
            assert len(group["codes"]) * merged == 2 ** group["bits"]
            for place, share in enumerate(group["codes"]):
                inside = (codes >= low + place * merged) & (codes < low + (place + 1) * merged)
                assert share == pytest.approx(inside.mean() * 100 / merged, abs=6e-4)
            beyond = [(np.rint(u) < low).mean() * 100, (np.rint(u) > high).mean() * 100]
            assert group["clipped"] == pytest.approx(beyond, abs=6e-4)
            assert group["seen"] == pytest.approx([u.min(), u.max()], abs=6e-4)
            for place, share in enumerate(group["values"]):
                left = group["low"] + place * group["width"]
                inside = (u >= left) & (u < left + group["width"])
                assert share * group["width"] == pytest.approx(inside.mean() * 100, abs=6e-4 * max(1, group["width"]))
            some_are_clipped |= sum(beyond) > 0
    assert some_are_clipped


def test_clipped_values_are_seen_beyond_the_grid() -> None:
    group = GroupCounts(bits=2, qmin=-2)  # codes -2, -1, 0, 1; the window is -4.5 .. 3.5
    steps = np.array([-9.0, -3.0, -2.5, -2.0, 0.0, 1.5, 1.6, 40.0], np.float32)
    group.add_values(steps)
    group.add_codes(np.clip(np.rint(steps), -2, 1).astype(np.int16))
    found = group.summary()
    assert found["codes"] == [50, 0, 12.5, 37.5]
    assert found["clipped"] == [25, 37.5]  # rint: -2.5 is -2 and inside, 1.5 is 2 and outside
    assert found["seen"] == [-9, 40]
    assert found["width"] == 8 / BINS
    assert found["low"] == -3
    assert sum(found["values"]) * found["width"] == 75  # -9 and 40 are outside of the window
    assert (found["values"][0], found["values"][-1]) == (12.5 / found["width"], 25 / found["width"])  # -3; 1.5 and 1.6


def test_bars_of_wide_grids_stand_for_several_codes() -> None:
    assert [codes_per_bar(bits) for bits in range(2, 9)] == [1, 1, 1, 1, 1, 2, 4]
    counts = np.arange(256)
    shares = bar_shares(counts)
    assert len(shares) == BARS
    assert shares.sum() * 4 == pytest.approx(100)
    assert shares[1] * 4 == pytest.approx(100 * (4 + 5 + 6 + 7) / counts.sum())


def test_the_file_holds_the_first_images_and_is_small(tmp_path: Path) -> None:
    program = vit_program()
    batch = torch.from_numpy(images(program, IMAGES + 8))
    loader = [(part, torch.zeros(len(part))) for part in batch.split(20)]
    write_activations(Run(tmp_path), program, loader)
    content = (tmp_path / ACTIVATIONS).read_text()
    assert json.loads(content) == activation_histograms(program, batch[:IMAGES].numpy())
    groups = [group for tensor in json.loads(content)["tensors"].values() for group in tensor["groups"]]
    assert len(content) < 1000 * len(groups)


@pytest.mark.parametrize("make", [integer_vit_program, log2_program, regions_program], ids=["ivit", "fqvit", "tsptq"])
def test_integer_programs_have_codes_and_no_wide_or_two_scaled_ones(make: Callable[[], qvit_runtime.Program]) -> None:
    program = make()
    found = activation_histograms(program, images(program))["tensors"]
    writers = {op.output: op for op in program.ops}
    assert found
    for name, tensor in found.items():
        grid = program.buffers[name].grid
        assert grid is not None
        assert max(grid.bits) <= MAX_BITS
        assert not isinstance(writers[name], QuantizeRegions)
        for group in tensor["groups"]:
            assert ("values" in group) == isinstance(writers[name], Quantize)
            assert sum(group["codes"]) * codes_per_bar(group["bits"]) == pytest.approx(100, abs=0.1)
    assert any("values" not in group for tensor in found.values() for group in tensor["groups"]) == (
        make is not regions_program
    )
