"""qvit compare: methods at equal bits, in one table.

qvit compare recipes/cifar10/ptq_w8a8.toml recipes/cifar10/tsptq_w8a8.toml --out runs/compare
qvit compare recipes/cifar10/irm_w2a2*.toml --set seed=1 --out runs/compare_seed1 --resume

A recipe is run into DIR/NAME when it is not finished there; a run directory is taken as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..pipeline.compare import compare, read_row
from ..pipeline.run import run_recipe
from ..settings.recipe import FLOAT, Recipe
from ..system.processes import is_main
from ..system.runs import Run
from .output import COST_COLUMNS, Column, say, table
from .run import add_recipe_options, recipe_of

RESULT = "compare.json"
COLUMNS = (
    Column("top-1 %", "top1", 2),
    Column("minus float", "minus_float", 0),
    Column("same class %", "agreement_float", 2),
    *COST_COLUMNS,
    Column("calib. s", "calibration_seconds", 1),
    Column("train s", "training_seconds", 0),
    Column("ms", "milliseconds", 2),
)


def add_compare(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("compare", help="run recipes where needed, and put their results into one table")
    parser.add_argument("what", nargs="+", type=Path, help="recipes, or finished run directories")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="of the runs (default: runs/compare)"
    )
    add_recipe_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue runs that were interrupted")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of the engine, for the latency (default: 1)"
    )
    parser.set_defaults(verb=compare_verb)
    return parser


def compare_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit compare"""
    folders = [what if what.is_dir() else arguments.out / what.stem for what in arguments.what]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ValueError(f"two rows would share a run directory: {', '.join(sorted(twice))}; rename a recipe")
    given = [f"--{name}" for name in ("set", "checkpoint", "num-classes") if getattr(arguments, name.replace("-", "_"))]
    if given and all(what.is_dir() for what in arguments.what):
        raise ValueError(f"{', '.join(given)} would change a recipe, and only finished runs are compared; leave it out")
    recipes = [_recipe_to_run(what, arguments) for what in arguments.what]  # all, before hours go into the first
    for what, folder, recipe in zip(arguments.what, folders, recipes, strict=True):
        if recipe is None:
            continue
        finished = (folder / "result.json").exists()
        say(arguments, f"{what}: {'finished' if finished else 'running'} in {folder}")
        run_recipe(recipe, folder, arguments.resume or finished, show_placement=False)
    if not is_main():
        return {}
    result = compare(folders, arguments.threads)
    written = Run(arguments.out).write_json(RESULT, result)
    say(arguments, "", table([_with_interval(row) for row in result["rows"]], COLUMNS), "")
    say(arguments, f"wrote {written}", f"next: qvit-runtime inspect {folders[-1] / 'model.qvit'}")
    return result


def _recipe_to_run(what: Path, arguments: argparse.Namespace) -> Recipe | None:
    """The recipe at `what`; None for the directory of a run. Raises ValueError for what cannot become a row."""
    if what.is_dir():
        read_row(what)
        return None
    recipe = recipe_of(what, arguments)
    if recipe.method == FLOAT:
        raise ValueError(f"{what} trains a float model; that of each row is part of it already, leave the recipe out")
    return recipe


def _with_interval(row: dict[str, Any]) -> dict[str, Any]:
    """The row and its difference to the float model in words; the float row has none."""
    if row.get("difference") is None:
        return row
    return {**row, "minus_float": f"{row['difference']:+.2f} +- {row['half_width']:.2f}"}
