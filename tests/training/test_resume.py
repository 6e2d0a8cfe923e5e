"""A run that is thrown away at any step and resumed ends bit for bit like one that never was.

Everything is rebuilt from nothing for the second part: model, calibration, loaders, optimizer. Augmentation, mixup, dropout,
drop path, distillation, gradient accumulation and the moving average are on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from qvit.bits.allocate import Allocation, Published
from qvit.quantizers.quantizer import named_quantizers
from qvit.system.runs import CheckpointError, Run, load_tensors
from qvit.training.fit_config import FitConfig
from qvit.training.trainer import FitResult
from toy_models import uniform, vit
from toy_training import QUICK, same_state, toy_data, toy_model, toy_run


def config(allocation: Allocation = QUICK) -> FitConfig:
    """3 epochs of 3 steps (2 batches each); the lock is after step 5, in the middle of the second epoch."""
    return FitConfig(
        epochs=3,
        accumulate=2,
        lock_at=5 / 9,
        checkpoint_every=1,
        log_every=1,
        ema_decay=0.9,
        distillation=0.5,
        allocation=allocation,
    )


def go(run: Path, allocation: Allocation = QUICK, workers: int = 0, **arguments: object) -> tuple[nn.Module, FitResult]:
    data = toy_data(workers=workers)
    return toy_run(config(allocation), run, toy_model(), data, teacher=vit(depth=1, seed=3), **arguments)


def logs(run: Path) -> list[str]:
    return [(run / name).read_text() for name in ("metrics.jsonl", "bits.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, FitResult, Path]:
    run = tmp_path_factory.mktemp("unbroken")
    return (*go(run), run)


@pytest.mark.parametrize("step", [1, 4, 5, 6], ids=lambda k: f"after-{k}")
def test_resume_is_bit_exact(step: int, unbroken: tuple[nn.Module, FitResult, Path], tmp_path: Path) -> None:
    """Before, at and after the lock, inside an epoch and at its end."""
    go(tmp_path, max_steps=step, evaluation=None)
    model, result = go(tmp_path, resume=True)
    expected, expected_result, run = unbroken
    assert same_state(model, expected) == []
    assert result.top1 == expected_result.top1
    assert not any(q.is_learned for q in named_quantizers(model).values())
    mine, other = Run(tmp_path).read("metrics.jsonl"), Run(run).read("metrics.jsonl")
    losses = [[r["loss"] for r in records if "loss" in r] for records in (mine, other)]
    assert losses[0] == losses[1]
    assert logs(tmp_path)[1] == logs(run)[1]


def test_resume_of_a_finished_run_does_not_even_evaluate(
    unbroken: tuple[nn.Module, FitResult, Path], tmp_path: Path
) -> None:
    go(tmp_path)
    before = logs(tmp_path)
    seconds = load_tensors(Run(tmp_path).checkpoints()[-1])[1]["seconds"]
    model, result = go(tmp_path, resume=True, evaluation=None)
    assert same_state(model, unbroken[0]) == []
    assert result.top1 == unbroken[1].top1
    assert result.seconds is not None
    assert result.seconds > seconds > 0
    assert logs(tmp_path) == before == logs(unbroken[2])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where this process has one core
def test_another_number_of_workers(unbroken: tuple[nn.Module, FitResult, Path], tmp_path: Path) -> None:
    go(tmp_path, max_steps=4, evaluation=None)
    model, result = go(tmp_path, workers=2, resume=True)
    assert same_state(model, unbroken[0]) == []
    assert result.top1 == unbroken[1].top1


def test_published_resumes_too(tmp_path: Path) -> None:
    """Bits live in the optimizer there, and the lock takes them out."""
    allocation = Published()
    expected, _ = go(tmp_path / "whole", allocation, evaluation=None)
    go(tmp_path / "parts", allocation, max_steps=4, evaluation=None)
    go(tmp_path / "parts", allocation, max_steps=6, resume=True, evaluation=None)
    model, _ = go(tmp_path / "parts", allocation, resume=True, evaluation=None)
    assert same_state(model, expected) == []


@pytest.mark.parametrize("optimizer", ["lamb", "sgd", "lion"])
def test_optimizers_of_other_states_resume_too(optimizer: str, tmp_path: Path) -> None:
    """LAMB counts its steps in a tensor of its parameter groups."""
    short = FitConfig(epochs=0.5, optimizer=optimizer, learning_rate=1e-4, allocation=QUICK)
    expected, _ = toy_run(short, evaluation=None)
    toy_run(replace(short, checkpoint_every=1), tmp_path, evaluation=None, max_steps=2)
    model, _ = toy_run(short, tmp_path, evaluation=None, resume=True)
    assert same_state(model, expected) == []


def test_a_lock_is_never_undone(tmp_path: Path) -> None:
    """Resumed with a later lock_at: the bits that were final stay as they are."""
    toy_run(
        FitConfig(epochs=1, lock_at=0.5, checkpoint_every=1, allocation=QUICK), tmp_path, evaluation=None, max_steps=3
    )
    locked = Run(tmp_path).read("bits.jsonl")[-1]
    assert locked["locked"]
    later = FitConfig(epochs=1, lock_at=0.9, checkpoint_every=1, allocation=QUICK)
    model, _ = toy_run(later, tmp_path, evaluation=None, resume=True)
    assert {name: q.widths for name, q in named_quantizers(model).items()} == locked["bits"]
    assert Run(tmp_path).read("bits.jsonl")[-1] == locked


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    _, result = toy_run(FitConfig(epochs=0.2, allocation=QUICK), tmp_path, resume=True, evaluation=None)
    assert result.steps == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    go(tmp_path, max_steps=1, evaluation=None)
    with pytest.raises(
        CheckpointError, match=r"step-000000001.safetensors does not fit this recipe .* use the recipe that made"
    ):
        toy_run(config(), tmp_path, toy_model(uniform(4), embed_dim=32), budget=None, teacher=vit(depth=1), resume=True)
