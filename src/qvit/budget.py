"""Budget: what the frozen model may cost, in exactly one unit.

    Budget(gbitops=12.883)             bit operations per image, in 10^9
    Budget(average_weight_bits=3.0)    mean bits of a quantized weight
    Budget(kib=2048)                   packed weights

Every unit goes through the same differentiable function of the bits (`spent`), so penalty, allocation and lock know no
units; they work with spent / limit, which makes a micro model and a large one feel a budget alike.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from .cost import BitTable, Costs, costs
from .quantizer import named_quantizers, require_quantized


class BudgetError(ValueError):
    """The budget cannot be met by this model; the text has the reachable range."""


@dataclass(frozen=True)
class Budget:
    """One limit; set exactly one of the fields."""

    gbitops: float | None = None
    average_weight_bits: float | None = None
    kib: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise ValueError(
                f"a budget needs exactly one of {', '.join(f.name for f in fields(self))}; given: {given or 'none'}"
            )
        if not self.limit > 0:
            raise ValueError(f"a budget must be positive; given {self.unit} = {self.limit}")

    @property
    def unit(self) -> str:
        """Name of the field that is set."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def limit(self) -> float:
        """Its value."""
        return float(getattr(self, self.unit))

    def spent(self, shape: Costs, bits: BitTable) -> Tensor:
        """Cost of the given bits in this unit, a scalar tensor, differentiable in the bits."""
        match self.unit:
            case "gbitops":
                return shape.gbitops(bits)
            case "average_weight_bits":
                return shape.average_weight_bits(bits)
            case _:
                return shape.kib(bits)


def reachable(model: nn.Module, budget: Budget) -> tuple[float, float]:
    """(least, most) that the model can cost in the budget's unit, given which bits are learned and within which range."""
    shape = costs(model)
    ends = []
    for pick in (0, -1):
        bits = {
            name: torch.full((quantizer.bit_groups,), float(quantizer.candidates[pick]), dtype=torch.float64)
            if quantizer.is_learned
            else quantizer.bit_width.double().cpu()
            for name, quantizer in require_quantized(model).items()
        }
        ends.append(float(budget.spent(shape, bits)))
    return ends[0], ends[1]


def check_budget(model: nn.Module, budget: Budget | None) -> None:
    """Before any training: a float model needs no budget, learned bits need one, and it must be reachable.

    Raises ValueError, of which BudgetError is one.
    """
    quantizers = named_quantizers(model).values()
    if budget is None:
        if any(quantizer.is_learned for quantizer in quantizers):
            raise ValueError(
                "the model has learned bits, so it needs a budget: qvit.Budget(gbitops=...), or [budget] in the recipe"
            )
    elif quantizers:
        check_reachable(model, budget)


def check_reachable(model: nn.Module, budget: Budget) -> None:
    """Raise BudgetError, before any training, when even the smallest bits cost more than the budget."""
    least, most = reachable(model, budget)
    if least > budget.limit * (1 + 1e-9):
        raise BudgetError(
            f"a budget of {budget.limit:g} {budget.unit} cannot be met: with the smallest allowed bits the model costs "
            f"{least:.4f}, with the largest {most:.4f}; give a budget in that range or allow fewer bits"
        )
