"""plan(): before a night is spent on a recipe: how long it takes, how much memory and disk it wants, what it writes.

    seconds = opening the data + for each row
              calibration + training + evaluations while training + freeze + judgement

A row is what leaves a run directory: the float model trained first, the uniform baseline, the recipe itself. Its parts are
timed by a `rehearsal` in this process, on the recipe's own images where they are here, and multiplied:

    training  = (probes + warm-up) x probed + (lock step - probes) x plain + (steps - lock step) x locked + lock
    the rest  = seconds of an image x images

A batch that is too slow to rehearse is rehearsed smaller, and its steps are taken to grow in proportion; what belongs to a step
and not to its images (optimizer, quantized weights, the moves of the bits) is then overestimated.

On N devices, each as fast as this one, training, evaluations and judgement are taken to cost 1 / N: no time is lost between
them. Memory is that of one device with its share of the batch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from ..bits.budget import Budget, reachable, resolve_budget
from ..methods import METHODS, learns_bits
from ..pipeline.rows import calibration_batches, float_row, uniform_row
from ..settings.recipe import FLOAT, Recipe
from ..system.processes import process_state
from .plan_stage import PlanError, Stage, stage
from .rehearsal import Rehearsal, rehearse
from .training_schedule import Schedule, schedule_of, seconds_of_training


@dataclass(frozen=True)
class RowPlan:
    """One row: what happens, what was measured, seconds and bytes on disk by part; `folder` is inside the run directory."""

    folder: str
    schedule: Schedule | None
    rehearsal: Rehearsal
    seconds: dict[str, float]
    disk: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe.

    rehearsed_batch  images of a measured step; batch_size is the recipe's
    generated        the images were generated, because the recipe's are not here
    opening          seconds to open the data and check the recipe
    budget           as a number, also where the recipe has it in uniform bits; None without one
    reach            least and most that the bits can cost, in the unit of the budget; None without one
    """

    model: str
    parameters: int
    train_images: int
    eval_images: int
    batch_size: int
    rehearsed_batch: int
    generated: bool
    device: str
    threads: int
    devices: int
    opening: float
    budget: Budget | None
    reach: tuple[float, float] | None
    rows: tuple[RowPlan, ...]

    @property
    def seconds(self) -> float:
        """Of the whole recipe."""
        return self.opening + sum(sum(row.seconds.values()) for row in self.rows)

    @property
    def disk(self) -> int:
        """Bytes of everything that the recipe leaves behind."""
        return sum(sum(row.disk.values()) for row in self.rows)


def plan(
    recipe: Recipe,
    devices: int = 1,
    images: int | None = None,
    eval_images: int | None = None,
    seconds: float = 60.0,
) -> Plan:
    """Rehearse a recipe and project the run.

    devices      that share every batch
    images       training images of the real run, where its data is not here: generated ones stand in for it
    eval_images  evaluation images of the real run; default: a 25th of `images`
    seconds      that the rehearsal of a row may take, roughly

    Raises PlanError for devices that do not divide the batch and where the data cannot be opened or is a stream, and what the
    run would raise before training, such as BudgetError.
    """
    if devices < 1 or recipe.data.batch_size % devices:
        raise PlanError(
            f"{devices} devices cannot share batches of {recipe.data.batch_size} images; give a number that divides them"
        )
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=False, checkpoint=""))
    with stage(recipe, images, eval_images, seconds) as staged:
        context = staged.context
        device_batch = recipe.data.batch_size // devices
        rows = tuple(
            _plan_row(row, small, folder, rehearse(context, small, device_batch), staged, devices)
            for (folder, row), (_, small) in zip(rows_of(recipe), rows_of(context.recipe), strict=True)
        )
        budget, reach = _budget(recipe, context.model)
        return Plan(
            model=recipe.model.name,
            parameters=sum(parameter.numel() for parameter in context.model.parameters()),
            train_images=staged.train_images,
            eval_images=staged.eval_images,
            batch_size=recipe.data.batch_size,
            rehearsed_batch=context.data.batch_size,
            generated=images is not None,
            device=str(process_state().device),
            threads=torch.get_num_threads(),
            devices=devices,
            opening=staged.opening,
            budget=budget,
            reach=reach,
            rows=rows,
        )


def _budget(recipe: Recipe, model: nn.Module) -> tuple[Budget | None, tuple[float, float] | None]:
    """(budget as a number, what its bits can cost) of a recipe with a budget"""
    if recipe.budget is None or recipe.method == FLOAT:
        return None, None
    quantized = METHODS[recipe.method].quantize(model, recipe.quantize)
    budget = resolve_budget(recipe.budget, quantized)
    return budget, reachable(quantized, budget)


def rows_of(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """(folder, recipe) of every row that a recipe trains, in its order."""
    rows = []
    if recipe.method != FLOAT and recipe.train_float is not None:
        rows.append(("float", float_row(recipe, recipe.train_float)))
    if recipe.uniform_baseline:
        rows.append((f"uniform{recipe.uniform_baseline}", uniform_row(recipe)))
    return [*rows, (".", recipe)]


def _plan_row(row: Recipe, small: Recipe, folder: str, found: Rehearsal, staged: Stage, devices: int) -> RowPlan:
    """Multiply what was `found` of the rehearsed row `small` to the real `row`."""
    seconds: dict[str, float] = {}
    disk = {"model.safetensors": found.weights}
    schedule = None
    if row.method != FLOAT:
        disk["model.qvit"] = found.artifact
        seconds["calibration"] = found.calibration * _calibration_images(row) / _calibration_images(small)
    if found.steps is not None:
        fit, batch = row.fit, row.data.batch_size
        learned = row.method != FLOAT and learns_bits(row.quantize)
        schedule = schedule_of(fit, learned, staged.train_images // batch)
        larger = batch / small.data.batch_size
        seconds["training"] = seconds_of_training(schedule, found.steps, larger, fit.accumulate) / devices
        if fit.activations_first:
            seconds["weights fitted"] = found.weights_fit
        if fit.features is not None:
            seconds["principal components"] = fit.features.batches * batch * found.forward / devices
        seconds["evaluations while training"] = schedule.evaluations * staged.eval_images * found.evaluation / devices
        disk["checkpoints"] = fit.keep_checkpoints * sum(found.checkpoint.values())
        if fit.cache_teacher and fit.distillation and folder == ".":  # the uniform baseline reads the same file
            classes = staged.context.data.num_classes or 0
            disk["teacher cache"] = 2 * round(fit.epochs * staged.train_images) * (classes + 1)
    if row.method != FLOAT:
        seconds["freeze"] = found.freeze
        seconds["judgement"] = staged.eval_images * found.judgement / devices
    return RowPlan(folder, schedule, found, seconds, disk)


def _calibration_images(recipe: Recipe) -> int:
    return calibration_batches(recipe, recipe.data) * recipe.data.eval_batch_size
