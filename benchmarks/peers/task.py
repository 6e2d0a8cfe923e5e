"""Task: what all contenders are given, and the folder through which their processes share files.

    WORK/task.json                this task
    WORK/float.safetensors        weights of the float model
    WORK/images.npy               (images, 3, height, width) float32, normalised: what everybody answers
    WORK/calibration.npy          other images, for those who calibrate
    WORK/reference.npy            (images, classes): logits of the float model
    WORK/...                      what the contenders prepare from the weights
    WORK/answers/CONTENDER.npy    logits of a contender

Files that depend on the batch carry it in their name, so one folder serves several batch sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ISAS = ("native", "avx2")


@dataclass(frozen=True)
class Task:
    """One contest.

    model       a timm model that qvit supports
    batch       images per call
    threads     threads of each contender
    isa         "native", or "avx2" to forbid wider instructions wherever a contender lets itself be told
    work        folder of the files
    images      how many images everybody answers (a multiple of batch)
    calibration how many other images there are for calibration
    arguments   keyword arguments of timm.create_model, to make a toy of the model
    """

    model: str
    batch: int
    threads: int
    isa: str
    work: str
    images: int = 64
    calibration: int = 32
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.isa not in ISAS:
            raise ValueError(f"isa is {self.isa!r}; allowed: {', '.join(ISAS)}")
        if self.batch < 1 or self.threads < 1:
            raise ValueError(f"batch is {self.batch} and threads {self.threads}; both must be at least 1")
        if self.images < self.batch or self.images % self.batch:
            raise ValueError(f"images is {self.images}; it must be a multiple of the batch, {self.batch}")

    def path(self, name: str) -> Path:
        """A file of the folder."""
        return Path(self.work) / name

    def load(self, name: str) -> np.ndarray:
        """An array of the folder."""
        array: np.ndarray = np.load(self.path(name))
        return array

    def save(self) -> None:
        self.path("task.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(work: str) -> Task:
        """The task of a folder."""
        return Task(**json.loads((Path(work) / "task.json").read_text()))


Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Loaded:
    """A contender that is ready.

    run     images (batch, 3, height, width) float32 -> logits (batch, classes) float32
    files   what it was loaded from: the size that a user ships
    detail  what it says about itself, such as the kernels in use
    """

    run: Run
    files: tuple[Path, ...]
    detail: dict[str, str] = field(default_factory=dict)
