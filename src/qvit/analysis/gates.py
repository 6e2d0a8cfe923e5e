"""Gate: a quantizer that acts on chosen groups and passes the others through, so that one model is all variants.

A variant of an analysis ("only head 2 of block 4", "all but the GELU outputs") differs from the next one in which
quantizers act, and in nothing else. Copies of the model would differ in memory; hooks that put the input back would pay for
every quantization that they throw away. A gate stands where the quantizer was and asks it only when it is needed:

    no group        x
    all groups      Q(x)
    some groups     Q(x) on those, x on the others

The gates go into the analysis' own quantized copy, after calibration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..quantizers.fake_quantize import grouped
from ..quantizers.quantizer import Quantizer
from .components import Selection


class Gate(nn.Module):
    """Wraps a calibrated quantizer; `groups` are the bit groups that it acts on, none at first."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.groups: frozenset[int] = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """x with the chosen groups fake-quantized, same shape."""
        if not self.groups:
            return x
        values = self.quantizer(x)
        count = self.quantizer.bit_groups
        if len(self.groups) == count:
            return values
        acts = torch.tensor([group in self.groups for group in range(count)], device=x.device).view(1, -1, 1)
        chosen, passed = (grouped(t, count, self.quantizer.axis) for t in (values, x))
        return torch.where(acts, chosen, passed).view(x.shape)


def install_gates(model: nn.Module) -> dict[str, Gate]:
    """Put a gate before every quantizer of `model`, in place; returns them by tensor name, as `named_quantizers` has it."""
    quantizers = {name: module for name, module in model.named_modules() if isinstance(module, Quantizer)}
    gates = {name: Gate(quantizer) for name, quantizer in quantizers.items()}
    for name, gate in gates.items():
        model.set_submodule(name, gate)
    return {name.removesuffix("_quantizer"): gate for name, gate in gates.items()}


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """The gates of a model that has them, by tensor name."""
    return {name.removesuffix("_quantizer"): gate for name, gate in model.named_modules() if isinstance(gate, Gate)}


def open_gates(gates: dict[str, Gate], selection: Selection) -> None:
    """Let exactly the selected groups be quantized."""
    for name, gate in gates.items():
        gate.groups = selection.get(name, frozenset())
