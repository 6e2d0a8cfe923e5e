"""Distillation: the loss by hand, a teacher that stays as it is, and a cache that changes nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian
from qvit.system.storage import StorageError
from qvit.training.distill import CachedTeacher, Teacher, distillation_loss, fingerprint, hard_distillation_loss
from qvit.training.fit_config import FitConfig
from toy_models import images, vit
from toy_training import QUICK, toy_model, toy_run


def test_loss_by_hand() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0), expected)
    assert distillation_loss(teacher, teacher, 3.0).abs() < 1e-6


def test_hard_distillation_is_the_teachers_class() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    expected = -student.log_softmax(1)[torch.arange(6), teacher.argmax(1)].mean()
    torch.testing.assert_close(hard_distillation_loss(student, teacher), expected)
    assert torch.equal(hard_distillation_loss(student, 9 * teacher), hard_distillation_loss(student, teacher))


def test_the_teacher_stays_trainable() -> None:
    """The same float model is quantized again for the next row of a table; frozen parameters would not train there."""
    model = vit(depth=1)
    logits = Teacher(model).logits(images(model), 0)
    assert not logits.requires_grad
    assert all(p.requires_grad for p in model.parameters())


class Counting(nn.Module):
    """Counts forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x)


def test_cache_keeps_float16_rows_and_saves_the_work(tmp_path: Path) -> None:
    model = Counting(vit(depth=1))
    batch = images(model.model, 4)
    cache = CachedTeacher(model, tmp_path, {"seed": 0}, steps=3, batch=4, classes=5)
    first, again = cache.logits(batch, 1), cache.logits(batch, 1)
    reopened = CachedTeacher(model, tmp_path, {"seed": 0}, steps=3, batch=4, classes=5).logits(batch, 1)
    assert model.calls == 1
    assert torch.equal(first, again)
    assert torch.equal(first, reopened)
    torch.testing.assert_close(first, model.model(batch).detach(), rtol=1e-3, atol=1e-3)
    cache.logits(batch, 0)
    assert model.calls == 2
    CachedTeacher(model, tmp_path, {"seed": 1}, steps=3, batch=4, classes=5).logits(batch, 1)
    assert model.calls == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_batch_behind_the_end_is_asked_of_the_teacher(tmp_path: Path) -> None:
    """Probes before the first step look at more batches than a run of a part of an epoch has."""
    model = Counting(vit(depth=1))
    batch = images(model.model, 4)
    cache = CachedTeacher(model, tmp_path, {}, steps=1, batch=4, classes=5)
    assert torch.equal(cache.logits(batch, 1), model.model(batch))
    assert not cache.rows.any()


def test_a_row_that_was_being_written_is_made_again(tmp_path: Path) -> None:
    model = Counting(vit(depth=1))
    batch = images(model.model, 4)
    cache = CachedTeacher(model, tmp_path, {}, steps=1, batch=4, classes=5)
    whole = cache.logits(batch, 0)
    cache.rows[0, 2:] = 0  # a kill after half of the row
    assert torch.equal(cache.logits(batch, 0), whole)
    assert model.calls == 2
    cache.rows.flush()
    assert np.load(next(tmp_path.iterdir())).shape == (1, 4, 6)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room")
def test_a_cache_has_its_room_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up behind a memory map would kill the process."""
    CachedTeacher(vit(depth=1), tmp_path / "a", {}, steps=300, batch=4, classes=5)
    (file,) = (tmp_path / "a").iterdir()
    assert file.stat().st_blocks * 512 >= file.stat().st_size > 300 * 4 * 6 * 2

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"teacher-\w+.partial: No space left on device; 14,528 bytes were wanted"):
        CachedTeacher(vit(depth=1), tmp_path / "b", {}, steps=300, batch=4, classes=5)
    assert list((tmp_path / "b").iterdir()) == []


def test_training_with_a_cached_teacher_is_the_same(tmp_path: Path) -> None:
    config = FitConfig(epochs=1, distillation=1.0, allocation=QUICK, learning_rate=1e-4)
    ends = []
    for cached in (False, True):
        teacher = Counting(vit(depth=1, seed=3))
        used = CachedTeacher(teacher, tmp_path, {}, steps=6, batch=16, classes=5) if cached else teacher
        model, _ = toy_run(config, teacher=used, evaluation=None)
        ends.append(model.state_dict()["blocks.0.mlp.fc1.weight"])
        assert teacher.calls == (6 if cached else 7)  # the probe before step 0 sees the batch of step 0
    start = toy_model().state_dict()["blocks.0.mlp.fc1.weight"]
    assert (ends[0] - ends[1]).norm() < 0.05 * (ends[0] - start).norm()


def test_every_batch_has_the_logits_of_its_own_images(tmp_path: Path) -> None:
    """Of 6 batches an epoch trains on 4: the 6 that the warm-up may have are not all numbered as training counts them."""
    apart: list[float] = []

    class Compared(CachedTeacher):
        def logits(self, images: Tensor, step: int) -> Tensor:
            found = super().logits(images, step)
            with torch.no_grad():
                apart.append(float((found - self.model(images)).abs().max()))
            return found

    config = FitConfig(epochs=2, accumulate=4, distillation=0.5, allocation=Lagrangian(every=2, warm_up=6))
    teacher = Compared(vit(depth=1, seed=3), tmp_path, {}, steps=12, batch=16, classes=5)
    toy_run(config, teacher=teacher, evaluation=None)
    assert len(apart) == 4 + 8
    assert max(apart) < 0.01


def test_fingerprint_sees_every_weight() -> None:
    model = vit(depth=1)
    before = fingerprint(model)
    assert fingerprint(vit(depth=1)) == before
    with torch.no_grad():
        model.get_parameter("head.bias")[0] += 1e-3
    assert fingerprint(model) != before
