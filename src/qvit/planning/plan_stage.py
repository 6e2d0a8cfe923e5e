"""The stage of a rehearsal: few images, small batches, from the recipe's own data where it is here, else generated.

How few follows from one forward pass of the float model and the seconds that a rehearsal may take: half of them for steps, a
quarter each for calibration and judgement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..data import DataError, open_eval, resolve_data
from ..data.shards import PREFIXES as STREAMS
from ..evaluation.evaluate import classifier_of
from ..pipeline.context import Context, open_recipe
from ..pipeline.float_model import create_float_model
from ..pipeline.run import check_before_training
from ..settings.recipe import FLOAT, Recipe
from ..system.processes import process_state
from .generated_images import generated_images
from .rehearsal import Stopwatch

STEP_OF_FORWARD = 8  # forward passes of the float model that a training step takes as long as, teacher included
JUDGEMENT_OF_FORWARD = 20  # the same of judging: float64 twice, the interpreter in numpy, the float model
STEPS_REHEARSED = 13
MOST_JUDGED = 256  # images that the rehearsal judges at most
PHOTOGRAPH = (500 / 224, 375 / 224)  # width and height of ImageNet's usual photograph, in sides of the network's input
EVALUATION_SHARE = 25  # training images per evaluation image where nobody says: ImageNet's


class PlanError(ValueError):
    """A recipe cannot be planned as asked; the text says what to give instead."""


@dataclass(frozen=True)
class Stage:
    """What a rehearsal works with.

    context       the recipe with small batches, its data open
    opening       seconds to open the real data and check the recipe; the check alone where images are generated
    train_images  of the real run
    eval_images   of the real run
    """

    context: Context
    opening: float
    train_images: int
    eval_images: int


@contextmanager
def stage(recipe: Recipe, images: int | None, eval_images: int | None, seconds: float) -> Iterator[Stage]:
    """Open what a rehearsal of about `seconds` per row works with; `recipe` without weights to load.

    images       training images of the real run where its data is not here, generated ones stand in for it; None: it is here
    eval_images  evaluation images of the real run, then; None: a 25th of `images`

    Raises PlanError where data that should be here cannot be opened or is a stream, and what the run would raise before training.
    """
    if images is None and eval_images is not None:
        raise PlanError(
            f"{eval_images} evaluation images are asked for without a number of training images; give --images N too, and "
            "generated ones are rehearsed, or leave --eval-images out: those of the recipe are counted"
        )
    forward, size = first_look(recipe)
    small, judged = shortened(recipe, forward, seconds)
    if images is None:
        yield _own_images(recipe, small, judged)
        return
    _check_fills_a_batch(images, recipe)
    enough = max(2 * small.data.batch_size, small.calibration)
    with generated_images(small, enough, judged, _photograph(recipe, size)) as generated:
        context = open_recipe(generated, quiet=True)
        watch = Stopwatch()
        _check(context)
        yield Stage(context, watch.lap(), images, eval_images or max(1, images // EVALUATION_SHARE))


def _own_images(recipe: Recipe, small: Recipe, judged: int) -> Stage:
    if recipe.data.dataset.startswith(STREAMS):
        raise PlanError(
            f"{recipe.data.dataset} is a stream, which is read from end to end, and a rehearsal takes few images; give --images N, "
            "how many training images it has, and generated ones are rehearsed"
        )
    watch = Stopwatch()
    try:
        context = open_recipe(small, quiet=True, max_eval_images=judged)
        eval_images = len(open_eval(context.data).dataset)  # type: ignore[arg-type]
    except DataError as error:
        raise PlanError(
            f"{error}; to plan before the data is here, give --images N: how many training images there will be"
        ) from error
    _check_fills_a_batch(context.splits.train_images, recipe)
    _check(context)
    return Stage(context, watch.lap(), context.splits.train_images, eval_images)


def _check_fills_a_batch(images: int, recipe: Recipe) -> None:
    if images < recipe.data.batch_size:
        raise PlanError(
            f"{images} training images do not fill one batch of {recipe.data.batch_size}; give a smaller batch_size"
        )


def _check(context: Context) -> None:
    if context.recipe.method != FLOAT:
        check_before_training(context)


def first_look(recipe: Recipe) -> tuple[float, int]:
    """Seconds per image of a forward pass of the float model on this device, to size the rehearsal; side of its input."""
    model = create_float_model(recipe.model)
    size = resolve_data(recipe.data, model).image_size
    assert size is not None  # resolved
    classify = classifier_of(model.to(process_state().device))
    values = torch.zeros(2, 3, size, size)
    watch = Stopwatch()
    laps = []
    for _ in range(4):  # the first is slower, and other work on the machine must not shrink the rehearsal
        classify(values)
        laps.append(watch.lap())
    return min(laps) / len(values), size


def _photograph(recipe: Recipe, size: int) -> tuple[int, int]:
    """Size of an image to generate: as large as the network's input, or as ImageNet's photographs are beside it."""
    if recipe.data.train_crop != "resized":
        return size, size
    return round(PHOTOGRAPH[0] * size), round(PHOTOGRAPH[1] * size)


def shortened(recipe: Recipe, forward: float, seconds: float) -> tuple[Recipe, int]:
    """The recipe with batches and calibration images that a rehearsal of about `seconds` can afford, and images to judge.

    forward  seconds of a forward pass, per image
    """

    def affordable(share: float, forwards: float, most: int) -> int:
        return min(most, max(2, int(share * seconds / (forwards * forward))))

    step = affordable(0.5, STEPS_REHEARSED * STEP_OF_FORWARD, recipe.data.batch_size)
    calibration = affordable(0.25, 2, recipe.calibration)
    judged = affordable(0.25, JUDGEMENT_OF_FORWARD, MOST_JUDGED)
    eval_batch = min(recipe.data.eval_batch_size, max(calibration, judged))
    even = step - step % 2 if step > 1 else step  # mixup mixes pairs
    data = dataclasses.replace(recipe.data, batch_size=even, eval_batch_size=eval_batch)
    whole_batches = max(1, calibration // eval_batch) * eval_batch
    return dataclasses.replace(recipe, data=data, calibration=whole_batches), judged
