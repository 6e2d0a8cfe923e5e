"""Context: what all rows of a recipe share, its float model and its data, opened once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..data import DataConfig, Splits, open_data, resolve_data
from ..settings.recipe import Recipe
from ..system.processes import model_device
from .float_model import create_float_model
from .live_page import LivePage


@dataclass(frozen=True)
class Context:
    """What all rows of a recipe share.

    cache  the folder of teacher logits, beside the run directories
    page   the view of the run directory, kept up to date while rows train
    """

    recipe: Recipe
    model: nn.Module
    data: DataConfig
    splits: Splits
    quiet: bool
    cache: Path = Path("teacher_cache")
    show_placement: bool = False
    page: LivePage | None = None


def open_recipe(
    recipe: Recipe, quiet: bool = False, max_eval_images: int | None = None, skipped: Path | None = None
) -> Context:
    """Create the float model and open the data of a recipe; for the last two arguments see `open_data`."""
    torch.manual_seed(recipe.seed)
    model = create_float_model(recipe.model).to(model_device())
    data = resolve_data(recipe.data, model)
    splits = open_data(data, recipe.seed, max_eval_images=max_eval_images, skipped=skipped)
    return Context(recipe, model, data, splits, quiet)
