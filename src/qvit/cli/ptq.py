"""qvit ptq: quantize a float model without training, in one command.

qvit ptq deit_tiny_patch16_224 --method tsptq --weight-bits 6 --activation-bits 6 --data imagenet
qvit ptq runs/swin_float --method fqvit               a float run has its own data; so has a recipe
qvit ptq vit_tiny_patch16_224 --checkpoint my.safetensors --num-classes 10 --data FOLDER_OF_IMAGES

A flat folder of images without labels serves calibration and agreement with the float model, and nothing else: calibration
then sees the very images that it is judged on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..calibration.range_observers import LeastSquares, MeanSquaredError, MinMax, MovingAverage, Observer, Percentile
from ..methods import METHODS
from ..pipeline.run import run_recipe
from ..settings.recipe import Recipe
from ..system.processes import is_main
from ..training.fit_config import FitConfig
from .data import add_source_options, float_source
from .output import say
from .run import what_was_written

OBSERVERS: dict[str, Observer] = {
    "least-squares": LeastSquares(),
    "min-max": MinMax(),
    "moving-average": MovingAverage(),
    "percentile": Percentile(),
    "mse": MeanSquaredError(),
}
NAMES = tuple(name for name in METHODS if name != "qvit")  # at fixed bits and without training it is lsq


def add_ptq(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("ptq", help="quantize a float model without training")
    parser.add_argument("model", help="timm model name, recipe (its float model), or run directory of a float run")
    parser.add_argument("--method", choices=NAMES, default="ptq", help="default: %(default)s")
    bits_help = "2 to 8 (default: %(default)s)"
    parser.add_argument("--weight-bits", type=int, default=8, metavar="N", help=bits_help)
    parser.add_argument("--activation-bits", type=int, default=8, metavar="N", help=bits_help)
    add_source_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/ptq_MODEL_METHOD_BITS)")
    parser.add_argument(
        "--calibration-images", type=int, default=128, metavar="N", help="training images to look at (default: 128)"
    )
    parser.add_argument(
        "--observer", choices=tuple(OBSERVERS), help="where scales come from, for methods that let you choose"
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="evaluate on a fixed random choice of so many")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of calibration images")
    parser.add_argument("--placement", action="store_true", help="also print what is integer and what stays float")
    parser.add_argument("--resume", action="store_true", help="keep what is finished in --out")
    parser.set_defaults(verb=ptq_verb)
    return parser


def ptq_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit ptq"""
    recipe = ptq_recipe(arguments)
    bits = f"w{arguments.weight_bits}a{arguments.activation_bits}"
    out = arguments.out or Path("runs") / f"ptq_{Path(arguments.model).stem}_{arguments.method}_{bits}"
    result = run_recipe(
        recipe,
        out,
        arguments.resume,
        max_eval_images=arguments.max_images,
        show_placement=arguments.placement,
    )
    if is_main():  # the others have no result
        say(arguments, *ptq_lines(result), *what_was_written(out, result))
    return result


def ptq_lines(result: dict[str, Any]) -> list[str]:
    """A result in words."""
    lines = [f"{result['method']}, {result['images']} images"]
    if result["top1"] is not None:
        lines.append(f"top-1        {result['top1']:.2f} % (float {result['top1_float']:.2f} %)")
    lines.append(f"same class   {result['agreement_float']:.2f} % of the images as the float model")
    lines.append(f"cost         {result['gbitops']:.4g} GBitOPs, {result['artifact_kib']:.1f} KiB")
    lines.append(f"calibrated   in {result['calibration_seconds']:.1f} s")
    return [*lines, result["collapse"]] if result["collapse"] else lines


def ptq_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line stands for: no training, one method."""
    if arguments.calibration_images < 1:
        raise ValueError(f"--calibration-images is {arguments.calibration_images}; it takes at least one image")
    options = METHODS[arguments.method].uniform(arguments.weight_bits, arguments.activation_bits)
    if arguments.observer:
        if not hasattr(options, "observer"):
            able = [name for name in NAMES if hasattr(METHODS[name].uniform(8, 8), "observer")]
            raise ValueError(f"method {arguments.method!r} has no observer to choose; these have: {', '.join(able)}")
        options = dataclasses.replace(options, observer=OBSERVERS[arguments.observer])
    model, data = float_source(arguments.model, arguments)
    data = dataclasses.replace(
        data,
        train_split="" if data.dataset == "images" else data.train_split,
        batch_size=2,  # nothing is trained; the loader must be fillable
        eval_batch_size=min(data.eval_batch_size, arguments.calibration_images),
        cache_decoded=False,
    )
    return Recipe(
        method=arguments.method,
        seed=arguments.seed,
        model=model,
        data=data,
        calibration=arguments.calibration_images,
        quantize=options,
        fit=FitConfig(epochs=0),
    )
