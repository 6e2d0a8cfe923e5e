"""run_recipe(): the whole way from a recipe to a frozen program and result.json.

    float model --[train_float]--> teacher
        |
        +-- quantize -> calibrate [-> init_bits] -> fit (budget) -> freeze -> evaluate with fake quantization and with the interpreter

The verbs are those of the recipe's method (`methods`); with fit.epochs = 0 there is no fit. The rows of the experiment (the
float model trained here, a uniform baseline, the recipe itself) are in `rows`, what they share in `context`.

With several processes (`accelerate launch -m qvit run ...`) all of them train, freeze what is the same everywhere, and share
the evaluations; files are the main process's, and the others get an empty result.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import qvit_runtime

from ..bits.budget import check_budget
from ..bits.init_bits import apply_init_bits
from ..data import preprocess_of
from ..methods import METHODS
from ..quantizers.quantizer import named_quantizers
from ..settings.recipe import FLOAT, Recipe
from ..system.processes import is_main, process_state, require_same
from ..system.storage import check_writable
from ..training.compute import check_graph
from .context import Context, open_recipe
from .live_page import LivePage
from .rows import quantized_row, train_float_row, uniform_row


def run_recipe(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    quiet: bool = False,
    *,
    max_eval_images: int | None = None,
    show_placement: bool = True,
    report: bool = False,
) -> dict[str, Any]:
    """Run a recipe into the directory `out`; returns the content of its result.json.

    A directory that is not empty is refused unless resume is set; with it, what is finished is kept. Everything is judged on
    `max_eval_images` of the evaluation split, a fixed choice, or on all. With `report` a page in `out` shows the run while it trains.

    Raises FileExistsError for such a directory, StorageError for one that cannot be written; before any training BudgetError
    or ValueError when the budget cannot be met or is missing, and FreezeError when the result could not be frozen;
    RecipeError when resume meets another recipe; and what `fit` raises.
    """
    if is_main() and not resume and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another --out, or continue it with --resume")
    if is_main():
        check_writable(out)
    process_state().wait_for_everyone()  # or another process would already have made something in there
    require_same(
        f"numbers of files in {out}", sum(1 for _ in out.rglob("*")), "every machine must see the same run directory"
    )
    page = LivePage(out) if report and is_main() else None
    context = dataclasses.replace(
        open_recipe(recipe, quiet, max_eval_images, out / "skipped.jsonl"),
        cache=out.parent / "teacher_cache",
        show_placement=show_placement and not quiet,
        page=page,
    )
    result = _rows(context, out, resume)
    if page is not None:
        page.write()
    return result


def _rows(context: Context, out: Path, resume: bool) -> dict[str, Any]:
    """Train and judge what the recipe asks for; the result of its own row."""
    recipe = context.recipe
    for config in (recipe.fit, recipe.train_float):
        if (
            config is not None and config.epochs and config.cuda_graph
        ):  # before minutes of calibration; `fit` asks again
            check_graph(context.splits.train, False, process_state().device, process_state().num_processes)
    if recipe.method == FLOAT:
        return train_float_row(context, out, recipe.fit, resume)
    check_before_training(context)
    if recipe.train_float is not None:
        train_float_row(context, out / "float", recipe.train_float, resume)
    if recipe.uniform_baseline:
        bits = recipe.uniform_baseline
        quantized_row(context, out / f"uniform{bits}", uniform_row(recipe), f"uniform {bits}-bit", resume)
    return quantized_row(context, out, recipe, METHODS[recipe.method].label(recipe.quantize), resume)


def check_before_training(context: Context) -> None:
    """Raise what the budget check of `fit`, `freeze` and saving would raise, before hours of training."""
    recipe = context.recipe
    method = METHODS[recipe.method]
    model = method.quantize(context.model, recipe.quantize)
    check_budget(model, recipe.budget)
    if recipe.init_bits:
        apply_init_bits(model, recipe.init_bits)
    if not method.quantizers:  # only its calibration knows what its scales look like
        return
    for quantizer in named_quantizers(model).values():
        quantizer.is_calibrated = True  # with scales of 1: nobody will run this one
    qvit_runtime.check(method.freeze(model, None, preprocess_of(context.data, context.splits.class_names)))
