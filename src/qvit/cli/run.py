"""qvit run: a recipe, the whole way.

qvit run RECIPE [--out DIR] [--set KEY=VALUE ...] [--resume] [--report] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ..pipeline.finished import read_result
from ..pipeline.live_page import PAGE
from ..pipeline.run import run_recipe
from ..planning.dry_run import dry_run, not_looked_at
from ..settings.recipe import Recipe, load_recipe
from ..system.processes import is_main
from .output import COST_COLUMNS, Column, say, table

COLUMNS = (
    Column("top-1 %", "top1", 2),
    *COST_COLUMNS,
    Column("epochs", "epochs", 1),
)


def add_run(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("run", help="run a recipe: quantize, calibrate, train, freeze, evaluate")
    parser.add_argument("recipe", type=Path, help="a TOML file of values; recipes/ has examples")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME of the recipe)")
    add_recipe_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    parser.add_argument(
        "--report", action="store_true", help="keep DIR/report.html up to date while training; open it in a browser"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check model, weights, images and budget, make two steps"
    )
    parser.set_defaults(verb=run_verb)
    return parser


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """What changes a recipe from the command line."""
    add_set(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="your own float weights: .safetensors, a .pth (timm's train.py's too), or the directory of a float run",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="size of the classifier of those weights")


def add_set(parser: argparse.ArgumentParser) -> None:
    """--set, alone."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the recipe, e.g. fit.epochs=3; may be repeated",
    )


def recipe_of(path: Path, arguments: argparse.Namespace) -> Recipe:
    """The recipe in a file with the options of `add_recipe_options`."""
    overrides = list(arguments.set)
    if arguments.checkpoint:
        overrides += [f"model.checkpoint={json.dumps(str(arguments.checkpoint))}", "model.pretrained=false"]
    if arguments.num_classes is not None:
        overrides.append(f"model.num_classes={arguments.num_classes}")
    return load_recipe(path, overrides)


def command_of(arguments: argparse.Namespace) -> str:
    """`qvit run` with the recipe, the overrides and the directory of these arguments, to be pasted."""
    words = ["qvit", "run", str(arguments.recipe)]
    words += [word for override in arguments.set for word in ("--set", override)]
    for option in ("checkpoint", "num_classes", "out"):
        value = getattr(arguments, option)
        words += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)


def run_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit run"""
    recipe = recipe_of(arguments.recipe, arguments)
    if arguments.dry_run:
        return _dry_run(arguments, recipe)
    out = arguments.out or Path("runs") / arguments.recipe.stem
    if arguments.report and is_main():
        say(arguments, f"watch: {out / PAGE}")
    result = run_recipe(recipe, out, arguments.resume, report=arguments.report)
    if not is_main():
        return result
    folders = (out / "float", *sorted(out.glob("uniform*")))
    rows = [read_result(folder) for folder in folders if (folder / "result.json").exists()]
    say(arguments, "", table([*rows, result], COLUMNS), "", *what_was_written(out, result))
    return result


def _dry_run(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    lines, unseen = dry_run(recipe), not_looked_at(recipe)
    if unseen:
        verdict = f"{arguments.recipe} works on generated images; not looked at: {', '.join(unseen)}"
    else:
        verdict = f"{arguments.recipe} is ready: {command_of(arguments)}"
    say(arguments, *lines, verdict)
    return {"recipe": str(arguments.recipe), "checked": lines, "not_looked_at": unseen}


def what_was_written(out: Path, result: dict[str, Any]) -> list[str]:
    """The files of a finished row, and what to do with them."""
    if not result["artifact"]:
        return [f"wrote {out / 'result.json'}", f"next: {shlex.join(['qvit', 'eval', str(out)])}"]
    artifact = out / result["artifact"]
    then = shlex.join(["qvit-runtime", "inspect", str(artifact)])
    return [f"wrote {out / 'result.json'} and {artifact}", f"next: {then}"]
