"""What a finished run directory gives back: its module, its recipe, its result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import nn

from ..methods import METHODS
from ..quantizers.exact import in_float64
from ..settings.recipe import FLOAT, LOCAL, Recipe, read_resolved, recipe_from_values
from ..system.runs import CheckpointError, load_tensors
from .float_model import create_float_model


def load(run: Path | str) -> nn.Module:
    """The trained module of a run directory, quantized or (a float row) float, in eval mode.

    Raises CheckpointError when the run has no model.safetensors (it is not finished) or it is damaged.
    """
    tensors, state = load_tensors(Path(run) / "model.safetensors")
    recipe = recipe_from_values(state["recipe"])
    bare = dataclasses.replace(recipe.model, checkpoint="", pretrained=False)
    model = create_float_model(bare)
    if recipe.method != FLOAT:
        model = METHODS[recipe.method].quantize(model, recipe.quantize)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{run} was made by another version of qvit or timm, its weights do not fit: {error}"
        ) from error
    return model.eval()


def load_exact(run: Path | str) -> nn.Module:
    """`load`, in the arithmetic that result.json was judged in."""
    method = read_recipe(run).method
    return (in_float64 if method == FLOAT else METHODS[method].exact)(load(run))


def read_recipe(run: Path | str) -> Recipe:
    """The resolved recipe of a run. Raises FileNotFoundError for a folder that is no run directory, RecipeError for a damaged one."""
    path = Path(run) / "recipe.json"
    if not path.exists():
        hint = f"; for the timm model in it write {LOCAL}{run}" if (Path(run) / "config.json").exists() else ""
        raise FileNotFoundError(f"{run} has no recipe.json, so it is no run directory{hint}")
    return read_resolved(path)


def read_result(run: Path | str) -> dict[str, Any]:
    """result.json of a run. Raises FileNotFoundError that says which run is not finished, CheckpointError for a damaged one."""
    path = Path(run) / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no result.json: the run is not finished, or this is no run directory")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; --resume makes it again when it is deleted") from error
