"""TensorBoard: the numbers of metrics.jsonl, also after a resume; nothing without the switch."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from qvit.system.runs import Run
from qvit.training.fit_config import FitConfig
from toy_training import QUICK, toy_run


def config(on: bool) -> FitConfig:
    return FitConfig(epochs=1, log_every=1, checkpoint_every=1, allocation=QUICK, tensorboard=on)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_numbers_as_the_json_lines(tmp_path: Path) -> None:
    """Stopped after step 4 with an evaluation there, resumed from step 3: the events after step 3 are written once."""
    pytest.importorskip("tensorboard")
    toy_run(config(True), tmp_path, max_steps=4)
    Run(tmp_path).checkpoints()[-1].unlink()
    toy_run(config(True), tmp_path, resume=True)
    found = scalars(tmp_path / "tensorboard")
    records = Run(tmp_path).read("metrics.jsonl")
    numbers = {name for r in records for name, value in r.items() if isinstance(value, (int, float))} - {"step"}
    assert set(found) == numbers
    for name in ("loss", "gbitops", "top1", "learning_rate"):
        expected = [(r["step"], r[name]) for r in records if name in r]
        assert [step for step, _ in found[name]] == [step for step, _ in expected], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in expected])


def test_off_means_no_files(tmp_path: Path) -> None:
    toy_run(config(False), tmp_path, max_steps=1, evaluation=None)
    assert not (tmp_path / "tensorboard").exists()


def test_missing_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'qvit\[track\]'"):
        toy_run(config(True), tmp_path, evaluation=None)
