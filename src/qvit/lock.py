"""The lock: continuous bits become final whole numbers whose exact cost fits the budget.

    1. round (the widths in force already are whole numbers)
    2. lower, while the exact cost is over the budget: the group that loses least per cost saved
    3. raise, while something still fits: the group that gains most per cost added
    4. exchange: raise one and lower others that pay for it, as long as the estimated loss falls; then once more 3

Losses are the Fisher-weighted errors of `sensitivity`. The cost is linear in the bits of one group when the others stand
still, so one gradient of it gives the exact change of every single move.

Rounding, repair and refill happen once, at a step count, and the result is saved state; the authors' code freezes the bits
where they are at one exact epoch, over or under budget, and a resume past that epoch sets them free again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .budget import Budget, BudgetError
from .cost import BitTable, Costs, bits_in_force, costs
from .sensitivity import Sensitivity

MOST_EXCHANGES = 500


@dataclass(frozen=True)
class _Move:
    name: str
    group: int
    delta: int
    gain: float  # fall of the estimated loss, negative when the move lowers bits
    price: float  # rise of the cost, negative when the move lowers bits


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
        self.bits: BitTable = {name: value.cpu() for name, value in bits_in_force(model).items()}
        self.low = {name: q.candidates[0] for name, q in sensitivity.quantizers.items()}
        self.tables = {name: falling(table) for name, table in sensitivity.tables.items()}

    def spent(self) -> float:
        return float(self.budget.spent(self.shape, self.bits))

    def room(self) -> float:
        return self.budget.limit * (1 + 1e-9) - self.spent()

    def moves(self, delta: int) -> list[_Move]:
        """Every allowed change by `delta` of a single group."""
        with torch.enable_grad():
            leaves = {name: self.bits[name].clone().requires_grad_() for name in self.tables}
            spent = self.budget.spent(self.shape, {**self.bits, **leaves})
            prices = torch.autograd.grad(spent, list(leaves.values()), allow_unused=True, materialize_grads=True)
        found = []
        for (name, table), price in zip(self.tables.items(), prices, strict=True):
            for group, bits in enumerate(self.bits[name].long().tolist()):
                column = bits - self.low[name]
                if 0 <= column + delta < table.shape[1]:
                    gain = float(table[group, column] - table[group, column + delta])
                    found.append(_Move(name, group, delta, gain, float(price[group]) * delta))
        return found

    def apply(self, move: _Move) -> None:
        self.bits[move.name][move.group] += move.delta

    def undo(self, move: _Move) -> None:
        self.bits[move.name][move.group] -= move.delta

    def lower_to_budget(self) -> None:
        while self.room() < 0:
            moves = [move for move in self.moves(-1) if move.price < 0]
            if not moves:
                raise BudgetError(
                    f"the smallest allowed bits cost {self.spent():.4f} {self.budget.unit}, over {self.budget.limit:.4f}"
                )
            self.apply(min(moves, key=lambda move: move.gain / move.price))

    def raise_in_budget(self) -> None:
        while True:
            room = self.room()
            moves = [move for move in self.moves(+1) if move.price <= room]
            if not moves:
                return
            self.apply(max(moves, key=lambda move: move.gain / max(move.price, 1e-30)))

    def exchange(self) -> None:
        """Raise the best group and pay with the cheapest ones, while the sum of gains is positive."""
        refused: set[tuple[str, int]] = set()
        for _ in range(MOST_EXCHANGES):
            raises = [m for m in self.moves(+1) if (m.name, m.group) not in refused]
            if not raises:
                return
            best = max(raises, key=lambda move: move.gain / max(move.price, 1e-30))
            made = [best]
            self.apply(best)
            while self.room() < 0:
                payments = [m for m in self.moves(-1) if m.price < 0 and (m.name, m.group) != (best.name, best.group)]
                if not payments:
                    break
                made.append(min(payments, key=lambda move: move.gain / move.price))
                self.apply(made[-1])
            if self.room() < 0 or sum(move.gain for move in made) <= 0:
                for move in reversed(made):
                    self.undo(move)
                refused.add((best.name, best.group))


def falling(table: Tensor) -> Tensor:
    """A table whose rows do not rise with more bits: estimation noise must not make fewer bits look better."""
    return table.cummin(1).values
