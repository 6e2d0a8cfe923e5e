"""--dry-run: try a recipe in seconds, also where its images or its weights are not.

The model is built, with the weights that are here, else random ones. The recipe's images are opened where they are here;
either way a tiny folder of generated ones stands in for them and goes through the recipe's own augmentation, the recipe's
method quantizes and calibrates, the budget is checked against the model's reach, two optimizer steps are made (where there is
training), the bits are locked and the result is frozen. What would fail after hours of a real run for a reason that has
nothing to do with the images fails here; `not_looked_at` says what a dry run did without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import nn

import qvit_runtime

from ..bits.budget import Budget, check_budget, reachable
from ..bits.init_bits import apply_init_bits
from ..data import DataConfig, open_data, preprocess_of, resolve_data
from ..data.classes import read_class_map
from ..data.shards import is_address
from ..methods import METHODS
from ..pipeline.context import Context, open_recipe
from ..settings.recipe import FLOAT, LOCAL, ModelConfig, Recipe
from ..training.fit import fit
from ..training.fit_config import FitConfig
from ..training.guide import Guide
from .generated_images import generated_images

BATCH = 4  # images per step; recipes ask for hundreds
IMAGE_SIZE = (48, 40)
MISSING, FETCHED = "not found", "fetched by the run"


def dry_run(recipe: Recipe, steps: int = 2) -> list[str]:
    """Try a recipe: model, its images if they are here, a tiny image folder through its pipeline, budget, two steps.

    Returns lines that say what was checked. Raises what the real run would raise, but for what `not_looked_at` names.
    """
    read_class_map(recipe.data.class_map)
    with generated_images(recipe, 4 * BATCH, 4 * BATCH, IMAGE_SIZE) as small:
        data = dataclasses.replace(small.data, batch_size=BATCH, eval_batch_size=BATCH, workers=0, cache_decoded=False)
        return list(_dry(recipe, dataclasses.replace(small, data=data, model=_with_weights_here(recipe.model)), steps))


def not_looked_at(recipe: Recipe) -> list[str]:
    """What the recipe names and a dry run does without, each with the reason; empty where everything is here."""
    data, model = recipe.data, recipe.model
    where = data.dataset if data.dataset.startswith(("hfds/", "hfids/")) else data.root
    found = [f"images of {where} ({reason})"] if (reason := _why_no_images(data)) else []
    if model.checkpoint and not Path(model.checkpoint).exists():
        found.append(f"checkpoint {model.checkpoint} ({MISSING})")
    if model.pretrained and not model.name.startswith(LOCAL):
        found.append(f"weights of {model.name} ({FETCHED})")
    return found


def _why_no_images(data: DataConfig) -> str:
    """Why the images of a config cannot be opened here, "" where they can."""
    kind, _, name = data.dataset.partition("/")
    if kind in ("hfds", "hfids"):
        if Path(name).is_dir():
            return ""
        return MISSING if Path(name).is_absolute() else FETCHED
    if kind == "wds" and is_address(data.root):
        return FETCHED
    return "" if kind == "digits" or Path(data.root).is_dir() else MISSING


def _with_weights_here(model: ModelConfig) -> ModelConfig:
    """The model with its checkpoint, or the weights of its folder, if they are here, and random ones if not."""
    checkpoint = model.checkpoint if Path(model.checkpoint).exists() else ""
    pretrained = model.pretrained and model.name.startswith(LOCAL)
    return dataclasses.replace(model, checkpoint=checkpoint, pretrained=pretrained)


def _opened(recipe: Recipe, model: nn.Module) -> str:
    data = resolve_data(dataclasses.replace(recipe.data, workers=0, cache_decoded=False), model)
    splits = open_data(data, recipe.seed)
    judging = splits.eval_images or "an unknown number"  # of a stream
    return f"images: {splits.train_images} to train or calibrate on, {judging} to evaluate"


def _dry(whole: Recipe, recipe: Recipe, steps: int) -> Iterator[str]:
    """Lines of a dry run of `recipe`, which is the `whole` one on generated images."""
    context = open_recipe(recipe, quiet=True)
    parameters = sum(p.numel() for p in context.model.parameters())
    yield f"model: {recipe.model.name}, {parameters / 1e6:.2f} M parameters"
    if not _why_no_images(whole.data):
        yield _opened(whole, context.model)
    images, labels = next(islice(context.splits.train, 1))
    yield f"data: batches of {tuple(images.shape)}, labels {tuple(labels.shape)}"
    model, guide = context.model, None
    method = None if recipe.method == FLOAT else METHODS[recipe.method]
    budget = None if method is None else recipe.budget
    if method is not None:
        if recipe.train_float is not None:
            yield f"float {_two_steps(context, model, recipe.train_float, steps)}"
        model = method.quantize(context.model, recipe.quantize)
        method.calibrate(model, recipe.quantize, context.splits.calibration, 1)
        budget = check_budget(model, budget)
        if recipe.init_bits:
            apply_init_bits(model, recipe.init_bits)
        yield f"calibration: {METHODS[recipe.method].label(recipe.quantize)}"
        guide = method.guide(model, recipe.quantize, context.model)
        if budget is not None:
            least, most = reachable(model, budget)
            reach = f"budget: {budget.limit:g} {budget.unit}; this model reaches {least:.6g} to {most:.6g}"
            yield f"{reach}; {budget.caveat}" if budget.caveat else reach
    if recipe.fit.epochs:
        yield _two_steps(context, model, recipe.fit, steps, budget, guide, bool(recipe.init_bits))
    if method is not None:
        program = method.freeze(
            model.eval(), budget, preprocess_of(context.data, context.splits.class_names), recipe.model.name
        )
        qvit_runtime.check(program)
        yield f"freeze: {len(program.ops)} operations"


def _two_steps(
    context: Context,
    model: nn.Module,
    config: FitConfig,
    steps: int,
    budget: Budget | None = None,
    guide: Guide | None = None,
    allocated: bool = False,
) -> str:
    """Train for `steps` steps of one short epoch, bits locked on the way; returns the line that says so."""
    config = dataclasses.replace(
        config,
        epochs=1.0,
        activations_first=min(config.activations_first, 0.25),
        lock_at=0.25 if config.cuda_graph else 0.5,  # passes are recorded in the first step with final bits
        accumulate=min(config.accumulate, 2),
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
        allocated=allocated,
        max_steps=steps,
        quiet=True,
    )
    return f"training: {min(steps, result.steps)} of {result.steps} steps done"
