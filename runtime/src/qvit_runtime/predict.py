"""predict: images in, the most probable classes out; a bad image is an answer too, and stops nobody.

Sources are image files, folders (every JPEG, PNG and WebP file below them, in sorted order) and "-", one image from
standard input. Images are answered one by one, as they come: memory does not grow with their number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import program as p
from .preprocess import SUFFIXES, ImageError, image_mode, load_image, preprocess

Execute = Callable[[np.ndarray], np.ndarray]  # float32 (batch, channels, height, width) -> float32 (batch, classes)

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Guess:
    """One class of an answer; `label` is empty where the program has no labels."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What is known about one image: guesses, the most probable first, or the error, which names the file."""

    file: str
    guesses: tuple[Guess, ...] = ()
    error: str = ""


def predict(program: p.Program, execute: Execute, sources: Iterable[str], top: int = 5) -> Iterator[Answer]:
    """Answer every image of the sources; `execute` runs the program.

    Raises ImageError before the first of them where the program takes no image files, see `image_mode`.
    """
    image_mode(program.preprocess)
    for file in find_images(sources):
        try:
            if os.path.isdir(file):
                raise ImageError(f"{file}: a folder without JPEG, PNG or WebP files")
            image = load_image(sys.stdin.buffer if file == STANDARD_INPUT else file)
            pixels = preprocess(image, program.preprocess)
            yield Answer(file, rank(execute(pixels[None])[0], program.preprocess.labels, top))
        except (ImageError, FloatingPointError) as error:
            text = str(error)
            yield Answer(file, error=text if text.startswith(file) else f"{file}: {text}")


def find_images(sources: Iterable[str]) -> Iterator[str]:
    """Names of image files; a folder without any is passed on, to be answered with an error."""
    for source in sources:
        if source == STANDARD_INPUT or not os.path.isdir(source):
            yield source
            continue
        files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        yield from (str(path) for path in files)
        if not files:
            yield source


def rank(logits: np.ndarray, labels: tuple[str, ...], top: int) -> tuple[Guess, ...]:
    """The `top` most probable classes of (classes,) logits; equal ones in order of their index."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the output of the network is not finite")
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(int(i), labels[i] if labels else "", float(probabilities[i])) for i in order)
