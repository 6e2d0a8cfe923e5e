"""What fit refuses before it trains."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from qvit.bits.budget import Budget, BudgetError
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import UncalibratedError
from qvit.training.fit_config import FitConfig
from toy_models import vit
from toy_training import SHORT, same_state, three_bits, toy_model, toy_run


def test_learned_bits_need_a_budget() -> None:
    with pytest.raises(
        ValueError, match=r"learned bits, so it needs a budget: qvit.Budget\(gbitops=...\), or \[budget\]"
    ):
        toy_run(SHORT, budget=None)


def test_an_impossible_budget_is_refused_before_training(tmp_path: Path) -> None:
    model = toy_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetError, match=r"cannot be met: with the smallest .* costs 0\.\d+, with the largest 0\.\d+"):
        toy_run(SHORT, tmp_path, model, budget=Budget(gbitops=1e-6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_a_budget_of_uniform_bits_is_the_cost_of_the_uniform_model() -> None:
    written, number = (
        toy_run(SHORT, budget=budget, evaluation=None, max_steps=1)[0] for budget in (Budget(uniform=3), three_bits())
    )
    assert same_state(written, number) == []


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"fit.distillation is 0.5 but there is no teacher; pass teacher=float_model"):
        toy_run(FitConfig(distillation=0.5))


def test_an_uncalibrated_model_is_refused() -> None:
    with pytest.raises(UncalibratedError, match=r"run the `calibrate` of the method"):
        toy_run(SHORT, model=quantize(vit(depth=1)))


def test_an_old_run_directory_is_not_overwritten(tmp_path: Path) -> None:
    toy_run(SHORT, tmp_path, evaluation=None)
    with pytest.raises(FileExistsError, match="holds checkpoints of an earlier run; continue it with resume=True"):
        toy_run(SHORT, tmp_path, evaluation=None)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fit.epochs is 0, so there is nothing to train; qvit.calibrate alone"):
        toy_run(FitConfig(epochs=0))


def test_more_accumulation_than_batches() -> None:
    with pytest.raises(ValueError, match=r"an epoch has 6 batches, fewer than fit.accumulate 7"):
        toy_run(FitConfig(accumulate=7))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"learning_rate": 0}, r"fit.learning_rate is 0; it must be positive"),
        ({"epochs": -1}, r"fit.epochs is -1; it must not be negative"),
        ({"weight_decay": -0.1}, r"fit.weight_decay is -0.1; it must not be negative"),
        ({"lock_at": 1.5}, r"fit.lock_at is 1.5; it must lie between 0 and 1"),
        ({"precision": "fp16"}, r"fit.precision is 'fp16'; allowed: 'no', 'bf16'"),
        (
            {"evaluate_every": 0.5},
            r"fit.evaluate_every is 0.5; evaluations come at the ends of epochs: give 1 or more, or 0",
        ),
        (
            {"hard_distillation": True},
            r"fit.hard_distillation is set but fit.distillation is 0, so no .* give fit.distilla",
        ),
        (
            {"cache_teacher": True},
            r"fit.cache_teacher is set but fit.distillation is 0, .* or set fit.cache_teacher = false",
        ),
    ],
)
def test_config_is_checked(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FitConfig(**change)
