"""run_recipe(): the whole way from a recipe to a frozen program and result.json.

    float model --[train_float]--> teacher
        |
        +-- quantize -> calibrate -> fit (budget) -> freeze -> evaluate with fake quantization and with the interpreter

Every row of an experiment (the float model trained here, a uniform baseline, the recipe itself) is trained by the same
loop and leaves a run directory of its own; finished rows are recognised by their result.json and not trained again.

With several processes (`accelerate launch -m qvit run ...`) all of them train; files, freeze and the final evaluations
are the main process's, and the others get an empty result.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qvit_runtime
from qvit_runtime.program import Preprocess

from .allocate import spread
from .budget import Budget, check_budget
from .calibrate import calibrate
from .convert import quantize
from .cost import cost
from .data import DataConfig, Splits, open_data, resolve_data
from .distill import CachedTeacher, Teacher, fingerprint
from .evaluate import Evaluation, evaluate
from .fit import FitResult, fit
from .fit_config import FitConfig
from .float_model import create_float_model
from .freeze import freeze
from .processes import is_main, process_state
from .recipe import Recipe, RecipeError, recipe_from_values, recipe_to_values
from .runs import Run, load_tensors, save_tensors
from .spec import FixedBits, Spec
from .values import to_values

SCHEMA = 1


@dataclass(frozen=True)
class Context:
    """What all rows of a recipe share; `cache` is the folder of teacher logits, beside the run directories."""

    recipe: Recipe
    model: nn.Module
    data: DataConfig
    splits: Splits
    quiet: bool
    cache: Path = Path("teacher_cache")


def open_recipe(recipe: Recipe, quiet: bool = False, max_eval_images: int | None = None) -> Context:
    """Create the float model and open the data of a recipe."""
    torch.manual_seed(recipe.seed)
    model = create_float_model(recipe.model)
    data = resolve_data(recipe.data, model)
    return Context(recipe, model, data, open_data(data, recipe.seed, max_eval_images=max_eval_images), quiet)


def run_recipe(recipe: Recipe, out: Path, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run a recipe into the directory `out`; returns the content of its result.json.

    A directory that is not empty is refused unless resume is set; with it, what is finished is kept.

    Raises FileExistsError for such a directory, BudgetError or ValueError before any training when the budget cannot be
    met or is missing, RecipeError when resume meets another recipe.
    """
    if is_main() and not resume and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another --out, or continue it with --resume")
    context = dataclasses.replace(open_recipe(recipe, quiet), cache=out.parent / "teacher_cache")
    if recipe.method == "float":
        return train_float_row(context, out, recipe.fit, resume)
    check_budget(quantize(context.model, recipe.quantize, quiet=True), recipe.budget)
    if recipe.train_float is not None:
        train_float_row(context, out / "float", recipe.train_float, resume)
    if recipe.uniform_baseline:
        bits = FixedBits(recipe.uniform_baseline)
        uniform = dataclasses.replace(recipe.quantize, weights=bits, activations=bits, overrides=())
        row = dataclasses.replace(recipe, quantize=uniform, budget=None)
        quantized_row(context, out / f"uniform{bits.bits}", row, f"uniform {bits.bits}-bit", resume)
    return quantized_row(context, out, recipe, row_name(recipe.quantize), resume)


def row_name(spec: Spec) -> str:
    """What a row is called in tables."""
    if isinstance(spec.weights, FixedBits) and isinstance(spec.activations, FixedBits):
        return f"uniform W{spec.weights.bits}A{spec.activations.bits}"
    heads = "head-wise" if type(spec.heads).__name__ == "PerHead" else "layer-wise"
    scale = {"SwitchableScale": "", "SharedScale": ", shared bank", "SingleScale": ", single scale"}
    return f"{heads} learned bits{scale[type(spec.scale).__name__]}"


def train_float_row(context: Context, folder: Path, config: FitConfig, resume: bool) -> dict[str, Any]:
    """Train the context's float model in place and write its run directory."""
    run = Run(folder)
    weights, done = folder / "model.safetensors", folder / "result.json"
    if done.exists() and weights.exists():
        tensors, _ = load_tensors(weights)
        context.model.load_state_dict(tensors)
        return json.loads(done.read_text())
    row = dataclasses.replace(context.recipe, method="float", train_float=None, fit=config, budget=None)
    config = _start(context, run, row)
    result = _fit(context, context.model, run, config, None, resume)
    context.model.eval()
    if not is_main():
        return {}
    _save_model(context.model, run, row)
    record = {**_common(context, "float", config, result), "top1": result.top1, "top1_float": result.top1}
    run.write_json("result.json", record)
    return record


def quantized_row(context: Context, folder: Path, row: Recipe, name: str, resume: bool) -> dict[str, Any]:
    """Quantize, calibrate, fit, freeze and evaluate one row: `row` is the context's recipe with this row's spec."""
    run = Run(folder)
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    config = _start(context, run, row)
    model = quantize(context.model, row.quantize, quiet=context.quiet or not is_main())
    calibrate(model, context.splits.calibration, calibration_batches(row, context.data))
    result = _fit(context, model, run, config, row.budget, resume)
    model.eval()
    if not is_main():
        return {}
    _save_model(model, run, row)
    program = freeze(model, row.budget, preprocess_of(context.data, context.splits), row.model.name, {"row": name})
    qvit_runtime.save(program, folder / "model.qvit")
    fake = evaluate(model, context.splits.eval)
    frozen = evaluate(program, context.splits.eval, model)
    reference = evaluate(context.model, context.splits.eval)
    record = _common(context, name, config, result) | _outcome(model, fake, frozen, reference, row)
    record["artifact_kib"] = (folder / "model.qvit").stat().st_size / 1024
    run.write_json("result.json", record)
    return record


