"""Progress: silent when asked, one line otherwise, with speed and time left."""

from __future__ import annotations

import re

import pytest

from qvit.system import progress
from qvit.system.progress import Counter, Progress
from toy_training import QUICK, toy_run


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(10, 0, quiet=True)
    shown.say("a")
    shown.show(10, {"loss": 1.0})
    from qvit.training.fit_config import FitConfig

    toy_run(FitConfig(epochs=0.5, log_every=1, allocation=QUICK))
    assert capsys.readouterr() == ("", "")


def test_the_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed at step 100 of 300: 50 steps in 25 seconds leave 150, that is 75 seconds."""
    clock = iter([1000.0, 1025.0, 1025.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = Progress(300, 100, quiet=False)
    shown.images, shown.top1 = 6400, 98.7
    shown.show(150, {"loss": 1.23456, "gradient_norm": 2.0, "gbitops": 0.5})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.rstrip() == "step 150/300  0:01:15 left  256 img/s  loss 1.235  top-1 98.7  GBitOPs 0.5"


def test_time_left_after_going_back(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """899 steps in 500 seconds, then back to 100: the next line still goes by half a second a step."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(1000, 100, quiet=False)
    now[0] = 1500.0
    shown.show(999, {})
    shown.show(100, {})
    now[0] = 1510.0
    shown.show(120, {})
    assert "step 120/1000  0:08:08 left" in capsys.readouterr().err


def test_elsewhere_than_on_a_terminal_lines_are_rare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(1000, 0, quiet=False)
    for step in range(1, 31):
        now[0] += 1
        shown.show(step, {})
    assert capsys.readouterr().err.count("\n") == 3
    shown.show(1000, {})
    assert "step 1000/1000" in capsys.readouterr().err


def test_on_a_terminal_the_line_is_rewritten_and_never_wraps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = Progress(10, 0, quiet=False)
    shown.live = True
    shown.show(5, {"loss": 1.0, "gbitops": 1.0, "weight_bits": 3.0, "activation_bits": 4.0})
    assert re.fullmatch(r"step 5/10  \d:\d\d:\d\d left .{15}\r", capsys.readouterr().err)
    shown.say("short")
    assert capsys.readouterr().err == "short".ljust(39) + "\n"
    shown.show(10, {"loss": 1.0, "gbitops": 1.0, "weight_bits": 3.0, "activation_bits": 4.0})
    assert capsys.readouterr().err.endswith("A bits 4\n")


def test_a_counter_can_be_iterated_again_and_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter([1, 2, 3], 3, "calibrating: batch", quiet=False)
    assert [*counter, *counter] == [1, 2, 3, 1, 2, 3]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "text"), [(3, "batch 1 of 3"), (0, "batch 1")])
def test_a_counter_on_a_terminal(
    total: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once a second; the line is wiped at the end."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 5.0)
    assert len(list(Counter([1, 2, 3], total, "batch", quiet=False))) == 3
    out, err = capsys.readouterr()
    assert out == ""
    first, wiped, nothing = err.split("\r")
    assert (first, wiped.strip(), nothing) == (text, "", "")
    list(Counter([1], 1, "batch", quiet=True))
    assert capsys.readouterr().err == ""
