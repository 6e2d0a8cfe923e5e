"""Latency of the evidence: ratios by round, the engine's answers, and a race of toys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime
import toy_programs
from evidence_latency import answers, measure, race, ratios


def test_ratios_are_taken_round_by_round() -> None:
    slow = np.array([1.0, 3.0, 1.0])  # the machine was busy in the second round
    found = ratios({"float": 10 * slow, "row": np.array([2.0, 7.5, 1.0])}, "float")
    assert found == {"float": {"ms": 10.0, "times_float": 1.0}, "row": {"ms": 2.0, "times_float": 5.0}}


def test_answers_count_images_that_only_one_has_right() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    labels = torch.tensor([0, 1, 2, 2])
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    found = answers(lambda images: images, batches, np.array([True, False, True, True]))
    assert found == {"top1_engine": 75.0, "top1_interpreter": 75.0, "outcomes_that_differ": 2}
    with pytest.raises(ValueError, match=r"the engine saw 4 images and the kept result has 5; both take the whole"):
        answers(lambda images: images, batches, np.ones(5, bool))


def test_a_race_of_toys() -> None:
    engines = {bits: qvit_runtime.Engine(toy_programs.vit_program(bits=int(bits)), threads=1) for bits in "38"}
    found = race(engines, "float", nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)), rounds=2, calls=3)
    assert list(found) == ["float", "3", "8"]
    assert found["float"]["times_float"] == 1.0
    assert all(row["ms"] > 0 for row in found.values())


def test_without_a_program_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no ROW_s0/model.qvit; train a row first: python experiments"):
        measure(tmp_path)
