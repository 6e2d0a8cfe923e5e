"""qvit cost: what a model costs at given bits, a recipe's model and its budget, or a run at its own bits.

qvit cost MODEL --weight-bits 4 --activation-bits 4
qvit cost RECIPE --weight-bits 2 --activation-bits 3 --set model.name=deit_small_patch16_224
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

import qvit_runtime

from ..bits.budget import Budget, reachable, resolve_budget
from ..bits.cost import cost, uniform_bits
from ..evaluation.outcome import cost_of_program
from ..methods import METHODS, Method, learns_bits
from ..network.placement import format_placement
from ..pipeline.finished import load, read_recipe
from ..pipeline.float_model import create_float_model
from ..quantizers.quantizer import named_quantizers
from ..settings.recipe import FLOAT, ModelConfig, Recipe, load_recipe
from ..spec import check_bits
from .output import say
from .run import add_set

OF_NO_RUN = ("weight-bits", "activation-bits", "num-classes")
BITS = 4  # where the command line does not say


def add_cost(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("cost", help="BitOPs, average bits and KiB of a model")
    parser.add_argument("model", help="timm model name, recipe (its model as it quantizes it), or run directory")
    bits_help = f"of a timm model, or of all that a recipe learns, 2 to 8 (default: {BITS}); a run has its own"
    parser.add_argument("--weight-bits", type=int, metavar="N", help=bits_help)
    parser.add_argument("--activation-bits", type=int, metavar="N", help=bits_help)
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="size of the classifier of a timm model or a recipe's"
    )
    add_set(parser)
    parser.add_argument("--placement", action="store_true", help="also print where every bit and float op sits")
    parser.set_defaults(verb=cost_verb)
    return parser


def cost_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit cost"""
    path = Path(arguments.model)
    limits: dict[str, Any] = {"budget": None, "reach": None}
    if arguments.set and path.suffix != ".toml":
        raise ValueError(
            f"--set changes a recipe, and {arguments.model} is none; leave it out or give a recipe (.toml)"
        )
    if path.is_dir():
        method, model = _of_run(path, arguments)
    elif path.suffix == ".toml":
        recipe = load_recipe(path, arguments.set)
        method, model = _of_recipe(recipe, arguments)
        limits = _limits(recipe, model)
    else:
        method, model = _of_float(ModelConfig(name=arguments.model), arguments)
    if method.quantizers:
        summary = dataclasses.asdict(cost(model))
    else:
        summary = cost_of_program(qvit_runtime.load(path / "model.qvit"))
        summary["kib"] = summary.pop("weight_kib")
    if arguments.placement:
        say(arguments, format_placement(method.placement(model)), "")
    for key in ("gbitops", "average_weight_bits", "average_activation_bits", "kib"):
        say(arguments, f"{key:<24} {summary[key]:.5g}")  # a micro model has thousandths of a GBitOP
    for unit, limit in (limits["budget"] or {}).items():
        say(arguments, f"{'budget':<24} {limit:.5g} {unit}")
    for unit, (least, most) in (limits["reach"] or {}).items():
        say(arguments, f"{'learned bits can cost':<24} {least:.5g} to {most:.5g} {unit}")
    return {**summary, **limits}


def _of_run(run: Path, arguments: argparse.Namespace) -> tuple[Method, nn.Module]:
    given = [f"--{name}" for name in OF_NO_RUN if getattr(arguments, name.replace("-", "_")) is not None]
    if given:
        raise ValueError(f"{run} is a run, which has bits and classes of its own; leave {', '.join(given)} out")
    name = read_recipe(run).method
    if name == FLOAT:
        raise ValueError(f"{run} is a float run: nothing of it is quantized")
    return METHODS[name], load(run)


def _of_float(config: ModelConfig, arguments: argparse.Namespace) -> tuple[Method, nn.Module]:
    """A model of which nobody says how it is quantized: uniformly."""
    method = METHODS["lsq"]
    options = method.uniform(*_bits(arguments))
    return method, method.quantize(_without_weights(config, arguments), options)


def _of_recipe(recipe: Recipe, arguments: argparse.Namespace) -> tuple[Method, nn.Module]:
    """The model of a recipe as it quantizes it, what it learns at the bits of the arguments."""
    if recipe.method == FLOAT:
        return _of_float(recipe.model, arguments)
    method = METHODS[recipe.method]
    if not method.quantizers:
        raise ValueError(
            f"what method {recipe.method!r} costs is read off its program: run {arguments.model}, then qvit cost RUN"
        )
    asked = [f"--{kind}-bits" for kind in ("weight", "activation") if getattr(arguments, f"{kind}_bits") is not None]
    if asked and not learns_bits(recipe.quantize):
        raise ValueError(
            f"{arguments.model} has fixed bits, and {' and '.join(asked)} set those that are learned; leave it out, or change "
            "[quantize] with --set"
        )
    model = method.quantize(_without_weights(recipe.model, arguments), recipe.quantize)
    weight_bits, activation_bits = _bits(arguments)
    check_bits("--weight-bits", weight_bits)
    check_bits("--activation-bits", activation_bits)
    quantizers = named_quantizers(model)
    for name, widths in uniform_bits(model, weight_bits, activation_bits).items():
        quantizers[name].bit_width.copy_(widths)  # also where they could not be learned: this model is only looked at
    return method, model


def _bits(arguments: argparse.Namespace) -> tuple[int, int]:
    """(weight bits, activation bits) of the arguments"""
    given = (arguments.weight_bits, arguments.activation_bits)
    weight_bits, activation_bits = (BITS if bits is None else bits for bits in given)
    return weight_bits, activation_bits


def _without_weights(config: ModelConfig, arguments: argparse.Namespace) -> nn.Module:
    classes = arguments.num_classes or config.num_classes
    return create_float_model(dataclasses.replace(config, pretrained=False, checkpoint="", num_classes=classes))


def _limits(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """What a recipe allows and what its bits can cost: "budget" {unit: limit}, "reach" {unit: (least, most)}, or None."""
    learned = recipe.method != FLOAT and learns_bits(recipe.quantize)
    budget = None if recipe.budget is None or recipe.method == FLOAT else resolve_budget(recipe.budget, model)
    ruler = budget or Budget(gbitops=1.0)  # its unit is all that `reachable` reads
    return {
        "budget": None if budget is None else budget.record,
        "reach": {ruler.unit: reachable(model, ruler)} if learned else None,
    }