def _fit(
    context: Context, model: nn.Module, run: Run, config: FitConfig, budget: Budget | None, resume: bool
) -> FitResult:
    return fit(
        model,
        context.splits.train,
        budget=budget,
        teacher=_teacher(context, config) if config.distillation > 0 else None,
        config=config,
        order=context.splits.order,
        data=context.data,
        evaluation=context.splits.eval,
        run=run,
        resume=resume,
        quiet=context.quiet,
    )


def _teacher(context: Context, config: FitConfig) -> nn.Module | Teacher:
    """The float model; with config.cache_teacher, its logits from a file that all rows share."""
    if not config.cache_teacher:
        return context.model
    process = process_state()
    data = dataclasses.replace(context.data, workers=0, cache_decoded=False, eval_batch_size=1)
    key = {
        "data": to_values(data),
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


def preprocess_of(data: DataConfig, splits: Splits | None) -> Preprocess:
    """The evaluation transform of a resolved data config, for the artifact."""
    if not (data.image_size and data.mean and data.std and data.crop and data.interpolation and data.crop_mode):
        raise ValueError("the data config has blanks; complete it with qvit.resolve_data(config, model) first")
    return Preprocess(
        size=(data.image_size, data.image_size),
        crop=data.crop,
        crop_mode=data.crop_mode,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        labels=splits.class_names if splits is not None else (),
    )


def _common(context: Context, method: str, config: FitConfig, result: FitResult) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": context.recipe.model.name,
        "method": method,
        "seed": context.recipe.seed,
        "epochs": config.epochs,
        "images": context.splits.eval_images,
        "images_per_second": result.images_per_second,
        "versions": versions(),
    }


def _outcome(
    model: nn.Module, fake: Evaluation, frozen: Evaluation, reference: Evaluation, recipe: Recipe
) -> dict[str, Any]:
    summary = cost(model)
    return {
        "images": fake.images,
        "top1": fake.top1,
        "top1_float": reference.top1,
        "top1_frozen": frozen.top1,
        "agreement_frozen": frozen.agreement,
        "gbitops": summary.gbitops,
        "budget_gbitops": recipe.budget.gbitops if recipe.budget is not None else None,
        "budget": None if recipe.budget is None else {recipe.budget.unit: recipe.budget.limit},
        "average_weight_bits": summary.average_weight_bits,
        "average_activation_bits": summary.average_activation_bits,
        "weight_kib": summary.kib,
        "bits": {name: bits[0] if len(bits) == 1 else bits for name, bits in spread(model).items()},
        "artifact": "model.qvit",
    }


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("qvit", "qvit-runtime", "torch", "timm", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


SPEED_ONLY = (("data", "workers"), ("data", "cache_decoded"), ("fit", "tensorboard"), ("fit", "checkpoint_every"))


def _start(context: Context, run: Run, row: Recipe) -> FitConfig:
    """Write what this row is made of, or check that a directory under way was made of the same; returns its FitConfig."""
    config = dataclasses.replace(row.fit, seed=row.seed)
    if not is_main():
        return config
    values = recipe_to_values(dataclasses.replace(row, data=context.data, fit=config))
    written = run.folder / "recipe.json"
    if written.exists():
        changed = sorted(_differences(json.loads(written.read_text()), json.loads(json.dumps(values))))
        if changed:
            raise RecipeError(
                f"{run.folder} was started with another recipe, which differs in {', '.join(changed)}; resume it with the "
                "same recipe, or choose another --out"
            )
    run.write_json("recipe.json", values)
    run.write_json(
        "provenance.json",
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": row.seed,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )
    return config


def _differences(old: dict[str, Any], new: dict[str, Any], where: tuple[str, ...] = ()) -> set[str]:
    """Dotted keys whose values differ, apart from those that change the speed and nothing else."""
    found: set[str] = set()
    for key in old.keys() | new.keys():
        place = (*where, key)
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _differences(before, after, place)
        elif before != after and place not in SPEED_ONLY:
            found.add(".".join(place))
    return found


def _save_model(model: nn.Module, run: Run, row: Recipe) -> None:
    save_tensors(run.folder / "model.safetensors", model.state_dict(), {"recipe": recipe_to_values(row)})


def load(run: Path | str) -> nn.Module:
    """The trained module of a run directory, quantized or (a float row) float, in eval mode.

    Raises CheckpointError when the run has no model.safetensors (it is not finished) or it is damaged.
    """
    tensors, state = load_tensors(Path(run) / "model.safetensors")
    recipe = recipe_from_values(state["recipe"])
    bare = dataclasses.replace(recipe.model, checkpoint="", pretrained=False)
    model = create_float_model(bare)
    if recipe.method != "float":
        model = quantize(model, recipe.quantize, quiet=True)
    model.load_state_dict(tensors)
    return model.eval()


def read_result(run: Path | str) -> dict[str, Any]:
    """result.json of a run. Raises FileNotFoundError that says which run is not finished."""
    path = Path(run) / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no result.json: the run is not finished, or this is no run directory")
    return json.loads(path.read_text())
