"""run_recipe(): the whole way from a recipe to a frozen program and result.json.

    float model --[train_float]--> teacher
        |
        +-- quantize -> calibrate -> fit (budget) -> freeze -> evaluate with fake quantization and with the interpreter

Every row of an experiment (the float model trained here, a uniform baseline, the recipe itself) is trained by the same
loop and leaves a run directory of its own; finished rows are recognised by their result.json and not trained again.
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
from .budget import Budget
from .calibrate import calibrate
from .convert import quantize
from .cost import cost
from .data import DataConfig, Splits, open_data, resolve_data
from .evaluate import Evaluation, evaluate
from .fit import FitResult, fit
from .fit_config import FitConfig
from .float_model import create_float_model
from .freeze import freeze
from .recipe import Recipe, recipe_from_values, recipe_to_values
from .runs import Run, load_tensors, save_tensors
from .spec import FixedBits, Spec

SCHEMA = 1


@dataclass(frozen=True)
class Context:
    """What all rows of a recipe share."""

    recipe: Recipe
    model: nn.Module
    data: DataConfig
    splits: Splits
    quiet: bool


def open_recipe(recipe: Recipe, quiet: bool = False, max_eval_images: int | None = None) -> Context:
    """Create the float model and open the data of a recipe."""
    torch.manual_seed(recipe.seed)
    model = create_float_model(recipe.model)
    data = resolve_data(recipe.data, model)
    return Context(recipe, model, data, open_data(data, recipe.seed, max_eval_images=max_eval_images), quiet)


def run_recipe(recipe: Recipe, out: Path, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run a recipe into the directory `out`; returns the content of its result.json.

    A directory that already holds a result is refused unless resume is set; with it, what is finished is kept.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise FileExistsError(f"{out} is not empty; choose another --out, or continue it with --resume")
    context = open_recipe(recipe, quiet)
    if recipe.train_float is not None:
        train_float_row(context, out / "float", recipe.train_float, resume)
    if recipe.method == "float":
        return train_float_row(context, out, recipe.fit, resume)
    if recipe.uniform_baseline:
        bits = FixedBits(recipe.uniform_baseline)
        uniform = dataclasses.replace(recipe.quantize, weights=bits, activations=bits)
        quantized_row(context, out / f"uniform{recipe.uniform_baseline}", uniform, f"uniform {bits.bits}-bit", resume)
    return quantized_row(context, out, recipe.quantize, row_name(recipe.quantize), resume)


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
    config = dataclasses.replace(config, seed=context.recipe.seed)
    _write_provenance(context, run, config)
    result = _fit(context, context.model, run, config, None, resume)
    context.model.eval()
    save_tensors(weights, context.model.state_dict(), {"recipe": recipe_to_values(context.recipe)})
    record = {**_common(context, "float", config, result), "top1": result.top1, "top1_float": result.top1}
    run.write_json("result.json", record)
    return record


def quantized_row(context: Context, folder: Path, spec: Spec, name: str, resume: bool) -> dict[str, Any]:
    """Quantize, calibrate, fit, freeze and evaluate one row."""
    run = Run(folder)
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    recipe = context.recipe
    config = dataclasses.replace(recipe.fit, seed=recipe.seed)
    _write_provenance(context, run, config)
    model = quantize(context.model, spec)
    calibrate(model, context.splits.calibration, calibration_batches(recipe, context.data))
    budget = recipe.budget if any(q.requires_grad for n, q in model.named_parameters() if n.endswith(".bits")) else None
    result = _fit(context, model, run, config, budget, resume)
    model.eval()
    save_tensors(
        folder / "model.safetensors",
        model.state_dict(),
        {"recipe": recipe_to_values(dataclasses.replace(recipe, quantize=spec))},
    )
    program = freeze(model, budget, preprocess_of(context.data, context.splits), recipe.model.name, {"row": name})
    qvit_runtime.save(program, folder / "model.qvit")
    fake = evaluate(model, context.splits.eval)
    frozen = evaluate(program, context.splits.eval, model)
    reference = evaluate(context.model, context.splits.eval)
    record = _common(context, name, config, result) | _outcome(model, fake, frozen, reference, recipe)
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
        teacher=context.model if config.distillation > 0 else None,
        config=config,
        order=context.splits.order,
        data=context.data,
        evaluation=context.splits.eval,
        run=run,
        resume=resume,
        quiet=context.quiet,
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


def _write_provenance(context: Context, run: Run, config: FitConfig) -> None:
    resolved = dataclasses.replace(context.recipe, data=context.data, fit=config)
    run.write_json("recipe.json", recipe_to_values(resolved))
    run.write_json(
        "provenance.json",
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": context.recipe.seed,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )


def load(run: Path | str) -> nn.Module:
    """The trained quantized torch module of a run directory, in eval mode.

    Raises CheckpointError when the run has no model.safetensors or it is damaged.
    """
    tensors, state = load_tensors(Path(run) / "model.safetensors")
    recipe = recipe_from_values(state["recipe"])
    bare = dataclasses.replace(recipe.model, checkpoint="", pretrained=False)
    model = create_float_model(bare)
    if recipe.method != "float":
        model = quantize(model, recipe.quantize)
    model.load_state_dict(tensors)
    return model.eval()


def read_result(run: Path | str) -> dict[str, Any]:
    """result.json of a run. Raises FileNotFoundError that says which run is not finished."""
    path = Path(run) / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no result.json: the run is not finished, or this is no run directory")
    return json.loads(path.read_text())
