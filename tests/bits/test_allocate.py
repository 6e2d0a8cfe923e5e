"""Allocation: benefit per cost evens out at the budget; the published penalty, and what it does to bits under Adam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian, Published, benefit, continuous_bits, log_table, penalty, step
from qvit.bits.budget import Budget
from qvit.bits.cost import BitTable, cost, costs
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.spec import LearnedBits, Spec
from qvit.training.fit_config import FitConfig
from toy_models import mix_bits, uniform, vit
from toy_training import toy_run

QUICK = Lagrangian(rate=1.0, largest=10.0)


def learned(model: nn.Module) -> dict[str, Quantizer]:
    return {name: q for name, q in named_quantizers(model).items() if q.is_learned}


def random_logs(model: nn.Module, seed: int = 0, exact: bool = False) -> dict[str, Tensor]:
    """Logarithmic tables of c 4^-n with c over four decades; `exact` leaves the noise out."""
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for name, quantizer in learned(model).items():
        height = torch.randn(quantizer.bit_groups, 1, generator=generator, dtype=torch.float64) * 2
        fall = -math.log(4) * torch.arange(len(quantizer.candidates), dtype=torch.float64)
        noise = 0 if exact else 0.2 * torch.randn(quantizer.bit_groups, len(fall), generator=generator)
        tables[name] = log_table((height + fall + noise).exp())
    return tables


def start(model: nn.Module) -> BitTable:
    return {name: value.detach().double() for name, value in continuous_bits(model).items()}


def test_benefit_is_the_slope_of_the_interpolated_table() -> None:
    logs = log_table(torch.rand(7, 7, dtype=torch.float64).sort(dim=1, descending=True).values)

    def interpolated(bits: float, row: int) -> float:
        left = min(int(bits - 2), 5)
        share = bits - 2 - left
        return math.exp(float(logs[row, left] * (1 - share) + logs[row, left + 1] * share))

    for bits in (2.3, 4.5, 7.9):
        found = benefit(logs, torch.full((7,), bits, dtype=torch.float64), low=2)
        wanted = [(interpolated(bits - 1e-6, row) - interpolated(bits + 1e-6, row)) / 2e-6 for row in range(7)]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-9)
    ends = benefit(logs, torch.full((7,), 8.0, dtype=torch.float64), low=2)
    torch.testing.assert_close(ends, logs[:, 6].exp() * (logs[:, 5] - logs[:, 6]))


def test_log_table_falls_whatever_the_noise() -> None:
    logs = log_table(torch.tensor([[1.0, 2.0, 0.5, 0.0, 0.0]], dtype=torch.float64))
    assert torch.all(logs.diff(dim=1) <= -0.0199)
    assert logs[0, 0] == 0.0
    assert torch.isfinite(logs).all()


@pytest.mark.parametrize("unit", ["gbitops", "average_weight_bits", "kib"])
@pytest.mark.parametrize("bits", [2, 4, 7], ids=["from-below", "near", "from-above"])
def test_a_step_meets_the_budget_exactly(unit: str, bits: int) -> None:
    model = quantize(vit())
    for quantizer in learned(model).values():
        quantizer.set_bits(torch.full((quantizer.bit_groups,), float(bits)))
    budget = Budget(**{unit: getattr(cost(quantize(vit(), uniform(4))), unit)})
    shape = costs(model)
    moved = step(learned(model), random_logs(model), shape, budget, start(model), QUICK)
    spent = float(budget.spent(shape, moved))
    assert spent <= budget.limit
    assert spent == pytest.approx(budget.limit, rel=1e-9)
    assert all(torch.all((value >= 2) & (value <= 8)) for value in moved.values())


def test_small_steps_go_towards_the_budget_and_no_further_than_allowed() -> None:
    model = quantize(vit(), Spec(LearnedBits(3, 7), LearnedBits(3, 7)))
    budget, shape, bits = Budget(gbitops=1e-6), costs(model), start(model)
    config = Lagrangian(rate=1.0, largest=0.25)
    moved = step(learned(model), random_logs(model), shape, budget, bits, config)
    for name in learned(model):
        assert torch.all((moved[name] - bits[name]).abs() <= 0.25 + 1e-12)
        assert torch.all(moved[name] < bits[name])  # an impossible budget: everything falls as fast as it may
    for _ in range(20):
        moved = step(learned(model), random_logs(model), shape, budget, moved, config)
    assert all(torch.all(moved[name] == 3) for name in learned(model))


def test_benefit_per_cost_is_equal_at_the_end() -> None:
    """Where a group is inside its range, -dE/db over dC/db is one number for all."""
    model = quantize(vit())
    budget = Budget(gbitops=cost(quantize(vit(), uniform(4))).gbitops)
    tables, shape, bits = random_logs(model, exact=True), costs(model), start(model)
    for _ in range(60):
        bits = step(learned(model), tables, shape, budget, bits, Lagrangian())
    leaves = {name: bits[name].clone().requires_grad_() for name in learned(model)}
    budget.spent(shape, {**bits, **leaves}).backward()
    ratios, high_at_the_end = [], []
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        ratio = (benefit(tables[name], bits[name], 2) / leaf.grad).log()
        inside = (bits[name] > 2.001) & (bits[name] < 7.999)
        ratios.append(ratio[inside])
        high_at_the_end.append(ratio[bits[name] >= 7.999])
    inside_ratios = torch.cat(ratios)
    assert len(inside_ratios) > 20
    assert inside_ratios.max() - inside_ratios.min() < 0.01
    assert all(torch.all(r >= inside_ratios.min() - 0.01) for r in high_at_the_end)
    assert float(budget.spent(shape, bits)) == pytest.approx(budget.limit)
    assert torch.cat([bits[name] for name in learned(model)]).std() > 0.3  # and that is not the uniform model


def test_groups_without_a_cost_go_up() -> None:
    """Activations cost nothing under a budget of average weight bits."""
    model = quantize(vit())
    shape, bits, tables = costs(model), start(model), random_logs(model)
    for _ in range(20):
        bits = step(learned(model), tables, shape, Budget(average_weight_bits=4.0), bits, Lagrangian())
    for name, quantizer in learned(model).items():
        assert not quantizer.batched or torch.all(bits[name] == 8), name


def test_the_penalty_and_its_gradient() -> None:
    """weight * excess^2 with the excess relative to the budget; d/db = 2 weight excess dC/db / budget."""
    model = mix_bits(quantize(vit()))
    shape = costs(model)
    spent = cost(model).gbitops
    budget = Budget(gbitops=spent / 1.5)
    value = penalty(model, shape, budget, 10.0)
    assert value.item() == pytest.approx(10.0 * 0.5**2)
    value.backward()
    leaves = {name: b.clone().requires_grad_() for name, b in start(model).items()}
    shape.gbitops(leaves).backward()
    for name, quantizer in learned(model).items():
        slope = leaves[name].grad
        assert slope is not None
        assert quantizer.bits.grad is not None
        torch.testing.assert_close(
            quantizer.bits.grad.double(), 2 * 10.0 * 0.5 * slope / budget.limit, rtol=1e-5, atol=0
        )
    under = penalty(model, shape, Budget(gbitops=spent * 1.01), 10.0)
    assert under.item() == 0.0


@pytest.mark.parametrize("sizes", [{}, {"embed_dim": 64, "num_heads": 4}], ids=["micro", "larger"])
def test_the_penalty_does_not_know_the_size_of_the_model(sizes: dict[str, int]) -> None:
    model = quantize(vit(**sizes))
    assert penalty(model, costs(model), Budget(gbitops=cost(model).gbitops / 2), 1.0).item() == pytest.approx(1.0)


def test_published_moves_all_bits_in_step() -> None:
    """Why Lagrangian exists: Adam normalises every bit's gradient and the penalty has one sign, so nothing spreads."""
    config = FitConfig(epochs=2, lock_at=1.0, allocation=Published(learning_rate=0.1), log_every=100)
    model, _ = toy_run(config, max_steps=9, evaluation=None)
    bits = torch.cat([q.bits.detach() for q in learned(model).values()])
    fallen = 5.0 - bits.mean()
    assert fallen > 0.4
    assert bits.max() - bits.min() < 0.15 * fallen, bits


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        (Lagrangian, {"every": 0}, r"Lagrangian.every is 0; it must be positive"),
        (Lagrangian, {"weight_factor": 0.0}, r"Lagrangian.weight_factor is 0.0; it must be positive"),
        (Lagrangian, {"rate": 0.0}, r"Lagrangian.rate is 0.0; it must be positive"),
        (Lagrangian, {"warm_up": -1}, r"Lagrangian.warm_up is -1; it must not be negative"),
        (Lagrangian, {"decay": 1.0}, r"Lagrangian.decay is 1.0; it must lie in \[0, 1\)"),
        (Published, {"weight": -1.0}, r"Published.weight is -1.0; it must be positive"),
        (Published, {"learning_rate": 0.0}, r"Published.learning_rate is 0.0; it must be positive"),
    ],
)
def test_settings_are_checked(kind: type, change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**change)
