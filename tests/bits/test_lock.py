"""The lock: at or under the budget whatever the tables, nothing left over, final."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qvit.bits.budget import Budget, BudgetError, reachable
from qvit.bits.cost import bits_in_force, cost, costs
from qvit.bits.lock import _State, falling, lock
from qvit.bits.sensitivity import Sensitivity
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import LearnedBits, Spec
from toy_models import mix_bits, uniform, vit

UNITS = ["gbitops", "average_weight_bits", "kib"]
MODEL = quantize(vit(depth=1))
SHAPE = costs(MODEL)


def drawn(seed: int, low: int = 2, high: int = 8) -> tuple[nn.Module, Sensitivity]:
    """A model with random bits and random tables, some of which rise with the bits as noise makes them."""
    model = quantize(vit(depth=1))
    mix_bits(model, seed, low, high)
    sensitivity = Sensitivity(model)
    generator = torch.Generator().manual_seed(seed)
    for table in sensitivity.tables.values():
        height = (torch.randn(len(table), 1, generator=generator) * 2).exp()
        noise = (0.5 * torch.randn(table.shape, generator=generator)).exp()
        table.copy_(height * noise * 4.0 ** -torch.arange(table.shape[1]))
    return model, sensitivity


def estimated_loss(sensitivity: Sensitivity, bits: dict[str, torch.Tensor]) -> float:
    total = 0.0
    for name, table in sensitivity.tables.items():
        columns = bits[name].long() - sensitivity.quantizers[name].candidates[0]
        total += float(falling(table).gather(1, columns.unsqueeze(1)).sum())
    return total


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), unit=st.sampled_from(UNITS), where=st.floats(0.0, 1.1), refill=st.booleans())
def test_exactly_at_or_under_the_budget(seed: int, unit: str, where: float, refill: bool) -> None:
    model, sensitivity = drawn(seed)
    least, most = reachable(model, Budget(**{unit: 1.0}))
    budget = Budget(**{unit: least + where * (most - least)})
    before = {name: widths.clone() for name, widths in bits_in_force(model).items()}
    lock(model, sensitivity, budget, refill)
    bits = bits_in_force(model)
    assert getattr(cost(model), unit) <= budget.limit * (1 + 1e-9)
    for name, quantizer in named_quantizers(model).items():
        assert not quantizer.is_learned
        assert torch.equal(quantizer.bits.detach().double(), bits[name])
        assert all(2 <= width <= 8 for width in quantizer.widths)
        assert refill or torch.all(bits[name] <= before[name])
    if refill:
        for name, quantizer in sensitivity.quantizers.items():
            for group, width in enumerate(quantizer.widths):
                if width < 8:
                    more = {**bits, name: bits[name].clone()}
                    more[name][group] += 1
                    assert float(budget.spent(SHAPE, more)) > budget.limit, f"{name}[{group}] still fits"


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), where=st.floats(0.05, 0.9))
def test_each_stage_does_what_it_says(seed: int, where: float) -> None:
    """Lowering only lowers, raising only raises, exchanging never raises the estimated loss or breaks the budget."""
    model, sensitivity = drawn(seed)
    least, most = reachable(model, Budget(gbitops=1.0))
    state = _State(model, sensitivity, Budget(gbitops=least + where * (most - least)))

    def bits() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in state.bits.items()}

    before = bits()
    state.lower_to_budget()
    lowered = bits()
    assert all(torch.all(lowered[name] <= before[name]) for name in before)
    state.raise_in_budget()
    raised = bits()
    assert all(torch.all(raised[name] >= lowered[name]) for name in before)
    state.exchange()
    assert estimated_loss(sensitivity, state.bits) <= estimated_loss(sensitivity, raised) + 1e-12
    assert state.room() >= 0


def test_exchange_leaves_a_bad_start() -> None:
    """Bits sit at the wrong group: raising alone cannot help, exchanging does."""
    model, sensitivity = drawn(0, 4, 4)
    for table in sensitivity.tables.values():
        table.copy_(1e-6 * 4.0 ** -torch.arange(7))
    precious = sensitivity.tables["blocks.0.attn.v"]
    precious[1] = 10 * 4.0 ** -torch.arange(7)
    lock(model, sensitivity, Budget(gbitops=cost(model).gbitops))
    quantizers = named_quantizers(model)
    assert quantizers["blocks.0.attn.v"].widths[1] == 8
    assert quantizers["blocks.0.attn.v"].widths[0] < 8


def test_lowering_takes_what_is_least_missed() -> None:
    """Equal prices, one group whose loss would rise: it is the last to give."""
    model, sensitivity = drawn(0, 4, 4)
    for table in sensitivity.tables.values():
        table.fill_(0.0)
    sensitivity.tables["blocks.0.attn.q"][1] = 4.0 ** -torch.arange(7)
    uniform3 = cost(quantize(vit(depth=1), uniform(3))).gbitops
    lock(model, sensitivity, Budget(gbitops=uniform3), refill=False)
    assert named_quantizers(model)["blocks.0.attn.q"].widths[1] == 4


def test_an_impossible_budget() -> None:
    model, sensitivity = drawn(0)
    least, _ = reachable(model, Budget(gbitops=1.0))
    text = f"the smallest allowed bits cost {least:.6g} gbitops, over {least * 0.9:.6g}"
    with pytest.raises(BudgetError, match=text):
        lock(model, sensitivity, Budget(gbitops=least * 0.9))


def test_ranges_of_the_spec_are_kept() -> None:
    model = quantize(vit(depth=1), Spec(LearnedBits(3, 5, 4.0), LearnedBits(4, 6)))
    lock(model, Sensitivity(model), Budget(gbitops=1.0))
    assert {w for n, q in named_quantizers(model).items() if n.endswith("fc1.weight") for w in q.widths} == {5}
    assert named_quantizers(model)["blocks.0.attn.v"].widths == [6, 6]


def test_falling_tables() -> None:
    assert falling(torch.tensor([[3.0, 4.0, 1.0, 2.0]])).tolist() == [[3.0, 3.0, 1.0, 1.0]]


def test_a_lock_survives_the_state_dict() -> None:
    model, sensitivity = drawn(3)
    lock(model, sensitivity, Budget(gbitops=cost(quantize(vit(depth=1), uniform(4))).gbitops))
    fresh = quantize(vit(depth=1))
    fresh.load_state_dict(model.state_dict())
    assert not any(q.is_learned for q in named_quantizers(fresh).values())
    assert all(q.widths == named_quantizers(model)[n].widths for n, q in named_quantizers(fresh).items())
