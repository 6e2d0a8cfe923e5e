"""Start bits from an analysis: the allocation that its sensitivities ask for under a budget, as a file and on a model.

The measured loss of a site at n bits is the noise that it alone makes in the logits, over their energy. Noise of independent
sites adds up, so the sum over sites stands for the loss of the whole, and each bit-width of a site has a price in GBitOPs. The
allocation is greedy: all sites begin at the most bits that were analysed; while the model is over the budget, the site that
loses least per GBitOP saved gives up a bit; what is left of the budget is spent, and bits are exchanged while that lowers the
sum. That is the procedure of `lock` with these losses in the place of Fisher-weighted errors, so it is used as it is.

A width between two analysed ones takes their geometric mean (noise falls by a constant factor per bit); widths outside are not
allocated: nothing was measured there. Patch embedding and classifier keep their fixed 8 bits.

A recipe names the file as `init_bits`; in Python, `apply_init_bits` before `fit(..., allocated=True)`.

init_bits.json: {"version": 1, "budget_gbitops", "gbitops", "bits": {tensor: [bits of each group]}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..network.convert import quantize
from ..quantizers.quantizer import Quantizer, require_quantized
from ..spec import LearnedBits, PerHead, Spec
from .allocate import spread
from .budget import Budget, check_reachable
from .cost import cost
from .lock import lock
from .sensitivity import Sensitivity

VERSION = 1


def allocate_bits(model: nn.Module, sites: list[dict[str, Any]], budget_gbitops: float) -> dict[str, Any]:
    """The content of init_bits.json.

    model  the float model that was analysed
    sites  `sites` of its analysis.json

    Raises ValueError when a single bit-width was analysed, BudgetError when the fewest bits cost more than the budget.
    """
    analysed = sorted({site["bits"] for site in sites})
    budget = Budget(gbitops=budget_gbitops)
    quantized = _to_allocate(model, analysed, budget)
    sensitivity = Sensitivity(quantized)
    for name, table in sensitivity.tables.items():
        table.copy_(_losses([site for site in sites if site["tensor"] == name], analysed))
    lock(quantized, sensitivity, budget)
    chosen = spread(quantized)
    return {
        "version": VERSION,
        "budget_gbitops": budget_gbitops,
        "gbitops": cost(quantized).gbitops,
        "bits": {name: chosen[name] for name in sensitivity.quantizers},
    }


def check_allocation(model: nn.Module, bits: Sequence[int], budget_gbitops: float) -> None:
    """Raise what `allocate_bits` will raise once the float model has been analysed at these bits, before that takes hours."""
    _to_allocate(model, bits, Budget(gbitops=budget_gbitops))


def _to_allocate(model: nn.Module, analysed: Sequence[int], budget: Budget) -> nn.Module:
    """The model with bits that may be anything from the fewest to the most analysed ones, all at the most."""
    if len(analysed) < 2:
        raise ValueError("an allocation chooses between bit-widths: give --bits two or more of them, such as 2,3,4")
    low, high = min(analysed), max(analysed)
    bits = LearnedBits(low, high, start=float(high))
    quantized = quantize(model, Spec(bits, bits, PerHead()), quiet=True)
    check_reachable(quantized, budget)
    return quantized


def _losses(sites: list[dict[str, Any]], analysed: list[int]) -> Tensor:
    """(groups, widths from the fewest to the most analysed bits) of logit noise over signal."""
    decibels = {site["bits"]: site["logit_sqnr_db"] for site in sites}
    silent = 300.0  # dB of a site that makes no noise at all
    known = np.array([[silent if db is None else db for db in decibels[bits]] for bits in analysed])
    widths = np.arange(analysed[0], analysed[-1] + 1)
    return torch.from_numpy(np.stack([10 ** (-np.interp(widths, analysed, column) / 10) for column in known.T]))


def apply_init_bits(model: nn.Module, path: Path | str) -> None:
    """Start the learned bits of a quantized model where the file says; fixed and locked bits stay as they are.

    Raises ValueError when the file is missing, is none, or belongs to another model or to other groups.
    """
    path = Path(path)
    bits = _read(path)
    learned = {name: quantizer for name, quantizer in require_quantized(model).items() if quantizer.is_learned}
    if not learned:
        raise ValueError(f"the model has no learned bits that {path} could start; use LearnedBits in its spec")
    missing, unknown = sorted(set(learned) - set(bits)), sorted(set(bits) - set(require_quantized(model)))
    if missing or unknown:
        what = f"has no bits for {missing[0]}" if missing else f"has bits for {unknown[0]}, which the model has not"
        raise ValueError(f"{path} {what}: it was made for another model")
    for name, quantizer in learned.items():
        _check(path, name, quantizer, bits[name])
    for name, quantizer in learned.items():
        quantizer.set_bits(torch.tensor(bits[name]).to(quantizer.bits))


def _read(path: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no init_bits file {path}; qvit analyze writes one with --budget-gbitops") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION or not isinstance(content.get("bits"), dict):
        raise ValueError(f"{path} is no init_bits file of version {VERSION}; qvit analyze --budget-gbitops writes one")
    return content["bits"]


def _check(path: Path, name: str, quantizer: Quantizer, bits: list[int]) -> None:
    if len(bits) != quantizer.bit_groups:
        raise ValueError(
            f"{path} has {len(bits)} groups for {name}, the model has {quantizer.bit_groups}; an analysis is head-wise "
            "and has no hidden groups: use heads = PerHead and hidden_groups = 1"
        )
    outside = [width for width in bits if width not in quantizer.candidates]
    if outside:
        low, high = quantizer.candidates[0], quantizer.candidates[-1]
        raise ValueError(f"{path} gives {name} {outside[0]} bits; its spec allows {low} to {high}")
