"""The lock: continuous bits become final whole numbers whose exact cost fits the budget.

    1. round (the widths in force already are whole numbers)
    2. lower, while the exact cost is over the budget: the group that loses least per cost saved
    3. raise, while something still fits: the group that gains most per cost added
    4. exchange: raise one and lower others that pay for it, as long as the estimated loss falls; then once more 3

Losses are the Fisher-weighted errors of `sensitivity`. Between two whole numbers the cost is linear in the bits of one
group when the others stand still, so one gradient of it gives the exact change of every single move. (Milliseconds have a
kink at every whole number, so the gradient is taken a hair's breadth on the way.)

Rounding, repair and refill happen once, at a step count, and the result is saved state; the authors' code freezes the bits
where they are at one exact epoch, over or under budget, and a resume past that epoch sets them free again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .budget import Budget, BudgetError
from .cost import BitTable, Costs, bits_in_force, costs
from .sensitivity import Sensitivity

MOST_EXCHANGES = 500
HAIR = 1e-10  # of a bit: far less than a budget is checked to


@dataclass(frozen=True)
class _Moves:
    """What changing each group by one bit would do; each tensor (all learned groups,).

    gain     fall of the estimated loss, negative when bits are lowered
    price    rise of the cost, negative when bits are lowered
    allowed  the new width is a candidate
    """

    gain: Tensor
    price: Tensor
    allowed: Tensor

    def best(self, among: Tensor) -> int:
        """The allowed group with the most gain per price (raising) or the least loss per saving (lowering)."""
        ratio = self.gain / torch.where(self.price >= 0, self.price.clamp(min=1e-30), self.price)
        sign = -1.0 if bool((self.price < 0).any()) else 1.0
        return int(torch.where(among & self.allowed, sign * ratio, -torch.inf).argmax())


@torch.no_grad()
def lock(model: nn.Module, sensitivity: Sensitivity, budget: Budget, refill: bool = True) -> None:
    """Make the bits of `model` final, at or under the budget.

    refill  also raise and exchange (off for the ablation)

    Raises BudgetError when not even the smallest bits fit.
    """
    state = _State(model, sensitivity, budget)
    state.lower_to_budget()
    if refill:
        state.raise_in_budget()
        state.exchange()
        state.raise_in_budget()
    for name, quantizer in sensitivity.quantizers.items():
        quantizer.set_bits(state.bits[name].to(quantizer.bits))
        quantizer.lock()


class _State:
    """Whole-number bits under way, and the price of every single move."""

    def __init__(self, model: nn.Module, sensitivity: Sensitivity, budget: Budget) -> None:
        self.shape: Costs = costs(model)
        self.budget = budget
        quantizers = sensitivity.quantizers
        self.learned = tuple(quantizers)
        self.bits: BitTable = {name: value.cpu() for name, value in bits_in_force(model).items()}
        self.flat = torch.cat([self.bits[name] for name in quantizers])
        # Views of the flat vector: one change is seen by both.
        self.bits |= dict(zip(quantizers, self.flat.split([q.bit_groups for q in quantizers.values()]), strict=True))
        self.low = torch.cat([torch.full((q.bit_groups,), q.candidates[0]) for q in quantizers.values()])
        self.high = torch.cat([torch.full((q.bit_groups,), q.candidates[-1]) for q in quantizers.values()])
        widest = max(table.shape[1] for table in sensitivity.tables.values())
        tables = [falling(sensitivity.tables[name]) for name in quantizers]
        self.table = torch.cat([F.pad(table, (0, widest - table.shape[1])) for table in tables])

    def spent(self) -> float:
        return float(self.budget.spent(self.shape, self.bits))

    def room(self) -> float:
        return self.budget.limit * (1 + 1e-9) - self.spent()

    def moves(self, delta: int) -> _Moves:
        """Every change by `delta` of a single group."""
        with torch.enable_grad():
            leaf = (self.flat + delta * HAIR).requires_grad_()
            sizes = [len(self.bits[name]) for name in self.learned]
            parts = dict(zip(self.learned, leaf.split(sizes), strict=True))
            (price,) = torch.autograd.grad(self.budget.spent(self.shape, {**self.bits, **parts}), leaf)
        column = (self.flat - self.low).long().unsqueeze(1)
        target = (column + delta).clamp(0, self.table.shape[1] - 1)
        gain = (self.table.gather(1, column) - self.table.gather(1, target)).squeeze(1)
        new = self.flat + delta
        return _Moves(gain, price * delta, (new >= self.low) & (new <= self.high))

    def lower_to_budget(self) -> None:
        while self.room() < 0:
            moves = self.moves(-1)
            saving = moves.price < 0
            if not bool((saving & moves.allowed).any()):
                raise BudgetError(
                    f"the smallest allowed bits cost {self.spent():.6g} {self.budget.unit}, over {self.budget.limit:.6g}"
                )
            self.flat[moves.best(saving)] -= 1

    def raise_in_budget(self) -> None:
        while True:
            moves = self.moves(+1)
            fitting = moves.price <= self.room()
            if not bool((fitting & moves.allowed).any()):
                return
            self.flat[moves.best(fitting)] += 1

    def exchange(self) -> None:
        """Raise the best group and pay with the cheapest ones, while the sum of gains is positive."""
        open_groups = torch.ones(len(self.flat), dtype=torch.bool)
        for _ in range(MOST_EXCHANGES):
            raises = self.moves(+1)
            if not bool((open_groups & raises.allowed).any()):
                return
            raised = raises.best(open_groups)
            before, gain = self.flat.clone(), float(raises.gain[raised])
            self.flat[raised] += 1
            while self.room() < 0 and gain > 0:
                payments = self.moves(-1)
                saving = payments.price < 0
                saving[raised] = False
                if not bool((saving & payments.allowed).any()):
                    break
                paid = payments.best(saving)
                gain += float(payments.gain[paid])
                self.flat[paid] -= 1
            if self.room() < 0 or gain <= 0:
                self.flat.copy_(before)
                open_groups[raised] = False


def falling(table: Tensor) -> Tensor:
    """A table whose rows do not rise with more bits: estimation noise must not make fewer bits look better."""
    return table.cummin(1).values
