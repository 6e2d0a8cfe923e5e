"""Cross entropy of the evidence: by hand, paired, and what the page says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime
import toy_programs
from evidence_found import losses_compared, read_rows
from evidence_losses import engine_of, losses
from evidence_report import write_document
from toy_evidence import first, write_result

EVEN = np.array([1.0, 2.0, 3.0, 4.0])


def test_losses_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    labels = torch.tensor([0, 2, 2])
    found = losses(nn.Identity(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    assert found == pytest.approx(-np.log([0.5, 0.1, 0.6]))


def test_a_program_answers_in_the_engine(tmp_path: Path) -> None:
    program = toy_programs.vit_program(bits=4)
    qvit_runtime.save(program, tmp_path / "model.qvit")
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    logits = engine_of(tmp_path / "model.qvit")(torch.from_numpy(images)).numpy()
    assert (logits == qvit_runtime.Engine(program, threads=1)(images)).all()


def test_differences_are_paired_by_seed_and_image(tmp_path: Path) -> None:
    for seed, gain in ((0, np.array([0.0, 1.0, 0.0, 1.0])), (1, np.array([1.0, 1.0, 1.0, 1.0]))):
        write_result(tmp_path, f"uniform_w3a3_s{seed}", first(50, 4), 0.45, EVEN)
        write_result(tmp_path, f"headwise_3bit_s{seed}", first(50, 4), 0.45, EVEN - gain)
    write_result(tmp_path, "headwise_3bit_s2", first(50, 4), 0.45, EVEN)
    write_result(tmp_path, "float_s0", first(50, 4), None)  # no losses kept
    rows = {found.row.name: found for found in read_rows(tmp_path)}
    found = losses_compared(rows["headwise_3bit"], rows["uniform_w3a3"])
    assert found is not None
    assert found.mean == pytest.approx(-0.75)
    assert found.over_seeds == pytest.approx(12.706 * 0.5 / np.sqrt(2) / np.sqrt(2))
    assert found.over_images == pytest.approx(1.96 * np.std([0.5, 1, 0.5, 1], ddof=1) / 2)
    assert losses_compared(rows["headwise_3bit"], rows["float"]) is None
    assert losses_compared(rows["headwise_3bit"], rows["swin_float"]) is None
    assert rows["float"].loss is None
    assert rows["uniform_w3a3"].loss == 2.5


def test_the_page_has_the_losses_that_are_kept(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(50, 4), 0.45, EVEN)
    write_result(tmp_path, "headwise_3bit_s0", first(75, 4), 0.45, EVEN - 0.5)
    write_result(tmp_path, "same_grids_w2a4_s0", first(50, 4), 0.44, EVEN - 0.25)
    write_result(tmp_path, "float_s0", first(100, 4), None, EVEN - 1)
    write_result(tmp_path, "no_refill_s0", first(50, 4), 0.45, EVEN)
    write_document(tmp_path, tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert "| uniform LSQ | 1 | 50.00 | 50.00 | 2.5000 | 0.4500 |" in text
    assert (
        "In cross entropy, where less is better: -0.5000 ± 0.0000 (images), not shown; float minus the uniform row "
        "-1.0000 ± 0.0000 (images); minus W2A4, same grids -0.2500 ± 0.0000 (images), not shown.\n" in text
    )
    assert "| the lock only lowers bits | 1 | 50.00 | -25.00 ± 49.00 (images) | +0.5000 ± 0.0000 (images) |" in text
