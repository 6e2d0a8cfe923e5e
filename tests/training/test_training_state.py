"""What goes into a checkpoint comes back as it was, whatever an optimizer keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.system.runs import load_tensors, save_tensors
from qvit.training.optimizer import make_optimizer, parameter_groups
from qvit.training.state import TrainingState


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))


def state_of(model: nn.Module, optimizer: str) -> TrainingState:
    groups = parameter_groups(model, 1e-2, 0.05, 2e-3, None)
    return TrainingState(model, make_optimizer(groups, optimizer, 1e-2), None, 0.0)


def go(state: TrainingState, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        state.model(torch.randn(5, 6)).square().mean().backward()
        state.optimizer.step()
        state.model.zero_grad()


@pytest.mark.parametrize("optimizer", ["adamw", "adamp", "mars", "adabelief", "laprop", "nadamlegacy", "lamb", "lion"])
def test_steps_after_a_checkpoint_are_those_without_one(optimizer: str, tmp_path: Path) -> None:
    """Counters of Python's stay such: a power of an int64 tensor is float32."""
    whole = state_of(small(), optimizer)
    go(whole, range(2))
    save_tensors(tmp_path / "state", *whole.tensors())
    resumed = state_of(small(), optimizer)
    resumed.load(*load_tensors(tmp_path / "state"))
    for state in (whole, resumed):
        go(state, range(2, 5))
    for mine, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_checkpoint_with_numbers_as_tensors_still_loads() -> None:
    """As they were written before: AdamP's count was a tensor, and seconds were not counted."""
    whole, resumed = state_of(small(), "adamp"), state_of(small(), "adamp")
    go(whole, range(2))
    tensors, plain = whole.tensors()
    numbers: dict[str, dict[str, float]] = plain.pop("optimizer")
    del plain["seconds"]
    assert numbers["0"] == {"step": 2}
    for index, values in numbers.items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    resumed.load(tensors, plain)
    assert (whole.seconds, resumed.seconds) == (0.0, None)
    for values in resumed.optimizer.state_dict()["state"].values():
        assert isinstance(values["step"], Tensor)
        assert values["step"] == 2


def test_an_optimizer_that_no_checkpoint_can_hold_is_refused_before_training() -> None:
    text = (
        r"the optimizer Adafactor\w* keeps what a checkpoint cannot hold \(Object of type dtype is not JSON serializable\): "
        r"tensors, numbers and text alone; choose another fit.optimizer, such as 'adamw'"
    )
    with pytest.raises(ValueError, match=text):
        state_of(small(), "adafactorbv")


def test_one_that_shows_it_after_a_step_names_itself_in_its_checkpoint() -> None:
    state = state_of(small(), "adamw")
    go(state, range(1))
    next(iter(state.optimizer.state.values()))["factors"] = [torch.ones(2)]
    with pytest.raises(
        ValueError, match=r"the optimizer AdamW keeps what a checkpoint cannot hold \(Object of type Tensor"
    ):
        state.tensors()
