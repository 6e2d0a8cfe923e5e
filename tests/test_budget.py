"""Budgets: exactly one unit, the reachable range, and the text of an impossible one."""

from __future__ import annotations

import pytest
import torch

from qvit.budget import Budget, BudgetError, check_reachable, reachable
from qvit.convert import quantize
from qvit.cost import bits_in_force, cost, costs
from qvit.quantizer import named_quantizers
from qvit.spec import FixedBits, LearnedBits, Spec
from toy_models import mix_bits, uniform, vit

UNITS = ["gbitops", "average_weight_bits", "kib"]


@pytest.mark.parametrize("given", [{}, {"gbitops": 1.0, "kib": 2.0}], ids=["none", "two"])
def test_exactly_one(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one of gbitops, average_weight_bits, kib, milliseconds; given: "):
        Budget(**given)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="a budget must be positive; given gbitops = "):
        Budget(gbitops=limit)


@pytest.mark.parametrize("unit", UNITS)
def test_spent_is_the_cost_in_that_unit(unit: str) -> None:
    model = mix_bits(quantize(vit()))
    budget = Budget(**{unit: 3.0})
    assert (budget.unit, budget.limit) == (unit, 3.0)
    assert float(budget.spent(costs(model), bits_in_force(model))) == pytest.approx(getattr(cost(model), unit))


@pytest.mark.parametrize("unit", UNITS)
def test_reachable_range_is_that_of_the_extreme_models(unit: str) -> None:
    least, most = reachable(quantize(vit(), Spec(LearnedBits(3, 6), LearnedBits(3, 6))), Budget(**{unit: 1.0}))
    assert least == pytest.approx(getattr(cost(quantize(vit(), uniform(3))), unit))
    assert most == pytest.approx(getattr(cost(quantize(vit(), uniform(6))), unit))


def test_fixed_and_locked_bits_do_not_move_the_range() -> None:
    model = quantize(vit(), uniform(4))
    assert reachable(model, Budget(gbitops=1.0)) == pytest.approx((cost(model).gbitops,) * 2)
    model = mix_bits(quantize(vit()))
    for quantizer in named_quantizers(model).values():
        quantizer.lock()
    assert reachable(model, Budget(kib=1.0)) == pytest.approx((cost(model).kib,) * 2)


def test_impossible_budget_says_what_is_possible() -> None:
    model = quantize(vit(), Spec(edge=FixedBits(8)))
    least, most = reachable(model, Budget(kib=1.0))
    text = f"a budget of 0.5 kib cannot be met: .* costs {least:.4f}, with the largest {most:.4f}; give a budget in"
    with pytest.raises(BudgetError, match=text):
        check_reachable(model, Budget(kib=0.5))
    check_reachable(model, Budget(kib=least))
    check_reachable(model, Budget(kib=100 * most))


def test_spent_is_differentiable() -> None:
    model = quantize(vit())
    bits = {name: widths.clone().requires_grad_() for name, widths in bits_in_force(model).items()}
    Budget(gbitops=1.0).spent(costs(model), bits).backward()
    assert all(torch.all(t.grad > 0) for t in bits.values())  # type: ignore[operator]
