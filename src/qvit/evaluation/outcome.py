"""The outcome of a row: what result.json and predictions.safetensors hold, whatever the method.

Cost has one definition, BitOPs = MACs x weight bits x activation bits. A module made of quantizers is asked (`cost`), any
other method's cost is read off its Program, where the integer products are (`qvit_runtime.products`).

Collapse. Post-training quantization at few bits, and training that went wrong, end in a network that is no use though every
number in it is finite. Such a row keeps its numbers and says in words that it collapsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import qvit_runtime
from qvit_runtime.inspection import describe
from qvit_runtime.products import code_shape, meeting_bits, products

from ..bits.allocate import spread
from ..bits.budget import Budget
from ..bits.cost import cost
from ..system.runs import Run, load_tensors, save_tensors
from .evaluate import Evaluation

PREDICTIONS = "predictions.safetensors"
CHANCE_FACTOR, LOST_POINTS = 3, 20

NOT_QUANTIZED: dict[str, Any] = {  # of a float row: every result.json has the same fields
    "gbitops": None,
    "budget_gbitops": None,
    "average_weight_bits": None,
    "average_activation_bits": None,
    "bits": {},
    "artifact": None,
    "collapse": None,
}


@dataclass(frozen=True)
class Judged:
    """Evaluations on the same images: the quantized module, its frozen program, the float model."""

    module: Evaluation
    program: Evaluation
    reference: Evaluation


def outcome(price: dict[str, Any], judged: Judged, budget: Budget | None, classes: int | None) -> dict[str, Any]:
    """Fields of result.json of a quantized row; `price` comes from one of the two functions below, `budget` is a number."""
    module, reference = judged.module, judged.reference
    return {
        "images": module.images,
        "top1": module.top1,
        "top1_float": reference.top1,
        "top1_frozen": judged.program.top1,
        "agreement_frozen": judged.program.agreement_with(module),
        "agreement_float": module.agreement_with(reference),
        "collapse": collapse(module.top1, reference.top1, classes),
        **price,
        "budget_gbitops": budget.gbitops if budget is not None else None,
        "budget": None if budget is None else budget.record,
        "artifact": "model.qvit",
    }


def collapse(top1: float | None, top1_float: float | None, classes: int | None) -> str | None:
    """Why a network counts as collapsed, in words, or None: hardly better than chance, or far under the float model.

    Percent; without labels (None) nothing can be said.
    """
    if top1 is None or top1_float is None:
        return None
    chance = 100 / classes if classes else 0.0
    if top1 < CHANCE_FACTOR * chance < top1_float:
        return f"collapsed: top-1 {top1:.2f} % is below {CHANCE_FACTOR} times chance ({chance:.2f} %)"
    if top1 < top1_float - LOST_POINTS:
        return f"collapsed: top-1 {top1:.2f} % is more than {LOST_POINTS} points under the float model ({top1_float:.2f} %)"
    return None


def cost_of_module(model: nn.Module) -> dict[str, Any]:
    """BitOPs, average bits, KiB of weights and the bits of every tensor of a module made of quantizers."""
    summary = cost(model)
    return {
        "gbitops": summary.gbitops,
        "average_weight_bits": summary.average_weight_bits,
        "average_activation_bits": summary.average_activation_bits,
        "weight_kib": summary.kib,
        "bits": {name: bits[0] if len(bits) == 1 else bits for name, bits in spread(model).items()},
    }


def cost_of_program(program: qvit_runtime.Program) -> dict[str, Any]:
    """The same of a program: its integer products, and the operands that meet in them."""
    totals = describe(program)["totals"]
    bits: dict[str, Any] = {}
    elements = weighted = 0.0
    for product in products(program):
        left, right = meeting_bits(program, product)
        for name, widths in ((product.left, left), (product.right, right)):
            bits[name] = int(widths.flat[0]) if len(np.unique(widths)) == 1 else np.unique(widths).tolist()
            if name in program.buffers:
                size = int(np.prod(code_shape(program, name)))
                elements, weighted = elements + size, weighted + size * float(widths.mean())
    return {
        "gbitops": totals["gbitops"],
        "average_weight_bits": totals["average_weight_bits"],
        "average_activation_bits": weighted / elements,
        "weight_kib": totals["packed_weight_bytes"] / 1024,
        "bits": bits,
    }


def save_predictions(run: Run, judged: Judged) -> None:
    """Keep the class that each of the three predicts for every image, so that rows can be compared in pairs."""
    found = {
        "labels": judged.module.labels,
        "module": judged.module.predictions,
        "program": judged.program.predictions,
        "float": judged.reference.predictions,
    }
    save_tensors(
        run.folder / PREDICTIONS, {name: torch.from_numpy(classes).int() for name, classes in found.items()}, {}
    )


def load_predictions(run: Path) -> dict[str, np.ndarray]:
    """{"labels", "module", "program", "float"}, int32 (images,) each. Raises CheckpointError for a missing file."""
    tensors, _ = load_tensors(run / PREDICTIONS)
    return {name: tensor.numpy() for name, tensor in tensors.items()}
