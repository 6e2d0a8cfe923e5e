"""Convergence: every number by hand on a run of two groups, the verdicts, and the section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from evidence_convergence import Convergence, convergence, keep_scales, read_trajectory
from evidence_trajectories import FIGURE, middle_block, section
from toy_evidence import write_lines, write_logs

BITS = {0: [4, 4], 30: [5, 4], 90: [5, 3], 310: [4, 3], 380: [4, 2]}  # steps; the group of block 0 goes to and fro
LOCK = (400, [3, 2])
FALLING = {step: 2 - step / 400 + 0.01 * (step // 20 % 2) for step in range(20, 601, 20)}


def keeping_the_range(step: int) -> list[float]:
    """Scales that halve with every bit gained, at once."""
    widths = [line for at, line in {**BITS, LOCK[0]: LOCK[1]}.items() if at <= step][-1]
    return [-float(width) for width in widths]


def measured(
    folder: Path, scales: dict[int, list[float]] | None = None, losses: dict[int, float] = FALLING
) -> Convergence:
    switched = {step: keeping_the_range(step) for step in range(100, 601, 100)}
    write_logs(folder, BITS, LOCK, scales or switched, losses)
    return convergence(read_trajectory(folder))


def test_flips_by_hand(tmp_path: Path) -> None:
    found = measured(tmp_path)
    per_flip = 100 * 100 / (2 * 100)  # one of two groups, in 100 steps
    assert found.flip_rates == pytest.approx((2 * per_flip, 0, 0, 2 * per_flip))
    assert found.reversed_share == 0.5  # 4, 5, 4 is undone; 4, 3, 2 is not; what the lock does is no flip
    assert (found.lock, found.groups) == (400, 2)


def test_a_scale_that_follows_its_width_and_one_that_does_not(tmp_path: Path) -> None:
    follows = measured(tmp_path / "follows")
    assert follows.per_bit == pytest.approx(-1)
    assert follows.moved_after == follows.moved_at_rest == 0
    late = {step: [-0.25 * (step >= 500), 0.125 * (step >= 200)] for step in range(100, 601, 100)}
    stays = measured(tmp_path / "stays", late)
    assert stays.per_bit == pytest.approx(0)
    # group 0 flips in (300, 400] and moves in the interval after; group 1 moves in (100, 200], without a flip since step 100
    assert stays.moved_after == pytest.approx(0.25 / 2)
    assert stays.moved_at_rest == 0


def test_losses_by_hand(tmp_path: Path) -> None:
    losses = {
        step: float(step in (40, 320, 400)) for step in range(20, 601, 20)
    }  # dearer right after three of the flips
    found = measured(tmp_path, losses=losses)
    assert found.loss_change is not None
    assert found.loss_change[0] == pytest.approx(2 / 5 - 1 / 5)  # steps 320 to 400, and 20 to 100
    assert found.loss_at_flips is not None
    assert found.loss_at_flips[0] == pytest.approx((1 + 0 + 1 + 1) / 4 - (-1 - 1) / 15)
    assert found.loss_at_lock is not None
    assert found.loss_at_lock[0] == pytest.approx(-2 / 5)


def test_verdicts(tmp_path: Path) -> None:
    assert measured(tmp_path / "a").verdict == "oscillates"
    rising = {step: step / 400 + 0.01 * (step // 20 % 2) for step in FALLING}
    assert measured(tmp_path / "b", losses=rising).verdict == "diverges"
    write_logs(tmp_path / "c", {0: [5, 5], 350: [4, 5], 360: [4, 4]}, LOCK, {100: [0, 0]}, FALLING)
    assert convergence(read_trajectory(tmp_path / "c")).verdict == "drifts"
    write_logs(tmp_path / "d", {0: [5, 5], 50: [4, 5], 60: [5, 4]}, LOCK, {100: [0, 0]}, FALLING)
    settled = convergence(read_trajectory(tmp_path / "d"))
    assert (settled.verdict, settled.reversed_share, settled.per_bit) == ("settles", None, None)
    with (tmp_path / "d" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 71, "rolled_back_from": 90, "rolled_back_to": 70, "rate_factor": 0.5}\n')
    assert convergence(read_trajectory(tmp_path / "d")).verdict == "diverges"
    write_logs(tmp_path / "e", {0: [4, 4], 30: [5, 4]}, (176, [5, 4]), {100: [0, 0]}, rising)
    assert convergence(read_trajectory(tmp_path / "e")).verdict == "too short to say"


def test_groups_with_a_scale_per_channel(tmp_path: Path) -> None:
    write_logs(tmp_path, {0: [4, 4]}, LOCK, {100: [0.0, 0.0]}, FALLING)
    line = {"step": 100, "log2_scale": {"blocks.0.mlp.fc1.weight": [1.0, 2.0], "blocks.1.mlp.fc1.weight": [3.0, 5.0]}}
    write_lines(tmp_path / "scales.jsonl", [line])
    np.testing.assert_allclose(read_trajectory(tmp_path).log2_scale, [[1.5, 4.0]])
    kept = tmp_path / "kept"
    kept.mkdir()
    keep_scales(tmp_path, kept)
    for log in ("bits.jsonl", "metrics.jsonl"):
        (kept / log).write_text((tmp_path / log).read_text())
    np.testing.assert_allclose(read_trajectory(kept).log2_scale, [[1.5, 4.0]])
    kept_line = json.loads((kept / "scales.jsonl").read_text())
    assert kept_line["log2_scale"] == {"blocks.0.mlp.fc1.weight": [1.5], "blocks.1.mlp.fc1.weight": [4.0]}


def test_a_run_without_a_lock_is_refused(tmp_path: Path) -> None:
    write_logs(tmp_path, {0: [4, 4]}, LOCK, {}, FALLING)
    write_lines(tmp_path / "bits.jsonl", [{"step": 0, "locked": False, "bits": {}}])
    with pytest.raises(ValueError, match=r"has no locked line: the run is not finished, or learned no bits"):
        read_trajectory(tmp_path)


def test_the_section_has_a_line_and_a_row_of_panels_per_run(tmp_path: Path) -> None:
    kept, docs = tmp_path / "kept", tmp_path / "docs"
    docs.mkdir()
    assert list(section(kept, docs)) == []
    assert not (docs / FIGURE).exists()
    measured(kept / "headwise_3bit_s0")
    measured(kept / "single_scale_s0")
    text = "\n".join(section(kept, docs))
    assert "| learned, head-wise | 400 | 100.0, 0.0, 0.0, 100.0 | 50 % | -1.00 | 0.00; 0.00 |" in text
    assert "| one scale for all bit-widths of a group, and so a zero level everywhere | 400 |" in text
    assert text.count("| oscillates |") == 2
    drawn = (docs / FIGURE).read_text()
    assert "one scale for all bit-widths" in drawn
    rules = [element for element in ElementTree.fromstring(drawn).iter() if element.get("class") == "quiet dash"]
    assert len(rules) == 4  # the lock, in two panels of two runs
    list(section(kept, docs))
    assert (docs / FIGURE).read_text() == drawn


def test_the_middle_block() -> None:
    deit = tuple(f"blocks.{b}.attn.{name}" for b in range(12) for name in "qk")
    assert [deit[place] for place in middle_block(deit)] == ["blocks.6.attn.q", "blocks.6.attn.k"]
    swin = (
        "layers.0.blocks.0.attn.q",
        "layers.0.blocks.1.attn.q",
        "layers.1.downsample.reduction.weight",
        "layers.1.blocks.0.attn.q",
    )
    assert middle_block(swin) == [1]
