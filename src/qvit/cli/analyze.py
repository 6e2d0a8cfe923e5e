"""qvit analyze: the verb's options, what it opens, and what it prints.

qvit analyze recipes/cifar10/float.toml --bits 2,3,4 --budget-gbitops 0.4509 --out runs/analysis
qvit analyze deit_tiny_patch16_224 --data imagenet --bits 3,4
qvit analyze deit_tiny_patch16_224 --checkpoint my.safetensors --num-classes 10 --data FOLDER_OF_IMAGES
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..analysis import INIT_BITS, RESULT, analyze
from ..analysis.config import AnalysisConfig
from ..analysis.data import open_analysis_data
from ..analysis.table import table
from ..data import resolve_data
from ..pipeline.float_model import create_float_model
from .data import add_source_options, float_source
from .output import say

DEFAULT = AnalysisConfig()


def add_analyze(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("analyze", help="which components, layers and heads break under quantization")
    parser.add_argument("what", help="timm model name, recipe (its float model), or run directory of a float run")
    add_source_options(parser)
    parser.add_argument(
        "--bits", type=_widths, default=DEFAULT.bits, metavar="N,N", help="bit-widths, 2 to 8 (default: 2,3,4)"
    )
    for name, text in (
        ("images", "images to measure on"),
        ("calibration-images", "training images to fit the scales to"),
        ("finetune-steps", "also train every component's variants for so many steps first (slow)"),
        ("seed", "of the calibration images and of training"),
        ("batch-size", "images at a time; their activations at every block are kept"),
    ):
        default = getattr(DEFAULT, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--budget-gbitops", type=float, metavar="G", help=f"also allocate bits under this budget, as {INIT_BITS}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/analysis_NAME")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted analysis in --out")
    parser.set_defaults(verb=analyze_verb)
    return parser


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of bit-widths such as 2,3,4") from error


def analyze_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit analyze"""
    config = AnalysisConfig(
        bits=arguments.bits,
        images=arguments.images,
        calibration_images=arguments.calibration_images,
        finetune_steps=arguments.finetune_steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    source, data = float_source(arguments.what, arguments)
    torch.manual_seed(config.seed)  # a model without weights is the same one on a resume
    model = create_float_model(source)
    # Decoding all training images once does not pay for an analysis, which reads a few of them.
    trains = config.finetune_steps > 0
    data = dataclasses.replace(data, eval_batch_size=config.batch_size, cache_decoded=trains)
    if not trains:
        data = dataclasses.replace(data, batch_size=2)  # nothing is trained; the loader must be fillable
    data = resolve_data(data, model)
    out = arguments.out or Path("runs") / f"analysis_{Path(arguments.what).stem}"
    images = open_analysis_data(data, config)
    budget = arguments.budget_gbitops
    result = analyze(model, images, config, out, budget_gbitops=budget, resume=arguments.resume)
    if budget is None:
        wrote, then = str(out / RESULT), "the same with --resume --budget-gbitops G, for an allocation of bits"
    else:
        wrote, then = (
            f"{out / RESULT} and {out / INIT_BITS}",
            f"start learned bits there: qvit run RECIPE --set init_bits={out / INIT_BITS}",
        )
    trained = (table(result, config.finetune_steps), "") if config.finetune_steps else ()
    say(arguments, table(result), "", *trained, *result["verdict"], "", f"wrote {wrote}", f"next: {then}")
    return result
