"""Distillation: learn from the float model's logits as well as from the labels.

    soft: loss = (1 - weight) CE(student, target) + weight T^2 KL(softmax(teacher / T) || softmax(student / T))
    hard: loss = (1 - weight) CE(student, target) + weight CE(student, argmax(teacher))

`CachedTeacher` keeps the teacher's logits on disk. Augmentation is a function of (seed, epoch, image), so the batch of a
step is the same in every run with the same data settings and seed, and the step's number is all the key that a cache
needs; a second run (another method, another budget) then trains without running the teacher at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.storage import explained


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (B, classes), mean over the batch."""
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of the student's logits (B, classes) against the classes that the teacher predicts."""
    return F.cross_entropy(student.float(), teacher.argmax(1))


class Teacher:
    """Logits of a float model for a batch, without gradients; the model is put in eval mode and stays trainable."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """(B, 3, H, W) -> (B, classes); `step` is ignored here."""
        return self.model(images)


class CachedTeacher(Teacher):
    """A teacher whose logits of every step are kept in a file of float16 rows, filled as steps are first met.

    A row is (batch, classes + 1); its last column turns from 0 to 1 when the row is complete, so a kill in the middle of
    a row, or of making the file, leaves nothing that could be taken for logits.

    folder  where the cache lies; its name carries a fingerprint of `key`, which must hold all that decides a batch and
            its logits: data settings, seed, the teacher's weights, the process
    steps, batch, classes  shape of the cache (in the fingerprint, too); steps counts batches

    Raises StorageError when the disk has no room for the whole of it.
    """

    def __init__(
        self, model: nn.Module, folder: Path, key: dict[str, Any], steps: int, batch: int, classes: int
    ) -> None:
        super().__init__(model)
        shape = (steps, batch, classes + 1)
        name = hashlib.sha256(json.dumps([key, shape], sort_keys=True).encode()).hexdigest()[:16]
        path = folder / f"teacher-{name}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape).flush()
            _reserve(partial)
            os.replace(partial, path)
        self.rows = np.load(path, mmap_mode="r+", allow_pickle=False)

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """(B, 3, H, W) -> (B, classes), from the file when the step is there."""
        if step >= len(self.rows):  # probes before the first step may be more batches than a short run has
            return super().logits(images, step)
        row = self.rows[step]
        if not row[:, -1].all():
            row[:, :-1] = self.model(images).float().cpu().numpy()
            row[:, -1] = 1
        return torch.from_numpy(np.asarray(row[:, :-1], np.float32)).to(images.device)


def _reserve(path: Path) -> None:
    """Give a sparse file its room: where a disk fills up behind a memory map, the process gets a SIGBUS and no error."""
    size = path.stat().st_size
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with explained(path, size), open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            path.unlink()
            raise


def fingerprint(model: nn.Module) -> str:
    """Hash of all weights of a model, for the key of a cache."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
