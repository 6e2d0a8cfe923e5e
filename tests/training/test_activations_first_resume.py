"""A stage of float weights is resumed bit for bit, and made again where a run goes back over its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.system.runs import Run
from qvit.training.feature_distill import FeatureDistillation
from toy_activations_first import CONFIG, LOCK, SWITCH, fresh, weights_of
from toy_models import vit
from toy_training import same_state, toy_run

RESUMED = replace(CONFIG, checkpoint_every=1, ema_decay=0.9, features=FeatureDistillation(batches=2))


def resumable(run: Path, **arguments: object) -> tuple[nn.Module, float | None]:
    model, result = toy_run(RESUMED, run, fresh(), teacher=vit(depth=1, seed=3), **arguments)
    return model, result.top1


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, float | None, Path]:
    run = tmp_path_factory.mktemp("unbroken")
    return (*resumable(run), run)


@pytest.mark.parametrize("step", [1, SWITCH - 1, SWITCH, LOCK], ids=lambda k: f"after-{k}")
def test_resume_is_bit_exact(step: int, unbroken: tuple[nn.Module, float | None, Path], tmp_path: Path) -> None:
    """In the stage, in front of the switch, at it, at the lock behind it."""
    resumable(tmp_path, max_steps=step, evaluation=None)
    model, top1 = resumable(tmp_path, resume=True)
    assert same_state(model, unbroken[0]) == []
    assert top1 == unbroken[1]
    for log in ("metrics.jsonl", "bits.jsonl"):
        assert (tmp_path / log).read_text() == (unbroken[2] / log).read_text()


def test_the_switch_has_a_checkpoint(tmp_path: Path) -> None:
    toy_run(replace(CONFIG, keep_checkpoints=9), tmp_path, fresh(), evaluation=None)
    assert [path.stem for path in Run(tmp_path).checkpoints()] == [f"step-{s:09}" for s in (SWITCH, LOCK, 6)]


def test_going_back_over_the_switch_makes_it_again(float_passes: list[nn.Module]) -> None:
    """Without checkpoints the way back is to the start: three steps with float weights, and once more."""
    model, failed = fresh(), []

    def spoil(module: nn.Module, args: object, output: Tensor) -> Tensor:
        spoilt = (
            module.training and len(float_passes) == 1 + SWITCH and not failed
        )  # one probe, the stage: the switch is past
        in_stage = bool(weights_of(model)["head.weight"]._forward_hooks)
        if spoilt and not in_stage:
            failed.append(1)
            return output * torch.nan
        return output

    model.get_submodule("head").register_forward_hook(spoil)
    _, result = toy_run(CONFIG, None, model, evaluation=None)
    assert result.rollbacks == 1
    assert len(float_passes) == 1 + 2 * SWITCH
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())
