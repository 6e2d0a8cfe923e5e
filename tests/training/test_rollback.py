"""A loss or gradient that is not finite: once back, at lower rates, bit for bit reproducible; then a diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.data.seeds import seed_of
from qvit.methods.qvit_irm.guide import IRMGuide
from qvit.quantizers.quantizer import named_quantizers
from qvit.system.runs import CheckpointError, Run, load_tensors
from qvit.training import trainer as trainer_module
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit.training.nonfinite import NonFiniteLossError
from qvit.training.state import TrainingState
from toy_models import vit
from toy_training import QUICK, same_state, toy_model, toy_run

CONFIG = FitConfig(epochs=1, checkpoint_every=2, log_every=1, lock_at=0.34, ema_decay=0.9, allocation=QUICK)  # 6 steps


@contextmanager
def diverging(model: nn.Module, step: int, at_any_rate: bool = False) -> Iterator[None]:
    """NaN logits in step number `step` (from 0), while the learning rates are as in CONFIG or at any."""
    optimizers: list[torch.optim.Optimizer] = []
    make = trainer_module.make_optimizer

    def remembered(*arguments: object) -> torch.optim.Optimizer:
        optimizers.append(make(*arguments))  # type: ignore[arg-type]
        return optimizers[-1]

    def spoil(module: nn.Module, args: object, output: Tensor) -> Tensor:
        now = torch.initial_seed() == seed_of("step", CONFIG.seed, step, 0, 0)
        full = at_any_rate or optimizers[-1].param_groups[0]["lr_scale"] == CONFIG.learning_rate
        return output * torch.nan if now and full else output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "make_optimizer", remembered)
        handle = model.get_submodule("head").register_forward_hook(spoil)
        yield
        handle.remove()


def go(run: Path | None, step: int, at_any_rate: bool = False, **arguments: object) -> tuple[nn.Module, int]:
    """A run of CONFIG that diverges; (model, rollbacks)."""
    model = toy_model()
    with diverging(model, step, at_any_rate):
        _, result = toy_run(CONFIG, run, model, evaluation=None, **arguments)
    return model, result.rollbacks


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """(model, run directory) of a run of CONFIG in which nothing goes wrong."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("plain")
    return toy_run(CONFIG, run, evaluation=None)[0], run


def test_once_back_to_the_checkpoint_and_a_resume_makes_the_same_steps(
    plain: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    """Step 3 diverges, so the run goes back to checkpoint 2. Resumed before the divergence, and after it."""
    expected, rollbacks = go(tmp_path / "whole", 3)
    assert rollbacks == 1
    records = Run(tmp_path / "whole").read("metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 3, 4, 5, 6]
    mark = {key: value for key, value in records[2].items() if key != "epoch"}
    assert mark == {"step": 3, "rolled_back_from": 3, "rolled_back_to": 2, "rate_factor": 0.5}
    unspoilt = Run(plain[1]).read("metrics.jsonl")
    logged = [r for r in records if "loss" in r]
    assert logged[:2] == unspoilt[:2]
    assert [r["learning_rate"] for r in logged[2:]] == [r["learning_rate"] / 2 for r in unspoilt[2:]]
    for most, checkpoint in ((3, 2), (5, 4)):
        run = tmp_path / f"most-{most}"
        go(run, 3, max_steps=most)
        saved = Run(run).checkpoints()[-1]
        assert saved.stem.endswith(str(checkpoint))
        assert load_tensors(saved)[1]["rollbacks"] == (checkpoint > 2)
        model, rollbacks = go(run, 3, resume=True)
        assert rollbacks == 1
        assert same_state(model, expected) == []
        for log in ("metrics.jsonl", "bits.jsonl"):
            assert (run / log).read_text() == (tmp_path / "whole" / log).read_text()


def test_before_the_first_checkpoint_it_is_a_run_at_lower_rates_from_the_start() -> None:
    """Step 4 is behind the lock and has a moving average: nothing of that may stay."""
    model, rollbacks = go(None, 4)
    assert rollbacks == 1
    lower = replace(CONFIG, learning_rate=CONFIG.learning_rate / 2, scale_learning_rate=CONFIG.scale_learning_rate / 2)
    expected, _ = toy_run(lower, evaluation=None)
    assert same_state(model, expected) == []
    assert not any(q.is_learned for q in named_quantizers(model).values())


def test_a_state_from_before_the_moving_average_has_none() -> None:
    model = vit(depth=1)
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), None, 0.9)
    before = state.copied()
    state.average(0)
    assert state.averaged_model() is not model
    state.load(*before)
    assert state.averaged_model() is model


def test_the_second_time_it_stops_and_says_what_was_tried(tmp_path: Path) -> None:
    text = (
        r"at step 3: the output of head is the first tensor with NaN or infinity; the last good checkpoint is "
        r".*step-000000002.safetensors; going back and on at 0.5 of the learning rates did not help; try a lower"
    )
    with pytest.raises(NonFiniteLossError, match=text):
        go(tmp_path, 3, at_any_rate=True)
    with pytest.raises(NonFiniteLossError, match=text):
        go(tmp_path, 3, at_any_rate=True, resume=True)


