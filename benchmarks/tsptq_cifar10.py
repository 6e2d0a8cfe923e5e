"""TSPTQ (our reconstruction) against min-max and float on the micro DeiT, all validation images, paired.

    python benchmarks/tsptq_cifar10.py --json experiments/results/tsptq_cifar10.json

Model and data are those of recipes/cifar10; every row is calibrated on the same 128 training images (evaluation transform,
no labels). Min-max: per-channel weights max|w| / qmax; activations per tensor, max|x| / qmax where they are signed, the range
[0, max] for softmax and [min, max] for GELU. All rows keep patch embedding and classifier at 8 bits. Differences are
those of the outcomes of the same images, with 95 % intervals (`qvit.paired`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qvit
from qvit.calibration.calibrate import float_forward, weight_owners
from qvit.evaluation.evaluate import evaluate
from qvit.evaluation.paired import paired
from qvit.methods import tsptq
from qvit.pipeline.float_model import create_float_model
from qvit.quantizers.fake_quantize import code_range, grouped
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.settings.recipe import load_recipe

RECIPE = Path("recipes/cifar10/uniform_w4a4.toml")
IMAGES = 128
WIDTHS = ((8, 8), (6, 6), (4, 4))


def min_max(model: nn.Module, bits: tuple[int, int], images: Tensor) -> nn.Module:
    """A copy of the model with the scales of the module docstring; (weight bits, activation bits)."""
    weights, activations = (qvit.FixedBits(width) for width in bits)
    spec = qvit.Spec(weights, activations, qvit.PerTensor(), qvit.PerChannel(), qvit.SingleScale())
    result = qvit.quantize(model, spec, quiet=True).eval()
    seen = {name: parameter.detach() for name, parameter in weight_owners(result).items()}
    quantizers = named_quantizers(result)
    handles = [
        quantizer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, quantizer in quantizers.items()
        if quantizer.batched
    ]
    with torch.no_grad(), float_forward(result):
        result(images)
    for handle in handles:
        handle.remove()
    for name, quantizer in quantizers.items():
        cover(quantizer, seen[name])
    return result


def cover(quantizer: Quantizer, values: Tensor) -> None:
    """The finest grid that clips none of the values."""
    view = grouped(values, quantizer.scale_groups, quantizer.axis).transpose(0, 1).reshape(quantizer.scale_groups, -1)
    low = view.amin(1) if quantizer.offset is not None else torch.zeros(len(view))
    reach = view.abs().amax(1) if quantizer.signed else view.amax(1) - low
    scale = reach / code_range(quantizer.per_scale(quantizer.bit_width).float(), quantizer.signed)[1]
    quantizer.set_bank(scale[:, None], low[:, None])


def measure() -> dict[str, Any]:
    """All rows and differences."""
    recipe = load_recipe(RECIPE)
    model = create_float_model(recipe.model)
    data = replace(qvit.resolve_data(recipe.data, model), cache_decoded=False)
    splits = qvit.open_data(data, recipe.seed)
    images = next(iter(splits.calibration))[0][:IMAGES]
    batches = list(splits.eval)
    rows: dict[str, dict[str, Any]] = {}
    correct: dict[str, np.ndarray] = {}

    def row(name: str, candidate: nn.Module, **more: Any) -> None:
        result = evaluate(candidate, batches)
        rows[name] = {"top1": result.top1, "images": result.labelled, **more}
        correct[name] = result.correct
        print(name, rows[name], flush=True)

    row("float", model)
    for bits in WIDTHS:
        name = f"{bits[0]}/{bits[1]}"
        config = tsptq.TSPTQ(*bits)
        quantized = tsptq.quantize(model, config, quiet=True)
        started = time.process_time()
        found = tsptq.calibrate(quantized, [images], config=config)
        seconds = time.process_time() - started
        start, end = (sum(getattr(product, at) for product in found.products.values()) for at in ("start", "end"))
        row(f"tsptq {name}", quantized, config=asdict(config), cpu_seconds=round(seconds, 1), objective=[start, end])
        row(f"min-max {name}", min_max(model, bits, images))
    differences = {
        f"{ours} - {theirs}": asdict(paired(correct[ours], correct[theirs]))
        for ours in (f"tsptq {w}/{a}" for w, a in WIDTHS)
        for theirs in ("float", ours.replace("tsptq", "min-max"))
    }
    return {"model": "deit_micro_cifar10", "calibration_images": IMAGES, "rows": rows, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    result = measure()
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
