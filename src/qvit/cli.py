"""The command line: one short function per verb. Each prints what it wrote and what to do next; --json FILE (or -) for machines.

qvit run RECIPE [--out DIR] [--set KEY=VALUE ...] [--resume] [--dry-run]
qvit eval WHAT [--data DIR]          a run directory, a .qvit artifact, a recipe (its float model) or a timm model name
qvit cost MODEL --weight-bits 4 --activation-bits 4
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import qvit_runtime

from .convert import quantize
from .cost import cost
from .data import DataConfig, open_eval, resolve_data
from .dry_run import dry_run
from .evaluate import evaluate
from .float_model import create_float_model
from .pipeline import load, read_result, run_recipe
from .placement import format_placement, placement
from .processes import is_main
from .quantizer import UncalibratedError
from .recipe import ModelConfig, load_recipe, recipe_from_values
from .spec import FixedBits, Spec
from .support import UnsupportedModelError

EXPECTED = (
    ValueError,
    FloatingPointError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    UnsupportedModelError,
    UncalibratedError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code. Errors that a user can mend are one line on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        result = arguments.verb(arguments)
    except EXPECTED as error:
        print(f"qvit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if arguments.json and is_main():
        _write_json(arguments.json, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qvit", description="Learn how many bits a Vision Transformer needs.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run a recipe: quantize, calibrate, train, freeze, evaluate")
    run.add_argument("recipe", type=Path)
    run.add_argument("--out", type=Path, help="run directory (default: runs/NAME of the recipe)")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field, e.g. fit.epochs=3"
    )
    run.add_argument("--checkpoint", help="your own float weights: .safetensors, or a weights-only .pth")
    run.add_argument("--num-classes", type=int, help="size of the classifier of those weights")
    run.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    run.add_argument("--dry-run", action="store_true", help="check model, data pipeline and budget, make two steps")
    run.set_defaults(verb=run_verb)

    evaluation = verbs.add_parser("eval", help="top-1 of a run, an artifact or a float model")
    evaluation.add_argument("what", help="run directory, .qvit file, recipe (its float model), or timm model name")
    evaluation.add_argument(
        "--data",
        help="image folder, timm data set name such as hfds/FOLDER, or digits; a run and a recipe have their own",
    )
    evaluation.add_argument("--split", help="default: validation, or with a run's own data its evaluation split")
    evaluation.add_argument("--checkpoint", default="", help="float weights for a timm model name")
    evaluation.add_argument("--num-classes", type=int, default=0)
    evaluation.add_argument("--reference", help="compare predictions with this (run, .qvit or timm model name)")
    evaluation.add_argument("--max-images", type=int)
    evaluation.set_defaults(verb=eval_verb)

    price = verbs.add_parser("cost", help="BitOPs, average bits and KiB of a model")
    price.add_argument("model", help="timm model name, or a run directory")
    price.add_argument("--weight-bits", type=int, default=4)
    price.add_argument("--activation-bits", type=int, default=4)
    price.add_argument("--placement", action="store_true", help="also print where every bit and float op sits")
    price.set_defaults(verb=cost_verb)

    for verb in (run, evaluation, price):
        verb.add_argument("--json", metavar="FILE", help="write the result as JSON, - for standard output")
    return parser


def run_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit run"""
    recipe = load_recipe(arguments.recipe, arguments.set)
    model = recipe.model
    if arguments.checkpoint:  # relative to the working directory, unlike paths inside a recipe
        model = dataclasses.replace(model, checkpoint=str(arguments.checkpoint), pretrained=False)
    if arguments.num_classes is not None:
        model = dataclasses.replace(model, num_classes=arguments.num_classes)
    recipe = dataclasses.replace(recipe, model=model)
    if arguments.dry_run:
        lines = dry_run(recipe)
        _say(arguments, *lines, f"{arguments.recipe} is ready: qvit run {arguments.recipe}")
        return {"recipe": str(arguments.recipe), "checked": lines}
    out = arguments.out or Path("runs") / arguments.recipe.stem
    result = run_recipe(recipe, out, arguments.resume)
    if not is_main():
        return result
    rows = [read_result(folder) for folder in (out / "float", *sorted(out.glob("uniform*"))) if folder.is_dir()]
    _say(arguments, "", results_table([*rows, result]), "")
    _say(
        arguments, f"wrote {out / 'result.json'}" + (f" and {out / result['artifact']}" if "artifact" in result else "")
    )
    if "artifact" in result:
        _say(arguments, f"next: qvit-runtime inspect {out / result['artifact']}")
    return result


