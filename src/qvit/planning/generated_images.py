"""Generated images in the place of a data set: for what can be tried, or timed, before the data is there.

They are smooth noise in JPEG files, in two classes, so that reading, decoding and augmenting them is the work that
photographs of the same size make; what is learned from them is nothing.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..settings.recipe import Recipe

CLASSES = ("a", "b")


@contextmanager
def generated_images(recipe: Recipe, train: int, evaluation: int, size: tuple[int, int]) -> Iterator[Recipe]:
    """The recipe with a folder of generated images in the place of its data, and without weights to load.

    train, evaluation  images of each split, at least 2
    size               (width, height) of an image
    """
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for split, count in (("train", train), ("validation", evaluation)):
            for number in range(count):
                target = Path(folder, split, CLASSES[number % 2])
                target.mkdir(parents=True, exist_ok=True)
                _smooth_noise(generator, size).save(target / f"{number}.jpg", quality=90)
        names = Path(folder, "classes.txt")  # the model has more outputs
        names.write_text("\n".join(CLASSES))
        data = dataclasses.replace(
            recipe.data,
            dataset="folder",
            root=folder,
            train_split="train",
            eval_split="validation",
            class_map=str(names),
        )
        model = dataclasses.replace(recipe.model, pretrained=False, checkpoint="")
        yield dataclasses.replace(recipe, data=data, model=model)


def _smooth_noise(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    coarse = generator.integers(0, 256, (-(-size[1] // 8), -(-size[0] // 8), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
