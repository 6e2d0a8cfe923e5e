"""Allocation: how bit-widths move while they are learned.

Two ways, both selectable:

`Lagrangian` (default). At the best allocation under a budget every bit buys the same benefit per cost: with E the table of
`sensitivity` and C the cost, there is one multiplier m with

    rho_g = -dE/db_g / (dC/db_g) = m     for every group g that is not at an end of its range.

E falls about fourfold per bit, so log4(rho_g / m) is the number of bits that group g is away from that point. Each update
moves every bit by a fraction of it,

    b_g <- clamp(b_g + rate * log4(rho_g / m), low, high),

and m is not tuned: it is solved for by bisection such that the continuous cost meets the budget, from above or below. E is
interpolated between the two neighbouring grids in the logarithm, so the gradient sees both. Groups without a cost (for
example activations under a budget of average weight bits) go up to their end.

`Published` (arXiv 2201.07703, section on the loss, and code): bits are parameters of AdamW with a learning rate of their
own, driven by the clipping gradient of the task and by

    weight * max(cost / budget - 1, 0)^2.

The authors' penalty is in squared GBitOPs over the budget; relative to the budget a micro model and a large one feel it
alike. Adam normalises each bit's gradient and the one-sided penalty has one sign everywhere, so in a short run all bits move
in step and end uniform (a test shows it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantizers.quantizer import Quantizer, require_quantized
from .budget import Budget
from .cost import BitTable, Costs, bits_in_force, costs
from .sensitivity import Sensitivity


@dataclass(frozen=True)
class Lagrangian:
    """Benefit per cost through a solved multiplier.

    rate           fraction of the distance to the optimum that an update moves a bit
    largest        largest move of a bit in one update
    every          optimizer steps between two probes (each followed by an update)
    warm_up        probes before training, from which the first allocation is solved
    decay          memory of the running sensitivity, per probe
    weight_factor  share of the estimated error of weights that counts: training makes up for the rest (`sensitivity`)
    """

    rate: float = 0.3
    largest: float = 0.5
    every: int = 16
    warm_up: int = 16
    decay: float = 0.9
    weight_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "largest", "every", "weight_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Lagrangian.{name} is {getattr(self, name)}; it must be positive")
        if self.warm_up < 0:
            raise ValueError(f"Lagrangian.warm_up is {self.warm_up}; it must not be negative")
        if not 0 <= self.decay < 1:
            raise ValueError(f"Lagrangian.decay is {self.decay}; it must lie in [0, 1)")


@dataclass(frozen=True)
class Published:
    """The paper's penalty with bits in AdamW.

    weight         of the penalty, in units of the loss
    learning_rate  of the bits; None means two bits over stage 1, since Adam moves a bit by about its rate per step
    """

    weight: float = 10.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Published.{name} is {value}; it must be positive")


Allocation = Lagrangian | Published

SETTLED = 1e-3  # bits that move less than this have arrived
SLOWEST_FALL = 0.02  # an error that does not fall with more bits (noise) is taken to fall by this, in the logarithm


def continuous_bits(model: nn.Module) -> BitTable:
    """Bits as they are learned, where they are: with gradients where they are parameters."""
    return {
        name: quantizer.bits if quantizer.is_learned else quantizer.bit_width
        for name, quantizer in require_quantized(model).items()
    }


def penalty(model: nn.Module, shape: Costs, budget: Budget, weight: float) -> Tensor:
    """Published's budget term, a scalar with a gradient to every learned bit."""
    bits = {name: value.double() for name, value in continuous_bits(model).items()}
    excess = budget.spent(shape, bits) / budget.limit - 1
    return weight * torch.relu(excess).square()


def log_table(table: Tensor) -> Tensor:
    """Logarithm of a sensitivity table (groups, candidates), made strictly falling."""
    logs = table.clamp(min=1e-30).log()
    for column in range(1, logs.shape[1]):
        logs[:, column] = torch.minimum(logs[:, column], logs[:, column - 1] - SLOWEST_FALL)
    return logs


def benefit(logs: Tensor, bits: Tensor, low: int) -> Tensor:
    """-dE/db at continuous bits (groups,), from the logarithm of the table."""
    last = logs.shape[1] - 2
    index = (bits - low).floor().clamp(0, last).long().unsqueeze(1)
    left, right = logs.gather(1, index).squeeze(1), logs.gather(1, index + 1).squeeze(1)
    position = bits - low - index.squeeze(1)
    return (left + (right - left) * position).exp() * (left - right)


def step(
    learned: dict[str, Quantizer],
    tables: dict[str, Tensor],
    shape: Costs,
    budget: Budget,
    bits: BitTable,
    config: Lagrangian,
) -> BitTable:
    """One move of all bits towards equal benefit per cost at the budget; returns the new continuous bits."""
    with torch.enable_grad():
        leaves = {name: bits[name].clone().requires_grad_() for name in learned}
        price = torch.autograd.grad(
            budget.spent(shape, {**bits, **leaves}), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    sizes = [quantizer.bit_groups for quantizer in learned.values()]
    now = torch.cat([bits[name] for name in learned])
    least = torch.cat([torch.full((q.bit_groups,), q.candidates[0], dtype=now.dtype) for q in learned.values()])
    most = torch.cat([torch.full((q.bit_groups,), q.candidates[-1], dtype=now.dtype) for q in learned.values()])
    gain = torch.cat([benefit(tables[name], bits[name], q.candidates[0]) for name, q in learned.items()])
    distance = (gain.log() - torch.cat(price).clamp(min=1e-30).log()) / math.log(4)

    def move(multiplier: float) -> BitTable:
        shift = ((distance - multiplier) * config.rate).clamp(-config.largest, config.largest)
        moved = torch.minimum(torch.maximum(now + shift, least), most)
        return {**bits, **dict(zip(learned, moved.split(sizes), strict=True))}

    reach = config.largest / config.rate + 1  # beyond it, every bit makes its largest move
    low, high = float(distance.min()) - reach, float(distance.max()) + reach
    while high - low > 1e-10 * (1 + abs(high)):
        middle = (low + high) / 2
        if float(budget.spent(shape, move(middle))) > budget.limit:
            low = middle
        else:
            high = middle
    return move(high)


@torch.no_grad()
def update(model: nn.Module, sensitivity: Sensitivity, budget: Budget, config: Lagrangian, moves: int = 1) -> bool:
    """Move the learned bits with the current tables and settle the widths in force; true when one changed.

    moves  at most this many; they end when no bit moves any more
    """
    shape, learned = costs(model), sensitivity.quantizers
    tables = {name: log_table(table) for name, table in sensitivity.tables.items()}
    bits = {name: value.detach().cpu().double() for name, value in continuous_bits(model).items()}
    for _ in range(moves):
        before, bits = bits, step(learned, tables, shape, budget, bits, config)
        if max(float((bits[name] - before[name]).abs().max()) for name in learned) < SETTLED:
            break
    changed = False
    for name, quantizer in learned.items():
        quantizer.bits.copy_(bits[name].to(quantizer.bits))
        changed |= quantizer.settle_bits()
    return changed


def spread(model: nn.Module) -> dict[str, list[int]]:
    """Bit-widths in force by tensor name, for histories and reports."""
    return {name: value.long().tolist() for name, value in bits_in_force(model).items()}