def results_table(rows: list[dict[str, Any]]) -> str:
    """Rows of result.json as an aligned table."""
    header = f"{'row':<34}{'top-1 %':>9}{'GBitOPs':>10}{'W bits':>8}{'A bits':>8}{'KiB':>9}{'epochs':>8}"
    lines = [header, "-" * len(header)]
    for row in rows:
        numbers = [
            _number(row.get(key), width, digits)
            for key, width, digits in (
                ("top1", 9, 2),
                ("gbitops", 10, 4),
                ("average_weight_bits", 8, 2),
                ("average_activation_bits", 8, 2),
                ("artifact_kib", 9, 1),
                ("epochs", 8, 1),
            )
        ]
        lines.append(f"{row['method']:<34}{''.join(numbers)}")
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{value:>{width}.{digits}f}" if value is not None else f"{'-':>{width}}"


def eval_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit eval"""
    if not arguments.data and not Path(arguments.what).is_dir() and Path(arguments.what).suffix != ".toml":
        raise ValueError(f"{arguments.what} does not say on which images to evaluate; give --data FOLDER, or digits")
    model, data = _open_model(arguments.what, arguments)
    reference = _open_model(arguments.reference, arguments)[0] if arguments.reference else None
    outcome = evaluate(model, open_eval(data, arguments.max_images), reference)
    table = {
        "what": arguments.what,
        "images": outcome.images,
        "labelled": outcome.labelled,
        "top1": outcome.top1,
        "top5": outcome.top5,
        "agreement": outcome.agreement,
    }
    for key, value in table.items():
        if value is not None:
            _say(arguments, f"{key:<10} {value:.2f} %" if isinstance(value, float) else f"{key:<10} {value}")
    return table


def _open_model(what: str, arguments: argparse.Namespace) -> tuple[nn.Module | qvit_runtime.Program, DataConfig]:
    """A run, an artifact, a recipe's float model or a timm name, and the data settings that belong to it."""
    path = Path(what)
    if path.suffix == ".toml":
        recipe = load_recipe(path)
        model = create_float_model(recipe.model)
        return model, resolve_data(_data_from(arguments, recipe.data), model)
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
        )
        return program, _data_from(arguments, base)
    if path.is_dir():
        if not (path / "recipe.json").exists():
            raise FileNotFoundError(f"{path} has no recipe.json, so it is no run directory")
        recipe = recipe_from_values(json.loads((path / "recipe.json").read_text()))
        return load(path), _data_from(arguments, recipe.data)
    config = ModelConfig(
        name=what,
        checkpoint=arguments.checkpoint,
        pretrained=not arguments.checkpoint,
        num_classes=arguments.num_classes,
    )
    model = create_float_model(config)
    return model, resolve_data(_data_from(arguments, DataConfig(dataset="digits")), model)


def _data_from(arguments: argparse.Namespace, base: DataConfig) -> DataConfig:
    if not arguments.data:
        return dataclasses.replace(base, eval_split=arguments.split or base.eval_split)
    named = arguments.data == "digits" or arguments.data.partition("/")[0] in ("hfds", "hfids", "wds")
    return dataclasses.replace(
        base,
        dataset=arguments.data if named else "folder",
        root=base.root if named else arguments.data,
        eval_split=arguments.split or "validation",
    )


def cost_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit cost"""
    if Path(arguments.model).is_dir():
        model = load(arguments.model)
    else:
        spec = Spec(FixedBits(arguments.weight_bits), FixedBits(arguments.activation_bits))
        model = quantize(create_float_model(ModelConfig(name=arguments.model)), spec, quiet=True)
    summary = dataclasses.asdict(cost(model))
    if arguments.placement:
        _say(arguments, format_placement(placement(model)), "")
    for key in ("gbitops", "average_weight_bits", "average_activation_bits", "kib"):
        _say(arguments, f"{key:<24} {summary[key]:.3f}")
    return summary


def _say(arguments: argparse.Namespace, *lines: str) -> None:
    """Print for people, on stderr when standard output carries JSON."""
    stream = sys.stderr if arguments.json == "-" else sys.stdout
    for line in lines:
        print(line, file=stream)


def _write_json(target: str, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")
