"""Budgets: exactly one unit, uniform bits as a number, the reachable range, and the text of an impossible one."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from qvit.bits.budget import Budget, BudgetError, check_budget, check_reachable, reachable, resolve_budget
from qvit.bits.cost import bits_in_force, cost, costs
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, LearnedBits, Spec
from toy_models import mix_bits, uniform, vit

UNITS = ["gbitops", "average_weight_bits", "kib"]


@pytest.mark.parametrize("given", [{}, {"gbitops": 1.0, "kib": 2.0}], ids=["none", "two"])
def test_exactly_one(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"exactly one of gbitops, .*, milliseconds, uniform; given: "):
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
    text = f"a budget of 0.5 kib cannot be met: .* costs {least:.6g}, with the largest {most:.6g}; give a budget in"
    with pytest.raises(BudgetError, match=text):
        check_reachable(model, Budget(kib=0.5))
    check_reachable(model, Budget(kib=least))
    check_reachable(model, Budget(kib=100 * most))


def test_spent_is_differentiable() -> None:
    model = quantize(vit())
    bits = {name: widths.clone().requires_grad_() for name, widths in bits_in_force(model).items()}
    Budget(gbitops=1.0).spent(costs(model), bits).backward()
    assert all(torch.all(t.grad > 0) for t in bits.values())  # type: ignore[operator]


# Uniform bits.

MIXED = Spec(LearnedBits(2, 8), LearnedBits(2, 6), overrides=(("blocks.0.mlp.fc1.*", FixedBits(5)),))
"""What is learned and what is fixed: the edges at 8 bits, one layer at 5."""


def fixed(weight_bits: int, activation_bits: int) -> Spec:
    return dataclasses.replace(MIXED, weights=FixedBits(weight_bits), activations=FixedBits(activation_bits))


@pytest.mark.parametrize(("uniform_bits", "widths"), [(3, (3, 3)), ((2, 3), (2, 3)), (8, (8, 8))])
def test_uniform_bits_are_the_cost_of_the_model_with_these_bits(uniform_bits: Any, widths: tuple[int, int]) -> None:
    budget = Budget(uniform=uniform_bits)
    assert budget.unit == "uniform"
    learned, same = quantize(vit(), MIXED), quantize(vit(), fixed(*widths))
    number = resolve_budget(budget, learned)
    assert number.unit == "gbitops"
    assert number.limit == pytest.approx(cost(same).gbitops, rel=1e-12)
    assert check_budget(learned, budget) == number
    assert resolve_budget(number, learned) is number


def test_uniform_bits_are_one_number_wherever_the_bits_are_and_after_the_lock() -> None:
    model = quantize(vit(), MIXED)
    number = resolve_budget(Budget(uniform=3), model)
    mix_bits(model)
    assert resolve_budget(Budget(uniform=3), model) == number
    for quantizer in named_quantizers(model).values():
        quantizer.lock()
    assert resolve_budget(Budget(uniform=3), model) == number != Budget(gbitops=cost(model).gbitops)


def test_uniform_bits_that_the_model_cannot_reach() -> None:
    with pytest.raises(BudgetError, match=r"a budget of 0.\d+ gbitops cannot be met: with the smallest allowed bits"):
        check_budget(quantize(vit(), Spec(LearnedBits(4, 8), LearnedBits(4, 8))), Budget(uniform=3))


@pytest.mark.parametrize("model", [quantize(vit(), fixed(4, 4)), vit()], ids=["fixed", "float"])
def test_uniform_bits_of_a_model_that_learns_none(model: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"a budget of uniform = 3 is for learned bits, and this model has none: leave"
    ):
        check_budget(model, Budget(uniform=3))


def test_uniform_bits_have_no_limit_without_a_model() -> None:
    with pytest.raises(
        ValueError, match=r"a budget of uniform = 3 has no limit before qvit.bits.budget.resolve_budget"
    ):
        _ = Budget(uniform=3).limit


@pytest.mark.parametrize("bits", [1, 9, 2.5, (3, 9)])
def test_uniform_bits_that_do_not_exist(bits: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Budget.uniform is .*; (bit-widths go from 2 to 8|it must be a whole number)"
    ):
        Budget(uniform=bits)


@pytest.mark.parametrize("uniform", [[2, 3], (2, 3, 4), "w2a3"])
def test_uniform_is_one_number_or_a_pair(uniform: object) -> None:
    text = re.escape(
        f"Budget.uniform is {uniform!r}; it must be one number of bits, or a tuple (weight bits, activation bits)"
    )
    with pytest.raises(ValueError, match=text):
        Budget(uniform=uniform)  # type: ignore[arg-type]
