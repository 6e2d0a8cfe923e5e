"""Progress: silent when asked, one line otherwise, with speed and time left."""

from __future__ import annotations

import pytest

from qvit import progress
from qvit.progress import Progress
from toy_training import QUICK, toy_run


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(10, 0, quiet=True)
    shown.say("a")
    shown.show(10, 1.0, {"loss": 1.0})
    from qvit.fit_config import FitConfig

    toy_run(FitConfig(epochs=0.5, log_every=1, allocation=QUICK))
    assert capsys.readouterr() == ("", "")


def test_the_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed at step 100 of 300: 50 steps in 25 seconds leave 150, that is 75 seconds."""
    clock = iter([1000.0, 1025.0, 1025.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = Progress(300, 100, quiet=False)
    shown.images = 6400
    shown.show(150, 1.5, {"loss": 1.23456, "gbitops": 0.5, "note": "text"})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.rstrip() == "step 150/300  epoch 1.50  loss 1.235  gbitops 0.5  256 img/s  0:01:15 left"


def test_elsewhere_than_on_a_terminal_lines_are_rare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(1000, 0, quiet=False)
    for step in range(1, 31):
        now[0] += 1
        shown.show(step, 0.0, {})
    assert capsys.readouterr().err.count("\n") == 3
    shown.show(1000, 1.0, {})
    assert "step 1000/1000" in capsys.readouterr().err
