"""The live view: a page that is written while a run trains, and never stands in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
from qvit.cli import main
from qvit.pipeline import live_page
from qvit.pipeline.live_page import PAGE, SHARE, SHORTEST, LivePage
from toy_report import write_run


class Clock:
    """A clock that a test moves; each look at it takes no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(live_page.time, "monotonic", lambda: self.now)


def test_the_pause_grows_with_what_a_page_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    page = LivePage(tmp_path)
    written: list[float] = []

    def draw(out: Path, page: Path) -> None:
        written.append(clock.now)
        clock.now += 2.0

    page._refresh = draw
    page.update()
    assert written == [1000.0]
    for later, expected in ((SHARE * 2.0 - 1, 1), (SHARE * 2.0 + 1, 2)):
        clock.now = 1002.0 + later
        page.update()
        assert len(written) == expected
    page.write()  # at the end of a run, whatever the time
    assert len(written) == 3


def test_a_quick_page_is_not_written_for_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    page = LivePage(write_run(tmp_path / "run", ["recipe", "metrics"]))
    page.update()
    first = page.page.read_bytes()
    write_run(page.out, ["metrics"], steps=60)
    clock.now += SHORTEST / 2
    page.update()
    assert page.page.read_bytes() == first
    clock.now += SHORTEST
    page.update()
    assert page.page.read_bytes() != first


def test_a_part_that_cannot_be_drawn_ends_the_view_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", ["recipe", "metrics"])
    page = LivePage(run)
    (run / "metrics.jsonl").write_text("no JSON\n{}\n")
    page.write()
    page.write()
    error = capsys.readouterr().err
    assert error.count("is no longer updated: ReportError: ") == 1
    assert "metrics.jsonl" in error


def test_a_page_that_cannot_be_written_ends_the_view_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", ["recipe", "metrics"])
    (run / PAGE).mkdir()
    page = LivePage(run)
    page.update()
    assert f"{run / PAGE} is no longer updated: StorageError: could not write" in capsys.readouterr().err


def test_a_fault_of_the_view_itself_ends_the_view_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(out: Path, page: Path) -> None:
        raise TypeError("a chart that no library draws")

    page = LivePage(tmp_path)
    page._refresh = draw
    page.update()
    assert "is no longer updated: TypeError: a chart that no library draws" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [True, False])
def test_qvit_run_report(flag: bool, done: tuple[Path, Path]) -> None:
    """A float run with and without it: the page is there, whole, and does not reload itself any more."""
    recipe, out = done[0].with_name(f"live{flag}.toml"), done[0].with_name(f"live{flag}")
    recipe.write_text('method = "float"\n' + done[0].read_text())
    settings = ["--set", "fit.epochs=0.2", "--set", "fit.distillation=0.0", "--set", "fit.cache_teacher=false"]
    assert main(["run", str(recipe), "--out", str(out), *settings, *(["--report"] if flag else [])]) == 0
    assert (out / PAGE).exists() == flag
    if flag:
        text = (out / PAGE).read_text(encoding="utf-8")
        assert "still training" not in text
        assert '"reload": 0' in text or '"reload":0' in text
