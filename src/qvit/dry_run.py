"""--dry-run: try a recipe without its data and without its weights, in seconds.

The model is built (with random weights), a tiny folder of generated images stands in for the data set and goes through the
recipe's own augmentation, the recipe's method quantizes and calibrates, the budget is checked against the model's reach, two
optimizer steps are made (where there is training), the bits are locked and the result is frozen. What would fail after hours of a real run for a reason that has nothing to do with the
data fails here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

import qvit_runtime

from .budget import check_budget, reachable
from .data import preprocess_of
from .fit import fit
from .generated_images import generated_images
from .init_bits import apply_init_bits
from .methods import METHODS
from .pipeline import open_recipe
from .recipe import FLOAT, Recipe

BATCH = 4  # images per step; recipes ask for hundreds
IMAGE_SIZE = (48, 40)


def dry_run(recipe: Recipe, steps: int = 2) -> list[str]:
    """Try a recipe without its data and weights: model, a tiny image folder through its pipeline, budget, two steps.

    Returns lines that say what was checked. Raises what the real run would raise.
    """
    with generated_images(recipe, 4 * BATCH, 4 * BATCH, IMAGE_SIZE) as small:
        data = dataclasses.replace(small.data, batch_size=BATCH, eval_batch_size=BATCH, workers=0, cache_decoded=False)
        return list(_dry(dataclasses.replace(small, data=data), steps))


def _dry(recipe: Recipe, steps: int) -> Iterator[str]:
    context = open_recipe(recipe, quiet=True)
    parameters = sum(p.numel() for p in context.model.parameters())
    yield f"model: {recipe.model.name}, {parameters / 1e6:.2f} M parameters"
    images, labels = next(islice(context.splits.train, 1))
    yield f"data: batches of {tuple(images.shape)}, labels {tuple(labels.shape)}"
    model, guide = context.model, None
    method = None if recipe.method == FLOAT else METHODS[recipe.method]
    budget = None if method is None else recipe.budget
    if method is not None:
        model = method.quantize(context.model, recipe.quantize)
        method.calibrate(model, recipe.quantize, context.splits.calibration, 1)
        budget = check_budget(model, budget)
        if recipe.init_bits:
            apply_init_bits(model, recipe.init_bits)
        yield f"calibration: {METHODS[recipe.method].label(recipe.quantize)}"
        guide = method.guide(model, recipe.quantize, context.model)
        if budget is not None:
            least, most = reachable(model, budget)
            reach = f"budget: {budget.limit:g} {budget.unit}; this model reaches {least:.4f} to {most:.4f}"
            yield f"{reach}; {budget.caveat}" if budget.caveat else reach
    if recipe.fit.epochs:
        config = dataclasses.replace(
            recipe.fit,
            epochs=1.0,
            activations_first=min(recipe.fit.activations_first, 0.25),
            lock_at=0.5,
            accumulate=min(recipe.fit.accumulate, 2),
        )
        result = fit(
            model,
            context.splits.train,
            budget=budget,
            teacher=context.model if config.needs_teacher else None,
            guide=guide,
            config=config,
            order=context.splits.order,
            data=context.data,
            allocated=bool(recipe.init_bits),
            max_steps=steps,
            quiet=True,
        )
        yield f"training: {min(steps, result.steps)} of {result.steps} steps done"
    if method is not None:
        program = method.freeze(
            model.eval(), budget, preprocess_of(context.data, context.splits.class_names), recipe.model.name
        )
        qvit_runtime.check(program)
        yield f"freeze: {len(program.ops)} operations"
