"""Milliseconds as a budget: the table at whole numbers, straight lines between them, the lock, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qvit.bits.budget import Budget, BudgetError, check_budget, reachable
from qvit.bits.cost import BitTable, bits_in_force, costs
from qvit.bits.latency import milliseconds
from qvit.bits.lock import _State, lock
from qvit.bits.sensitivity import Sensitivity
from qvit.freezing.freeze import freeze
from qvit.network.convert import quantize
from qvit.settings.values import from_values, to_values
from qvit.spec import MidRise, Spec
from qvit_runtime.latency import measure_table
from qvit_runtime.latency_table import LatencyError, LatencyTable
from toy_models import calibrated, mix_bits, swin, uniform, vit

MODEL = quantize(vit(depth=1))
SHAPE = costs(MODEL)


def table(seed: int = 0, flat: bool = False) -> LatencyTable:
    """Random times of MODEL that rise with both widths, or that are the same at all of them."""
    rng = np.random.default_rng(seed)
    macs = {product.right: product.macs for product in SHAPE.products}
    steps = rng.uniform(0, 0.01, (len(macs), 7, 7)) * (rng.random((len(macs), 7, 7)) < 0.7)
    times = np.round(steps.cumsum(1).cumsum(2) + 0.05, 6)
    return LatencyTable("a table", "toy", 2, 1, 0.25, macs, np.full_like(times, 0.05) if flat else times)


TABLE = table()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("latency") / "toy.latency.json"
    TABLE.save(file)
    return str(file)


def widths(seed: int, whole: bool) -> BitTable:
    generator = torch.Generator().manual_seed(seed)
    bits = {name: 2 + 6 * torch.rand(n, generator=generator, dtype=torch.float64) for name, n in SHAPE.groups.items()}
    return {name: value.round() for name, value in bits.items()} if whole else bits


def by_hand(bits: BitTable) -> float:
    """The formula, group by group, for whole numbers."""
    total = TABLE.fixed
    for row, product in enumerate(SHAPE.products):
        left, right = bits[product.left].tolist(), bits[product.right].tolist()
        count = max(len(left), len(right))
        pairs = [(int(left[g % len(left)]) - 2, int(right[g % len(right)]) - 2) for g in range(count)]
        total += sum(TABLE.ms[row, a, b] for a, b in pairs) / count
    return total


@given(seed=st.integers(0, 10**6))
def test_whole_numbers_are_looked_up(seed: int) -> None:
    bits = widths(seed, whole=True)
    assert float(milliseconds(TABLE, SHAPE, bits)) == pytest.approx(by_hand(bits), rel=1e-12)


@given(seed=st.integers(0, 10**6))
def test_two_bits_without_a_zero_take_the_time_of_three(seed: int) -> None:
    raised = costs(quantize(vit(depth=1), Spec(weight_grid=MidRise()), quiet=True))
    assert raised.midrise == set(SHAPE.weights)
    bits = widths(seed, whole=True)
    wider = {name: value.clamp(min=3) if name in raised.midrise else value for name, value in bits.items()}
    assert float(milliseconds(TABLE, raised, bits)) == pytest.approx(by_hand(wider), rel=1e-12)
    assert float(raised.gbitops(bits)) == float(SHAPE.gbitops(bits))


@given(seed=st.integers(0, 10**6), where=st.floats(0, 1))
def test_between_two_widths_of_a_group_it_is_a_straight_line(seed: int, where: float) -> None:
    bits = widths(seed, whole=True)
    name = list(bits)[seed % len(bits)]
    ends = []
    for end in (3.0, 4.0):
        bits[name][0] = end
        ends.append(float(milliseconds(TABLE, SHAPE, bits)))
    bits[name][0] = 3 + where
    between = float(milliseconds(TABLE, SHAPE, bits))
    assert between == pytest.approx(ends[0] + where * (ends[1] - ends[0]), rel=1e-12)


@given(seed=st.integers(0, 10**6))
def test_the_gradient_is_that_of_the_interpolation_and_never_negative(seed: int) -> None:
    bits = {name: value.requires_grad_() for name, value in widths(seed, whole=False).items()}
    milliseconds(TABLE, SHAPE, bits).backward()
    assert all(torch.all(value.grad >= 0) for value in bits.values())  # type: ignore[operator]
    name = list(bits)[seed % len(bits)]
    with torch.no_grad():
        moved = {**bits, name: bits[name] + 1e-7 * (torch.arange(len(bits[name])) == 0)}
        slope = (milliseconds(TABLE, SHAPE, moved) - milliseconds(TABLE, SHAPE, bits)) / 1e-7
    same_cell = bool((moved[name].floor() == bits[name].floor()).all())
    assert not same_cell or float(slope) == pytest.approx(float(bits[name].grad[0]), abs=1e-6)  # type: ignore[index]


def drawn(seed: int) -> tuple[nn.Module, Sensitivity]:
    model = mix_bits(quantize(vit(depth=1)), seed)
    sensitivity = Sensitivity(model)
    generator = torch.Generator().manual_seed(seed)
    for errors in sensitivity.tables.values():
        errors.copy_((2 * torch.randn(len(errors), 1, generator=generator)).exp() * 4.0 ** -torch.arange(7))
    return model, sensitivity


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), delta=st.sampled_from([-1, 1]))
def test_prices_of_the_lock_are_exact(path: str, seed: int, delta: int) -> None:
    """Milliseconds bend at every whole number: up and down are different prices, and each must be its own."""
    model, sensitivity = drawn(seed)
    state = _State(model, sensitivity, Budget(milliseconds=1.0, table=path))
    moves, before = state.moves(delta), state.spent()
    for group in range(len(state.flat)):
        if moves.allowed[group]:
            state.flat[group] += delta
            assert state.spent() - before == pytest.approx(float(moves.price[group]), abs=1e-9)
            state.flat[group] -= delta


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), where=st.floats(0.05, 1.05))
def test_the_lock_meets_the_budget_and_leaves_nothing_over(path: str, seed: int, where: float) -> None:
    model, sensitivity = drawn(seed)
    least, most = reachable(model, Budget(milliseconds=1.0, table=path))
    budget = Budget(milliseconds=least + where * (most - least), table=path)
    lock(model, sensitivity, budget)
    bits = bits_in_force(model)
    assert by_hand(bits) <= budget.limit * (1 + 1e-9)
    for name, quantizer in sensitivity.quantizers.items():
        for group, width in enumerate(quantizer.widths):
            if width < 8:
                more = {**bits, name: bits[name].clone()}
                more[name][group] += 1
                assert by_hand(more) > budget.limit, f"{name}[{group}] still fits"


def test_reach(path: str) -> None:
    least, most = reachable(MODEL, Budget(milliseconds=1.0, table=path))
    ends = []
    for bits in (2, 8):
        ends.append(float(milliseconds(TABLE, SHAPE, bits_in_force(quantize(vit(depth=1), uniform(bits))))))
    assert (least, most) == pytest.approx(tuple(ends))
    with pytest.raises(
        BudgetError, match=f"a budget of 0.1 milliseconds cannot be met: .* costs {least:.6g}, with the"
    ):
        check_budget(MODEL, Budget(milliseconds=0.1, table=path))


def test_a_path_on_which_bits_do_not_change_the_time(tmp_path: Path) -> None:
    file = str(tmp_path / "flat.json")
    table(flat=True).save(file)
    (ms, _) = reachable(MODEL, Budget(milliseconds=1.0, table=file))
    text = rf"cannot be met by choosing bits: bits do not change the time on this path \(toy\); .* costs {ms:.6g}"
    with pytest.raises(BudgetError, match=text):
        check_budget(MODEL, Budget(milliseconds=0.9 * ms, table=file))
    check_budget(MODEL, Budget(milliseconds=1.1 * ms, table=file))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"milliseconds": 1.0}, "a budget in milliseconds needs a table .*qvit-runtime bench MODEL --table FILE"),
        ({"gbitops": 1.0, "table": "x"}, "table is for a budget in milliseconds; given gbitops and table = 'x'"),
        ({"milliseconds": 1.0, "kib": 1.0, "table": "x"}, "exactly one of gbitops, .*, milliseconds, uniform; given: "),
        ({"milliseconds": -1.0, "table": "x"}, "must be positive; given milliseconds = -1.0"),
    ],
)
def test_refused_values(given: dict[str, float | str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Budget(**given)  # type: ignore[arg-type]


def test_a_recipe_holds_values() -> None:
    budget = Budget(milliseconds=4.0, table="deit_tiny.latency.json")
    values = json.loads(json.dumps(to_values(budget)))
    assert values == {"kind": "Budget", "milliseconds": 4.0, "table": "deit_tiny.latency.json"}
    assert from_values(Budget, values, "budget") == budget


def test_a_missing_table_and_a_table_of_another_network(tmp_path: Path, path: str) -> None:
    with pytest.raises(LatencyError, match=r"there is no latency table .*none.json; measure one with qvit-runtime"):
        check_budget(MODEL, Budget(milliseconds=1.0, table=str(tmp_path / "none.json")))
    text = "toy.latency.json was measured on another network: blocks.1.attn.k has no product in the table and 4624 mul"
    with pytest.raises(LatencyError, match=text):
        check_budget(quantize(vit(depth=2)), Budget(milliseconds=1.0, table=path))
    text = "patch_embed.proj.weight has 12288 multiply-accumulates in the table and 27648 mul"
    with pytest.raises(LatencyError, match=text):
        check_budget(quantize(vit(depth=1, img_size=24)), Budget(milliseconds=1.0, table=path))


@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_a_measured_table_counts_alike_on_both_sides(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Module -> Program -> measured table -> budget: the module costs what the runtime predicts for the program."""
    model = mix_bits(calibrated(make(), Spec()), seed=3)
    program = freeze(model)
    measured = measure_table(program, threads=1, repeats=1, rounds=1, path="scalar")
    measured.save(tmp_path / "t.json")
    budget = Budget(milliseconds=1e9, table=str(tmp_path / "t.json"))
    spent = float(budget.spent(costs(model), bits_in_force(model)))
    assert spent == pytest.approx(measured.predict(program), rel=1e-4)
    assert spent > measured.fixed
