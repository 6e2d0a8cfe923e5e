"""Budget: what the frozen model may cost, in exactly one unit.

    Budget(gbitops=12.883)             bit operations per image, in 10^9
    Budget(average_weight_bits=3.0)    mean bits of a quantized weight
    Budget(kib=2048)                   packed weights
    Budget(milliseconds=5.3, table="deit_tiny.latency.json")    time of one call, on the machine of the table (`latency`)

Every unit goes through the same differentiable function of the bits (`spent`), so penalty, allocation and lock know no
units; they work with spent / limit, which makes a micro model and a large one feel a budget alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cost import BitTable, Costs, costs
from .latency import latency_table, milliseconds
from .quantizer import named_quantizers, require_quantized

UNITS = ("gbitops", "average_weight_bits", "kib", "milliseconds")


class BudgetError(ValueError):
    """The budget cannot be met by this model; the text has the reachable range."""


@dataclass(frozen=True)
class Budget:
    """One limit: set exactly one of the units. `table` is the latency table that milliseconds are looked up in."""

    gbitops: float | None = None
    average_weight_bits: float | None = None
    kib: float | None = None
    milliseconds: float | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in UNITS if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"a budget needs exactly one of {', '.join(UNITS)}; given: {given or 'none'}")
        if not self.limit > 0:
            raise ValueError(f"a budget must be positive; given {self.unit} = {self.limit}")
        if self.milliseconds is not None and self.table is None:
            raise ValueError(
                "a budget in milliseconds needs a table of the machine that will run the model: measure one with "
                "qvit-runtime bench MODEL --table FILE and give table=FILE"
            )
        if self.milliseconds is None and self.table is not None:
            raise ValueError(f"table is for a budget in milliseconds; given {self.unit} and table = {self.table!r}")

    @property
    def unit(self) -> str:
        """Name of the unit that is set."""
        return next(name for name in UNITS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """Its value."""
        return float(getattr(self, self.unit))

    def spent(self, shape: Costs, bits: BitTable) -> Tensor:
        """Cost of the given bits in this unit, a scalar tensor, differentiable in the bits.

        Raises LatencyError when the table of a budget in milliseconds is missing, damaged or of another network.
        """
        match self.unit:
            case "gbitops":
                return shape.gbitops(bits)
            case "average_weight_bits":
                return shape.average_weight_bits(bits)
            case "kib":
                return shape.kib(bits)
            case _:
                return milliseconds(latency_table(self.table), shape, bits)

    @property
    def caveat(self) -> str:
        """What else must be said of this budget, or nothing: on some processors bits do not change the time."""
        if self.table is None or latency_table(self.table).bits_matter:
            return ""
        return f"bits do not change the time on this path ({latency_table(self.table).path})"


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
    """Raise BudgetError, before any training, when even the smallest bits cost more than the budget.

    Also when the budget is in milliseconds, lies under the cost of the largest bits, and bits do not change the time.
    """
    least, most = reachable(model, budget)
    ends = f"with the smallest allowed bits the model costs {least:.4f}, with the largest {most:.4f}"
    if budget.caveat and budget.limit < most:
        raise BudgetError(
            f"a budget of {budget.limit:g} {budget.unit} cannot be met by choosing bits: {budget.caveat}; {ends}; "
            "give a budget in another unit, or a table of another path"
        )
    if least > budget.limit * (1 + 1e-9):
        raise BudgetError(
            f"a budget of {budget.limit:g} {budget.unit} cannot be met: {ends}; give a budget in that range or allow "
            "fewer bits"
        )
