"""Budget: what the frozen model may cost, in exactly one unit.

    Budget(gbitops=12.883)             bit operations per image, in 10^9
    Budget(average_weight_bits=3.0)    mean bits of a quantized weight
    Budget(kib=2048)                   packed weights
    Budget(milliseconds=5.3, table="deit_tiny.latency.json")    time of one call, on the machine of the table (`latency`)
    Budget(uniform=3), Budget(uniform=(2, 3))    GBitOPs of the same model with these bits (of weights, of activations)
                                                 wherever bits are learned: what a uniform model would cost

Every unit goes through the same differentiable function of the bits (`spent`), so penalty, allocation and lock know no
units; they work with spent / limit, which makes a micro model and a large one feel a budget alike. Uniform bits are a
number only beside a model: `resolve_budget` makes GBitOPs of them, as `check_budget` does, where a training begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantizers.quantizer import named_quantizers, require_quantized
from ..spec import LearnedBits, check_bits
from .cost import BitTable, Costs, costs, uniform_bits
from .latency import latency_table, milliseconds

UNITS = ("gbitops", "average_weight_bits", "kib", "milliseconds", "uniform")


class BudgetError(ValueError):
    """The budget cannot be met by this model; the text has the reachable range."""


@dataclass(frozen=True)
class Budget:
    """One limit: set exactly one of the units.

    gbitops              bit operations per image, in 10^9
    average_weight_bits  mean bits of a quantized weight; activations cost nothing and go to their widest
    kib                  packed weights; what stays float comes on top in the file, activations cost nothing
    milliseconds         time of one call, on the machine of the table
    table                the latency table that milliseconds are looked up in
    uniform              bits, or (weight bits, activation bits): the GBitOPs of a model that has them wherever bits are learned
    """

    gbitops: float | None = None
    average_weight_bits: float | None = None
    kib: float | None = None
    milliseconds: float | None = None
    table: str | None = None
    uniform: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in UNITS if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"a budget needs exactly one of {', '.join(UNITS)}; given: {given or 'none'}")
        if self.uniform is not None:
            if not isinstance(self.uniform, (int, float)) and not (
                isinstance(self.uniform, tuple) and len(self.uniform) == 2
            ):
                raise ValueError(
                    f"Budget.uniform is {self.uniform!r}; it must be one number of bits, or a tuple (weight bits, activation bits)"
                )
            for bits in self.uniform_widths:
                check_bits("Budget.uniform", bits)
        elif not self.limit > 0:
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
        """Its value. Raises ValueError for uniform bits, which have one beside a model only: `resolve_budget`."""
        if self.uniform is not None:
            raise ValueError(
                f"a budget of uniform = {self.uniform} has no limit before qvit.bits.budget.resolve_budget"
            )
        return float(getattr(self, self.unit))

    @property
    def record(self) -> dict[str, float]:
        """{unit: limit}, as JSON files have it."""
        return {self.unit: self.limit}

    @property
    def uniform_widths(self) -> tuple[int, int]:
        """(weight bits, activation bits) of `uniform`."""
        assert self.uniform is not None
        return self.uniform if isinstance(self.uniform, tuple) else (self.uniform, self.uniform)

    def spent(self, shape: Costs, bits: BitTable) -> Tensor:
        """Cost of the given bits in this unit, a scalar tensor, differentiable in the bits.

        Uniform bits are counted in GBitOPs. Raises LatencyError when the table of a budget in milliseconds is missing,
        damaged or of another network.
        """
        match self.unit:
            case "gbitops" | "uniform":
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


def resolve_budget(budget: Budget, model: nn.Module) -> Budget:
    """The budget as a number: uniform bits in GBitOPs of the quantized `model`, any other unit as it is.

    Raises ValueError for uniform bits when the model learns none: they would be met by whatever its bits are.
    """
    if budget.uniform is None:
        return budget
    if not any(isinstance(quantizer.bits_spec, LearnedBits) for quantizer in named_quantizers(model).values()):
        raise ValueError(
            f"a budget of uniform = {budget.uniform} is for learned bits, and this model has none: leave the budget out, "
            "give it as gbitops, or learn bits (LearnedBits)"
        )
    return Budget(gbitops=float(costs(model).gbitops(uniform_bits(model, *budget.uniform_widths))))


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


def check_budget(model: nn.Module, budget: Budget | None) -> Budget | None:
    """Before any training: a float model needs no budget, learned bits need one, and it must be reachable.

    Returns the budget as a number (`resolve_budget`). Raises ValueError, of which BudgetError is one.
    """
    quantizers = named_quantizers(model).values()
    if budget is None:
        if any(quantizer.is_learned for quantizer in quantizers):
            raise ValueError(
                "the model has learned bits, so it needs a budget: qvit.Budget(gbitops=...), or [budget] in the recipe; "
                "uniform = 3 is what 3 bits everywhere cost"
            )
        return None
    budget = resolve_budget(budget, model)
    if quantizers:
        check_reachable(model, budget)
    return budget


def check_reachable(model: nn.Module, budget: Budget) -> None:
    """Raise BudgetError, before any training, when even the smallest bits cost more than the budget.

    Also when the budget is in milliseconds, lies under the cost of the largest bits, and bits do not change the time.
    """
    least, most = reachable(model, budget)
    ends = f"with the smallest allowed bits the model costs {least:.6g}, with the largest {most:.6g}"
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
