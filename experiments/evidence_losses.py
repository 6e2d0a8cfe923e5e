"""Cross entropy of the kept models on every validation image: what top-1 says, less coarsely.

Top-1 counts an image as right or wrong, so that a seed moves it by some tenths of a point; the cross entropy of an image,

    -log softmax(logits)[label]

is a real number, and its mean over the images moves much less for what a difference of two rows is. It is a second measure: what is asked
of the rows is asked in top-1. Programs answer in the native engine, float rows in PyTorch; kept as float16 (of a mean over 5,000 images
that is exact to 1e-5) in losses.safetensors beside result.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import qvit_runtime
from qvit.data import open_eval
from qvit.evaluation.evaluate import Classifier, classifier_of
from qvit.pipeline.finished import load_exact, read_recipe

NAME = "losses.safetensors"


def keep_losses(run: Path, folder: Path) -> None:
    """Write the losses of a finished run into the folder that keeps its results.

    Raises FileNotFoundError when the run's directory is gone.
    """
    recipe = read_recipe(run)
    program = folder / "model.qvit"
    classify = engine_of(program) if program.exists() else classifier_of(load_exact(run))
    save_file({"losses": losses(classify, open_eval(recipe.data)).astype(np.float16)}, folder / NAME)


def engine_of(program: Path) -> Classifier:
    """A program as a classifier."""
    engine = qvit_runtime.Engine(qvit_runtime.load(program), threads=1)
    return lambda images: torch.from_numpy(engine(images.numpy()))


def losses(classify: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Cross entropy of each image, float32 (images,)."""
    found = [cross_entropy(classify(images), labels, reduction="none") for images, labels in batches]
    return torch.cat(found).numpy()


def read_losses(folder: Path) -> np.ndarray | None:
    """The kept losses of a run, float32 (images,), or None."""
    file = folder / NAME
    return load_file(file)["losses"].astype(np.float32) if file.exists() else None
