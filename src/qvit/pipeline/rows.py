"""The rows of an experiment: each trains, or does not, and leaves a run directory that says what came out.

    train_float_row   the float model itself, in place: the later rows start from it, and it is their teacher
    quantized_row     quantize -> calibrate [-> init_bits] -> fit (budget) -> freeze -> judge

All are trained by the same loop. A finished row is recognised by its result.json and not trained again. What the outcome says
of itself is `outcome`'s business. With several processes files are the main process's, and the others get an empty result.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import qvit_runtime
from qvit_runtime.artifact import to_bytes

from ..bits.budget import Budget, check_budget
from ..bits.init_bits import apply_init_bits
from ..data import DataConfig, SeededStream, preprocess_of
from ..data.listing import listing
from ..data.shards import PREFIXES as STREAMS
from ..evaluation.activation_histogram import write_activations
from ..evaluation.outcome import NOT_QUANTIZED, Judged, cost_of_module, cost_of_program, outcome, save_predictions
from ..evaluation.shared_evaluation import evaluate_together, share_of
from ..methods import METHODS
from ..network.placement import format_placement
from ..settings.provenance import begin, check_recipe, versions
from ..settings.recipe import FLOAT, Recipe, RecipeError, recipe_to_values
from ..settings.values import to_values
from ..spec import FixedBits, LearnedBits, Spec
from ..system.processes import device_name, is_main, model_device, process_state
from ..system.progress import Counter
from ..system.runs import Run, load_tensors, save_tensors
from ..system.storage import write_atomic
from ..training.distill import CachedTeacher, Teacher, fingerprint
from ..training.fit import fit
from ..training.fit_config import FitConfig
from ..training.guide import Guide
from ..training.trainer import FitResult
from .context import Context
from .finished import read_result
from .float_model import architecture_of

SCHEMA = 1


def float_row(recipe: Recipe, config: FitConfig) -> Recipe:
    """The row of a recipe that trains its float model with `config`."""
    return dataclasses.replace(recipe, method=FLOAT, train_float=None, fit=config, budget=None, init_bits="")


def uniform_row(recipe: Recipe) -> Recipe:
    """The row of its `uniform_baseline`: that many bits everywhere but in first and last layers of fixed bits, same settings."""
    assert isinstance(recipe.quantize, Spec)  # checked by Recipe
    bits = FixedBits(recipe.uniform_baseline)
    edge = bits if isinstance(recipe.quantize.edge, LearnedBits) else recipe.quantize.edge
    spec = dataclasses.replace(recipe.quantize, weights=bits, activations=bits, edge=edge, overrides=())
    return dataclasses.replace(recipe, quantize=spec, budget=None, init_bits="")


def train_float_row(context: Context, folder: Path, config: FitConfig, resume: bool) -> dict[str, Any]:
    """Train the context's float model in place and write its run directory."""
    run = Run(folder)
    weights, done = folder / "model.safetensors", folder / "result.json"
    row = float_row(context.recipe, config)
    if done.exists() and weights.exists():
        finished = _finished(context, run, row)
        tensors, _ = load_tensors(weights)
        context.model.load_state_dict(tensors)
        return finished
    config = _begin(context, run, row, None)
    result = _fit(context, context.model, run, config, None, resume)
    context.model.eval()
    if not is_main():
        return {}
    _save_model(context.model, run, row)
    record = {
        **_common(context, row, FLOAT, result, 0.0),
        **NOT_QUANTIZED,
        "top1": result.top1,
        "top1_float": result.top1,
    }
    run.write_json("result.json", record)
    return record


def quantized_row(context: Context, folder: Path, row: Recipe, name: str, resume: bool) -> dict[str, Any]:
    """Quantize, calibrate, fit, freeze and evaluate one row: `row` is the context's recipe with this row's spec."""
    run = Run(folder)
    if (folder / "result.json").exists():
        return _finished(context, run, row)
    method = METHODS[row.method]
    model = method.quantize(context.model, row.quantize)
    budget = check_budget(model, row.budget)
    config = _begin(context, run, row, budget)
    if context.show_placement and is_main():
        print(format_placement(method.placement(model)), file=sys.stderr)
    batches = calibration_batches(row, context.data)
    seen = Counter(context.splits.calibration, batches, "calibrating: batch", context.quiet or not is_main())
    start = time.perf_counter()
    method.calibrate(model, row.quantize, seen, batches)
    calibration_seconds = time.perf_counter() - start
    if row.init_bits:
        apply_init_bits(model, row.init_bits)
    result = None
    if config.epochs:
        guide = method.guide(model, row.quantize, context.model)
        result = _fit(context, model, run, config, budget, resume, guide, allocated=bool(row.init_bits))
    model.eval()
    if is_main():
        _save_model(model, run, row)
    program = method.freeze(
        model, budget, preprocess_of(context.data, context.splits.class_names), row.model.name, {"row": name}
    )
    artifact = to_bytes(program)
    if is_main():
        write_atomic(folder / "model.qvit", artifact)
    judged = judge(context, method.exact(model), program)
    if not is_main():
        return {}
    save_predictions(run, judged)
    write_activations(run, program, context.splits.calibration)
    record = _common(context, row, name, result, calibration_seconds)
    price = cost_of_module(model) if method.quantizers else cost_of_program(program)
    record |= outcome(price, judged, budget, context.data.num_classes)
    record["artifact_kib"] = len(artifact) / 1024
    record["calibration_images"] = min(batches * context.data.eval_batch_size, context.splits.train_images)
    run.write_json("result.json", record)
    return record


