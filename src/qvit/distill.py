"""Distillation: learn from the float model's logits as well as from the labels.

    loss = (1 - weight) CE(student, target) + weight T^2 KL(softmax(teacher / T) || softmax(student / T))

`CachedTeacher` keeps the teacher's logits on disk. Augmentation is a function of (seed, epoch, image), so the batch of a
step is the same in every run with the same data settings and seed, and the step's number is all the key that a cache
needs; a second run (another method, another budget) then trains without running the teacher at all.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (B, classes), mean over the batch."""
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """Logits of a float model for a batch; the model stays in eval mode and gets no gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """(B, 3, H, W) -> (B, classes); `step` is ignored here."""
        return self.model(images)


class CachedTeacher(Teacher):
    """A teacher whose logits of every step are kept in a file of float16 rows, filled as steps are first met.

    folder  where the cache lies; its name carries a fingerprint of `key`, which must hold all that decides a batch
    steps, batch, classes  shape of the cache
    """

    def __init__(
        self, model: nn.Module, folder: Path, key: dict[str, Any], steps: int, batch: int, classes: int
    ) -> None:
        super().__init__(model)
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"teacher-{name}.npy"
        shape = (steps, batch, classes)
        if path.exists():
            self.rows = np.load(path, mmap_mode="r+", allow_pickle=False)
            if self.rows.shape != shape:
                raise ValueError(f"{path} has shape {self.rows.shape}, this run needs {shape}; delete the file")
        else:
            self.rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            self.rows[:] = np.nan

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """(B, 3, H, W) -> (B, classes), from the file when the step is there."""
        row = self.rows[step]
        if np.isnan(row).any():
            row[:] = self.model(images).float().cpu().numpy()
        return torch.from_numpy(np.asarray(row, np.float32)).to(images.device)
