"""qvit eval: one table for everything that classifies.

qvit eval WHAT [--data DIR]          a run directory, a .qvit artifact, a recipe (its float model) or a timm model name
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

import qvit_runtime

from ..data import DataConfig, open_eval, resolve_data
from ..evaluation.evaluate import evaluate
from ..pipeline.finished import load_exact, read_recipe
from ..pipeline.float_model import create_float_model
from ..system.processes import model_device
from .data import add_source_options, check_weights_are_wanted, data_from, is_timm_name, recipe_with_weights, timm_model
from .output import say


def add_eval(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("eval", help="top-1 of a run, an artifact or a float model")
    parser.add_argument("what", help="run directory, .qvit file, recipe (its float model), or timm model name")
    add_source_options(parser)
    parser.add_argument("--reference", help="compare predictions with this (run, .qvit or timm model name)")
    parser.add_argument("--max-images", type=int, metavar="N", help="a fixed random choice of so many; default: all")
    parser.set_defaults(verb=eval_verb)
    return parser


def eval_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit eval"""
    if not arguments.data and not Path(arguments.what).is_dir() and Path(arguments.what).suffix != ".toml":
        raise ValueError(f"{arguments.what} does not say on which images to evaluate; give --data FOLDER, or digits")
    check_weights_are_wanted(arguments, arguments.what, arguments.reference)
    model, data = _open_model(arguments.what, arguments)
    reference = _reference(arguments, data) if arguments.reference else None
    outputs: tuple[str, ...] = ()
    if isinstance(model, qvit_runtime.Program) and arguments.class_map is None:
        outputs = model.preprocess.labels
    outcome = evaluate(model, open_eval(data, arguments.max_images, outputs))
    agreement = None
    if reference is not None:
        other = evaluate(reference[0], open_eval(reference[1], arguments.max_images, outputs))
        agreement = outcome.agreement_with(other)
    found = {
        "what": arguments.what,
        "images": outcome.images,
        "labelled": outcome.labelled,
        "top1": outcome.top1,
        "top5": outcome.top5,
        "agreement": agreement,
    }
    for key, value in found.items():
        if value is not None:
            say(arguments, f"{key:<10} {value:.2f} %" if isinstance(value, float) else f"{key:<10} {value}")
    return found


def _reference(arguments: argparse.Namespace, data: DataConfig) -> tuple[nn.Module | qvit_runtime.Program, DataConfig]:
    """The model of --reference, and `data`'s images with the size, crop, mean and deviation that this model was made for.

    Raises ValueError where it has other classes.
    """
    if is_timm_name(arguments.what):  # --checkpoint and --num-classes are those of the model that is evaluated
        arguments = copy.copy(arguments)
        arguments.checkpoint, arguments.num_classes = "", 0
    reference, own = _open_model(arguments.reference, arguments)
    if data.num_classes != own.num_classes:
        raise ValueError(
            f"{arguments.what} has {data.num_classes} classes and the reference {arguments.reference} {own.num_classes} classes; "
            "give a reference that has the same"
        )
    fields = ("dataset", "root", "eval_split", "class_map", "image_column", "label_column")
    images = {field: getattr(data, field) for field in fields}
    return reference, dataclasses.replace(own, **images)


def _open_model(what: str, arguments: argparse.Namespace) -> tuple[nn.Module | qvit_runtime.Program, DataConfig]:
    """A run, an artifact, a recipe's float model or a timm name, and the data settings that belong to it."""
    path = Path(what)
    if path.suffix == ".toml":
        recipe = recipe_with_weights(path)
        model = create_float_model(recipe.model)
        return model.to(model_device()), resolve_data(data_from(arguments, recipe.data), model)
    if path.suffix == ".qvit":
        program = qvit_runtime.load(path)
        prepare = program.preprocess
        base = DataConfig(
            dataset="digits",
            image_size=prepare.size[0],
            mean=prepare.mean,  # type: ignore[arg-type]
            std=prepare.std,  # type: ignore[arg-type]
            crop=prepare.crop,
            crop_mode=prepare.crop_mode,  # type: ignore[arg-type]
            interpolation=prepare.interpolation,  # type: ignore[arg-type]
            num_classes=program.buffers[program.output].shape[-1],
        )
        return program, data_from(arguments, base)
    if path.is_dir():
        data = read_recipe(path).data
        return load_exact(path).to(model_device()), data_from(arguments, data)
    model = create_float_model(timm_model(what, arguments))
    return model.to(model_device()), resolve_data(data_from(arguments, DataConfig(dataset="digits")), model)
