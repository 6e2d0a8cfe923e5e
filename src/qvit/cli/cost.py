"""qvit cost: what a model costs at given bits, or a run at its own.

qvit cost MODEL --weight-bits 4 --activation-bits 4
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import qvit_runtime

from ..cost import cost
from ..finished import load, read_recipe
from ..float_model import create_float_model
from ..methods import METHODS
from ..outcome import cost_of_program
from ..placement import format_placement
from ..recipe import FLOAT, ModelConfig
from .output import say


def add_cost(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("cost", help="BitOPs, average bits and KiB of a model")
    parser.add_argument("model", help="timm model name, or a run directory")
    bits_help = "of a timm model, 2 to 8 (default: %(default)s); a run has its own"
    parser.add_argument("--weight-bits", type=int, default=4, metavar="N", help=bits_help)
    parser.add_argument("--activation-bits", type=int, default=4, metavar="N", help=bits_help)
    parser.add_argument("--placement", action="store_true", help="also print where every bit and float op sits")
    parser.set_defaults(verb=cost_verb)
    return parser


def cost_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit cost"""
    run = Path(arguments.model)
    if run.is_dir():
        name = read_recipe(run).method
        if name == FLOAT:
            raise ValueError(f"{run} is a float run: nothing of it is quantized")
        method, model = METHODS[name], load(run)
    else:
        method = METHODS["lsq"]
        options = method.uniform(arguments.weight_bits, arguments.activation_bits)
        model = method.quantize(create_float_model(ModelConfig(name=arguments.model)), options)
    if method.quantizers:
        summary = dataclasses.asdict(cost(model))
    else:
        summary = cost_of_program(qvit_runtime.load(run / "model.qvit"))
        summary["kib"] = summary.pop("weight_kib")
    if arguments.placement:
        say(arguments, format_placement(method.placement(model)), "")
    for key in ("gbitops", "average_weight_bits", "average_activation_bits", "kib"):
        say(arguments, f"{key:<24} {summary[key]:.5g}")  # a micro model has thousandths of a GBitOP
    return summary