def test_without_a_factor_it_stops_at_once(tmp_path: Path) -> None:
    model = toy_model()
    text = r"at step 0: the output of head .*; there is no checkpoint yet; try a lower learning_rate"
    with diverging(model, 0), pytest.raises(NonFiniteLossError, match=text):
        toy_run(replace(CONFIG, rollback_factor=0), tmp_path, model, evaluation=None)
    assert Run(tmp_path).read("metrics.jsonl") == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("rollback_factor", 1.5, "fit.rollback_factor is 1.5; it must lie between 0 and 1"),
        ("keep_checkpoints", 0, "fit.keep_checkpoints is 0; it must be positive"),
    ],
)
def test_choices_are_checked(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **{name: value})  # type: ignore[arg-type]


def test_a_checkpoint_is_always_finite(tmp_path: Path) -> None:
    """The update of step 3 is finite, what it leaves is not: checkpoint 4 is not written, 2 is the way back."""
    model, spoilt = toy_model(), []
    weight = model.get_parameter("blocks.0.mlp.fc2.weight")

    class Spoiler:
        """A guide that puts a NaN into a weight after step 3, once."""

        steps = 0
        dropped = 0

        def watch(self) -> AbstractContextManager[None]:
            return nullcontext()

        def loss(self, images: Tensor) -> Tensor | None:
            return None

        def after_step(self) -> None:
            self.steps += 1
            if self.steps == 4:
                spoilt.append([p.stem for p in Run(tmp_path).checkpoints()])
                with torch.no_grad():
                    weight[0, 0] = torch.nan

        def drop_step(self) -> None:
            self.dropped += 1

    guide = Spoiler()
    _, result = toy_run(CONFIG, tmp_path, model, evaluation=None, guide=guide)
    assert (result.rollbacks, spoilt) == (1, [["step-000000002"]])
    assert guide.dropped == 2  # the pass of the warm-up, and the step that was not made
    marks = [r for r in Run(tmp_path).read("metrics.jsonl") if "rolled_back_to" in r]
    assert [(r["rolled_back_from"], r["rolled_back_to"]) for r in marks] == [(4, 2)]
    for path in Run(tmp_path).checkpoints():
        assert all(bool(value.isfinite().all()) for name, value in load_tensors(path)[0].items() if "model." in name)


def test_images_and_gradients_are_named() -> None:
    """They do not become finite at a lower rate either."""
    bad = [(torch.full((4, 3, 16, 16), torch.inf), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(
        NonFiniteLossError, match=r"at step 0: the input image batch .*; there is no checkpoint yet; going"
    ):
        fit(vit(depth=1), bad, config=FitConfig(epochs=1), quiet=True)  # type: ignore[arg-type]
    good = [(torch.ones(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64))]
    model = vit(depth=1)
    model.get_parameter("head.bias").register_hook(lambda gradient: gradient / 0.0)
    with pytest.raises(NonFiniteLossError, match=r"at step 0: the gradient of head.bias is the first"):
        fit(model, good, config=FitConfig(epochs=1), quiet=True)  # type: ignore[arg-type]


def test_statistics_of_a_dropped_step_are_forgotten() -> None:
    guide = IRMGuide(nn.Identity(), nn.Identity(), 0.0, 0.1)
    guide._statistics = {nn.Identity(): [(torch.full((2,), torch.nan),) * 2]}  # type: ignore[dict-item]
    guide.drop_step()
    guide.after_step()
    assert guide._statistics == {}


# -- damaged checkpoints ----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(
    plain: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    toy_run(CONFIG, tmp_path, evaluation=None, max_steps=4)
    cut(Run(tmp_path).checkpoints()[-1])
    text = r"step-000000004.safetensors is damaged; it is now step-000000004.safetensors.damaged, and the run goes on from step-0+2"
    with pytest.warns(UserWarning, match=text):
        model, _ = toy_run(CONFIG, tmp_path, evaluation=None, resume=True)
    assert same_state(model, plain[0]) == []
    assert (tmp_path / "metrics.jsonl").read_text() == (plain[1] / "metrics.jsonl").read_text()


def test_when_all_are_damaged_a_person_decides(tmp_path: Path) -> None:
    toy_run(CONFIG, tmp_path, evaluation=None, max_steps=4)
    for path in Run(tmp_path).checkpoints():
        cut(path)
    with pytest.raises(CheckpointError, match=r"step-000000004.safetensors is damaged .*no other can be read; delete"):
        toy_run(CONFIG, tmp_path, evaluation=None, resume=True)


@pytest.mark.parametrize("keep", [1, 3])
def test_retention_is_a_choice(keep: int, tmp_path: Path) -> None:
    for step in (9, 10, 100, 101):
        Run(tmp_path).save_checkpoint(step, {"x": torch.tensor(step)}, {}, keep)
    assert [int(p.stem[5:]) for p in Run(tmp_path).checkpoints()] == [9, 10, 100, 101][-keep:]


def test_recorded_passes_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back before the lock gradients of bits are wanted again, which a recording does not give. Step 3 diverges, the lock is at 2."""
    recorded: list[nn.Module] = []

    def record(module: nn.Module, *_: object, **__: object) -> None:
        recorded.append(module)
        module.forward = module.forward  # type: ignore[method-assign]  # a forward of its own, as torch gives it

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr("qvit.training.fit.check_graph", lambda *_: None)
    model = toy_model()
    with diverging(model, 3):
        _, result = toy_run(replace(CONFIG, cuda_graph=True), None, model, evaluation=None)
    assert result.rollbacks == 1
    assert len(recorded) == 2