def judge(context: Context, exact: nn.Module, program: qvit_runtime.Program) -> Judged:
    """Evaluate the module, its program and the float model on the evaluation split; all processes take part."""
    share = share_of(context.splits.eval)
    total = -(-context.splits.eval_images // (context.data.eval_batch_size * process_state().num_processes))

    def batches(what: str) -> Iterable[tuple[Tensor, Tensor]]:
        return Counter(share, total, f"evaluating the {what}: batch", context.quiet or not is_main())

    return Judged(
        module=evaluate_together(exact, batches("module")),
        program=evaluate_together(program, batches("program")),
        reference=evaluate_together(context.model, batches("float model")),
    )


def _fit(
    context: Context,
    model: nn.Module,
    run: Run,
    config: FitConfig,
    budget: Budget | None,
    resume: bool,
    guide: Guide | None = None,
    allocated: bool = False,
) -> FitResult:
    return fit(
        model,
        context.splits.train,
        budget=budget,
        teacher=teacher_of(context, config) if config.needs_teacher else None,
        guide=guide,
        config=config,
        order=context.splits.order,
        data=context.data,
        evaluation=context.splits.eval,
        allocated=allocated,
        run=run,
        resume=resume,
        on_log=context.page.update if context.page is not None else None,
        quiet=context.quiet,
    )


def teacher_of(context: Context, config: FitConfig) -> nn.Module | Teacher:
    """The float model; with config.cache_teacher, its logits from a file that all rows share."""
    if not config.cache_teacher:
        return context.model
    process = process_state()
    workers = context.data.workers if context.data.dataset.startswith(STREAMS) else 0  # only there they move the order
    data = dataclasses.replace(context.data, workers=workers, cache_decoded=False, eval_batch_size=1, max_corrupt=0)
    order, named = context.splits.order, context.recipe.model
    key = {
        "data": to_values(data),
        "images": context.splits.train_images,
        "listing": listing(data, order.shards if isinstance(order, SeededStream) else None),
        "model": [named.name, named.arguments],
        "seed": config.seed,
        "accumulate": config.accumulate,
        "weights": fingerprint(context.model),
        "process": [process.process_index, process.num_processes],
    }
    batches = round(config.epochs * context.splits.train_batches) + config.accumulate
    return CachedTeacher(
        context.model.to(process.device),
        context.cache,
        key,
        batches,
        context.data.batch_size // process.num_processes,
        context.data.num_classes or 0,
    )


def calibration_batches(recipe: Recipe, data: DataConfig) -> int:
    """Batches of the calibration loader that hold the recipe's number of calibration images."""
    return max(1, -(-recipe.calibration // data.eval_batch_size))


def _common(
    context: Context, row: Recipe, name: str, result: FitResult | None, calibration_seconds: float
) -> dict[str, Any]:
    """Fields that rows of every method have; `result` is None where nothing was trained."""
    return {
        "schema": SCHEMA,
        "model": row.model.name,
        **architecture_of(context.model, row.model),
        "method": name,
        "method_name": row.method,
        "seed": row.seed,
        "epochs": row.fit.epochs,
        "images": context.splits.eval_images,
        "skipped_images": context.splits.skips.images(),
        "rollbacks": 0 if result is None else result.rollbacks,
        "images_per_second": None if result is None else _images_per_second(context, row.fit, result),
        "calibration_seconds": calibration_seconds,
        "training_seconds": 0.0 if result is None else result.seconds,
        "device": device_name(model_device() if result is None else process_state().device),
        "versions": versions(),
    }


def _images_per_second(context: Context, config: FitConfig, result: FitResult) -> float | None:
    """Of the whole run; None where its time is not known."""
    images = result.steps * config.accumulate * context.data.batch_size
    return images / result.seconds if result.seconds else None


def _resolved(context: Context, row: Recipe) -> Recipe:
    """The row with its blanks filled, as it is written beside its results."""
    return dataclasses.replace(row, data=context.data, fit=dataclasses.replace(row.fit, seed=row.seed))


def _finished(context: Context, run: Run, row: Recipe) -> dict[str, Any]:
    """The result of a row that has one. Raises RecipeError where it is that of another recipe or of other images."""
    check_recipe(run, _resolved(context, row))
    result, images = read_result(run.folder), context.splits.eval_images
    if images and result["images"] != images:  # 0: a stream that does not say
        raise RecipeError(
            f"{run.folder} was judged on {result['images']} images, and now there are {images}; choose another --out, or "
            "evaluate on the same images"
        )
    return result


def _begin(context: Context, run: Run, row: Recipe, budget: Budget | None) -> FitConfig:
    """Write or check what this row is made of, its budget as a number; returns its FitConfig."""
    resolved = _resolved(context, row)
    if is_main():
        begin(run, resolved, budget)
    return resolved.fit


def _save_model(model: nn.Module, run: Run, row: Recipe) -> None:
    save_tensors(run.folder / "model.safetensors", model.state_dict(), {"recipe": recipe_to_values(row)})
