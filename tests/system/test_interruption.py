"""Signals: noted, heeded after a step with a checkpoint, and nothing of it left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qvit import cli
from qvit.system.interruption import Interruption, InterruptionError, shield_worker
from qvit.system.runs import Run
from qvit.training.fit_config import FitConfig
from toy_training import QUICK, same_state, toy_run

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CONFIG = FitConfig(epochs=1.5, log_every=1, lock_at=0.8, ema_decay=0.9, allocation=QUICK)  # 9 steps, 6 to an epoch


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def at_line(count: int, number: int) -> Callable[[], None]:
    """An `on_log` that sends this process a signal after line `count` of the metrics."""
    lines = 0

    def count_and_send() -> None:
        nonlocal lines
        lines += 1
        if lines == count:
            os.kill(os.getpid(), number)

    return count_and_send


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = handlers()
    with Interruption(alone=True) as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == number
    assert handlers() == before


def test_a_second_ctrl_c_ends_a_single_process_at_once() -> None:
    before = handlers()
    with Interruption(alone=False):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    with Interruption(alone=True):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_another_thread_changes_nothing() -> None:
    found: list[object] = []

    def look() -> None:
        with Interruption(alone=True):
            found.extend(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == handlers()


def test_fit_stops_with_a_checkpoint_and_goes_on_exactly(tmp_path: Path) -> None:
    """In an epoch; at its end, between the step and its evaluation; while the last evaluation runs."""
    before = handlers()
    expected, whole = toy_run(CONFIG, tmp_path / "whole")
    for line, step in ((3, 4), (5, 6), (11, 9)):  # step 4 was under way when line 3 was complete
        run = tmp_path / f"line-{line}"
        with pytest.raises(
            InterruptionError, match=rf"stopped by SIGTERM after step {step} of 9; .*line-{line} has what"
        ):
            toy_run(CONFIG, run, on_log=at_line(line, signal.SIGTERM))
        assert Run(run).checkpoints()[-1].stem == f"step-{step:09d}"
        assert handlers() == before
        model, result = toy_run(CONFIG, run, resume=True)
        assert same_state(model, expected) == []
        assert result.top1 == whole.top1
        for log in ("metrics.jsonl", "bits.jsonl"):
            assert (run / log).read_text() == (tmp_path / "whole" / log).read_text()


def test_a_signal_behind_the_last_of_max_steps_leaves_a_checkpoint_too(tmp_path: Path) -> None:
    """Step 2 has none of its own; line 3 is that of the evaluation after it."""
    expected, _ = toy_run(CONFIG, evaluation=None)
    with pytest.raises(InterruptionError, match=r"after step 2 of 9; .* has what a resume needs"):
        toy_run(CONFIG, tmp_path, max_steps=2, on_log=at_line(3, signal.SIGTERM))
    assert [path.stem for path in Run(tmp_path).checkpoints()] == ["step-000000002"]
    model, _ = toy_run(CONFIG, tmp_path, evaluation=None, resume=True)
    assert same_state(model, expected) == []


def test_without_a_run_directory_there_is_nothing_to_save_and_signals_do_what_they_did() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            toy_run(CONFIG, evaluation=None, on_log=at_line(1, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_the_command_line_says_how_to_continue(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptionError(number, 5, 9, Path("run"))

    monkeypatch.setattr("qvit.cli.run.run_recipe", interrupted)
    recipe = tmp_path / "a recipe.toml"
    recipe.write_text(
        'method = "float"\n[model]\nname = "vit_tiny_patch16_224"\npretrained = false\n[data]\nroot = "x"\n'
    )
    for more in ([], ["--resume"]):
        assert cli.main(["run", str(recipe), *more]) == code
        text = f"after step 5 of 9; run has what a resume needs; continue with: qvit run '{recipe}' --resume\n"
        assert capsys.readouterr().err == f"qvit: stopped by {signal.Signals(number).name} {text}"


def _shielded(ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    shield_worker(0)
    ready.set()
    done.wait()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal")
def test_a_loader_worker_obeys_its_parent_alone() -> None:
    """SIGTERM from a third process, as of a service manager, leaves it at work; from the parent, as PyTorch's, ends it."""
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    worker = fork.Process(target=_shielded, args=(ready, done))
    worker.start()
    assert ready.wait(60)
    stranger = fork.Process(target=os.kill, args=(worker.pid, signal.SIGTERM))
    stranger.start()
    stranger.join()
    os.kill(worker.pid or 0, signal.SIGINT)
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
