"""The evidence: intervals, pairing, what page, figure and README say of rows that are there or missing."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import evidence
from evidence_found import best_control, best_uniform, compared, gap_closed, read_rows
from evidence_readme import BEGIN, END, block, write_readme
from evidence_report import write_document
from evidence_rows import DEIT, DISTILLED, ROWS, SWIN
from evidence_statistics import difference
from evidence_svg import ticks
from evidence_tradeoff import draw_tradeoff
from paths import ROOT
from toy_evidence import first, latency, write_result

KEPT, DOCS, README = ROOT / "experiments" / "results" / "evidence", ROOT / "docs", ROOT / "README.md"


def outcomes(*rows: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in rows])


def test_an_interval_by_hand() -> None:
    found = difference(outcomes("1110", "1101"), outcomes("1000", "1001"))
    assert found.mean == pytest.approx(37.5)  # of the seeds: 50 and 25 points
    assert found.over_seeds == pytest.approx(12.706 * 25 / np.sqrt(2) / np.sqrt(2))
    assert found.over_images == pytest.approx(1.96 * np.std([0, 100, 50, 0], ddof=1) / 2)
    assert not found.is_shown
    assert str(found) == f"+37.50 ± {found.over_seeds:.2f} (seeds) ± {found.over_images:.2f} (images)"


def test_the_page_names_runs_that_were_trained_on_a_gpu(tmp_path: Path) -> None:
    page = tmp_path / "evidence.md"
    write_result(tmp_path, "uniform_w3a3_s0", first(70), 0.45)
    write_result(tmp_path, "uniform_w3a3_s1", first(70), 0.45, device="cpu")
    write_document(tmp_path, page)
    assert "GPU" not in page.read_text()
    write_result(tmp_path, "uniform_w3a3_s2", first(70), 0.45, device="Card 9")
    write_result(tmp_path, "headwise_3bit_s1", first(71), 0.45, device="Card 9")
    write_document(tmp_path, page)
    assert (
        "Trained on a GPU (Card 9), with their seeds: uniform_w3a3 (2), headwise_3bit (1); the others on a CPU."
        in page.read_text()
    )


def test_one_seed_shows_nothing_and_two_may() -> None:
    right, half = np.ones((1, 100), bool), np.arange(100)[None] < 50
    one = difference(right, half)
    assert one.over_seeds is None
    assert one.excludes_zero
    assert not one.is_shown
    better, worse = difference(right.repeat(2, 0), half.repeat(2, 0)), difference(half.repeat(2, 0), right.repeat(2, 0))
    assert better.is_shown
    assert not better.is_below
    assert worse.is_below


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the shapes \(1, 4\) and \(1, 3\)"):
        difference(np.ones((1, 4), bool), np.ones((1, 3), bool))


def test_every_row_is_a_recipe_with_seeds_of_its_own() -> None:
    names = [name for row in ROWS for name, _ in row.runs]
    assert len(set(names)) == len(names)
    for row in ROWS:
        recipe = row.load(seed=3)
        assert (recipe.seed, recipe.fit.epochs, recipe.fit.precision) == (3, 10, "bf16")
        assert (recipe.fit.learning_rate, recipe.data.batch_size) == (5e-4, 128)
        assert recipe.fit.distillation == (0.5 if row.model == DISTILLED else 0)
        assert recipe.train_float is None
        assert ("head-wise" in row.title) == ("headwise" in row.recipe)


def page(kept: Path) -> str:
    write_document(kept, kept / "evidence.md")
    return (kept / "evidence.md").read_text()


def test_runs_side_by_side_say_how_they_ended_and_leave_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is a process, here of a script in the place of evidence.py, and one that is killed leaves the others alone."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        "print('training', *sys.argv[1:], os.environ['OMP_NUM_THREADS'], flush=True)\n"
        "if sys.argv[4] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setattr(evidence, "__file__", str(script))
    monkeypatch.setattr(evidence, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evidence, "write", lambda: None)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    row = next(row for row in ROWS if row.name == "headwise_3bit")
    runs = [(row, name, seed) for name, seed in row.runs[:3]]
    assert not evidence.train_side_by_side(runs, 2)
    log = tmp_path / "runs" / "headwise_3bit_s1.log"
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "headwise_3bit_s0: finished",
        f"headwise_3bit_s1: ended with code -9, see {log}",
        "headwise_3bit_s2: finished",
    ]
    assert log.read_text() == "training --only headwise_3bit --seeds 1 --no-documents 3\n"
    assert evidence.train_side_by_side(runs[:1], 2)


def test_the_page_says_what_is_shown_and_what_is_missing(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = draw.random(1003) < 0.7  # not a multiple of 8: packed bits are padded
    gained, gap = base | (draw.random(1003) < 0.2), base | (draw.random(1003) < 0.4)
    for seed in (0, 1):
        write_result(tmp_path, f"uniform_w3a3_s{seed}", base, 0.45)
        write_result(tmp_path, f"headwise_3bit_s{seed}", gained, 0.4508)
    write_result(tmp_path, "float_s1", gap, None)
    text = page(tmp_path)
    gain = 100 * (gained.mean() - base.mean())
    assert f"Head-wise learned bits minus uniform bits: +{gain:.2f} ± 0.00 (seeds)" in text
    assert ", shown. Float minus the uniform row: +" in text
    assert f"{100 * gain / (100 * (gap.mean() - base.mean())):.0f} % of it is closed" in text
    assert f"| uniform LSQ | 2 | {100 * base.mean():.2f} |" in text
    assert "float (0, 2, 3, 4), " in text
    assert "headwise_3bit (2, 3, 4), " in text


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(80), 0.45)
    write_result(tmp_path, "headwise_3bit_s0", first(70), 0.45)
    write_result(tmp_path, "no_refill_s0", first(65), 0.45)
    write_result(tmp_path, "hidden_3bit_s0", first(90), 0.45)
    text = page(tmp_path)
    assert "Head-wise learned bits minus uniform bits: -10.00 ±" in text
    assert "Learned bits of heads and hidden groups minus uniform bits: +10.00 ±" in text
    assert "(images), not shown." in text  # by one seed
    assert "| the lock only lowers bits | 1 | 65.00 | -5.00 ±" in text


def test_no_share_of_a_gap_that_is_not_shown(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(80), 0.45)
    write_result(tmp_path, "headwise_3bit_s0", first(82), 0.45)
    write_result(tmp_path, "float_s0", first(80.1), None)
    text = page(tmp_path)
    assert "Float minus the uniform row: +0.10 ± 0.20 (images). Minus the middle of that row and float: +1.95 ±" in text
    assert "of it is closed" not in text


def test_the_gain_on_seeds_that_nothing_was_chosen_on(tmp_path: Path) -> None:
    """Half-way to float by hand, too: 76 and 78 learned, 70 uniform, 80 float."""
    for seed, learned in enumerate((80, 76, 78)):
        write_result(tmp_path, f"uniform_w3a3_s{seed}", first(70), 0.45)
        write_result(tmp_path, f"headwise_3bit_s{seed}", first(learned), 0.45)
    write_result(tmp_path, "float_s1", first(80), None)
    text = page(tmp_path)
    assert "Head-wise learned bits minus uniform bits: +8.00 ±" in text
    assert "Minus the middle of that row and float: +1.00 ±" in text  # of seed 1
    assert "Without seed 0, on which settings were chosen: +7.00 ± 12.71 (seeds) ±" in text


def test_the_gain_on_seeds_that_were_asked_for_later(tmp_path: Path) -> None:
    for seed, learned in enumerate((90, 90, 90, 90, 90, 74, 76)):
        write_result(tmp_path, f"uniform_w2a3_s{seed}", first(70), 0.32, np.full(1000, 0.75))
        write_result(tmp_path, f"hidden_w2a3_s{seed}", first(learned), 0.32, np.full(1000, learned / 128))
        write_result(tmp_path, f"uniform_w3a3_s{seed}", first(70), 0.45)
        write_result(tmp_path, f"headwise_3bit_s{seed}", first(learned), 0.45)
    text = page(tmp_path)
    later = "Without the first 5 seeds, which had been seen when the others were asked for: "
    assert f"{later}+5.00 ± 12.71 (seeds) ±" in text
    assert text.count(later) == 1  # the other rows' seeds were asked for at once
    assert "; without the first 5 seeds -0.1641 ± " in text  # 75 / 128 - 0.75


def test_rows_are_ranked_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    """W3A2 has one lucky seed, on which W2A3 is better still."""
    write_result(tmp_path, "uniform_w2a3_s0", first(75), 0.3)
    write_result(tmp_path, "uniform_w2a3_s1", first(60), 0.3)
    write_result(tmp_path, "uniform_w3a2_s0", first(70), 0.3)
    best = best_uniform([found for found in read_rows(tmp_path) if found.results])
    assert best is not None
    assert best.row.name == "uniform_w2a3"


def test_nothing_at_all(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "##" not in text
    assert f"Not trained yet, with their seeds: {ROWS[0].name} (0, 1, 2, 3, 4), " in text
    assert all(f"{row.name} (0" in text for row in ROWS)
    assert list(tmp_path.glob("*.svg")) == []


def test_rows_without_float_or_uniform(tmp_path: Path) -> None:
    write_result(tmp_path, "headwise_4bit_s2", first(80), 0.8)
    text = page(tmp_path)
    assert "| learned, head-wise | 1 | 80.00 | 80.00 |  | 0.8000 | 300 |  |  |" in text
    assert "minus uniform bits" not in text


def test_milliseconds_and_the_engine(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(77), 0.45)
    write_result(tmp_path, "float_s0", first(78), None)
    measured = latency(float=(1.9, 1.0, None), uniform_w3a3=(0.5, 3.8, 77.08))
    (tmp_path / "latency.json").write_text(json.dumps(measured))
    text = page(tmp_path)
    assert "| 0.50 (3.80) |" in text
    assert "| 1.90 (1.00) |" in text
    assert (
        "avx2 path of the native engine, 2 threads, batch 1, medians of 20 interleaved rounds of 50 calls, a CPU, 2026-11-26"
        in text
    )
    words = "programs, at most 3 images right in only one of them, at most"
    first_rows = "interpreter: of uniform rows and rows of the README"
    assert f"{first_rows} 1 {words} 0.08 points apart (uniform_w3a3), within 0.1. They" in text
    measured["rows"]["uniform_w3a3"]["top1_engine"] = 77.1
    measured["rows"] |= latency(published=(0.5, 3.8, 77.3), layerwise_3bit=(0.5, 3.8, 77.0))["rows"]
    (tmp_path / "latency.json").write_text(json.dumps(measured))
    text = page(tmp_path)
    assert f"{first_rows} 1 {words} 0.10 points apart (uniform_w3a3), within 0.1; of layer-wise" in text
    assert f"rows and controls 1 {words} 0.00 points apart (layerwise_3bit), within 0.1; of ablations" in text
    assert f"ablations below 1 {words} 0.30 points apart (published), NOT within 0.1. They" in text
    measured["rows"]["uniform_w3a3"]["top1_engine"] = 76.8
    (tmp_path / "latency.json").write_text(json.dumps(measured))
    assert "at most 0.20 points apart (uniform_w3a3), NOT within 0.1" in page(tmp_path)


def test_the_better_uniform_row_is_the_one_to_beat_and_seeds_are_paired(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w2a3_s0", first(60), 0.3)
    write_result(tmp_path, "uniform_w3a2_s0", first(70), 0.3)
    write_result(tmp_path, "headwise_w2a3_s1", first(60), 0.3)
    rows = {found.row.name: found for found in read_rows(tmp_path)}
    best = best_uniform([rows["uniform_w2a3"], rows["uniform_w3a2"]])
    assert best is rows["uniform_w3a2"]
    assert compared(rows["headwise_w2a3"], rows["uniform_w2a3"]) is None


def test_a_control_is_no_uniform_row_and_is_told_apart(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(70), 0.45)
    write_result(tmp_path, "same_grids_w3a3_s0", first(72), 0.45)
    write_result(tmp_path, "same_grids_w2a4_s0", first(76), 0.4)
    write_result(tmp_path, "headwise_3bit_s0", first(75), 0.45)
    rows = [found for found in read_rows(tmp_path) if found.results]
    assert best_uniform(rows).row.name == "uniform_w3a3"
    assert best_control(rows).row.name == "same_grids_w2a4"
    text = page(tmp_path)
    assert "minus uniform bits: +5.00 ± 1.35 (images), not shown. Minus W2A4, same grids: -1.00 ± 0.62 (images)" in text
    assert "| +5.00 ± 1.35 (images), not shown |  |  | -1.00 ± 0.62 (images), not shown (W2A4, same grids) |" in block(
        tmp_path
    )


def test_rows_with_a_teacher_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(70), 0.45)
    write_result(tmp_path, "distilled_w3a3_s0", first(72), 0.45)
    write_result(tmp_path, "distilled_headwise_3bit_s0", first(74), 0.45)
    main, own = page(tmp_path).split(f"## {DISTILLED}, budget of uniform 3 bits")
    assert "| 72.00 |" not in main
    assert "| 70.00 |" not in own
    assert "Head-wise learned bits minus uniform bits: +2.00 ± 0.87 (images), not shown." in own


def test_a_share_of_the_gap_is_of_the_seeds_that_all_rows_have(tmp_path: Path) -> None:
    write_result(tmp_path, "uniform_w3a3_s0", first(70), 0.45)
    write_result(tmp_path, "uniform_w3a3_s1", first(70), 0.45)
    write_result(tmp_path, "headwise_3bit_s0", first(71), 0.45)
    write_result(tmp_path, "headwise_3bit_s1", first(78), 0.45)
    write_result(tmp_path, "float_s1", first(80), None)
    rows = {found.row.name: found for found in read_rows(tmp_path)}
    assert gap_closed(rows["float"], rows["uniform_w3a3"], rows["headwise_3bit"]) == pytest.approx(80)
    assert gap_closed(rows["swin_float"], rows["uniform_w3a3"], rows["headwise_3bit"]) is None


def test_the_figure_has_the_better_row_above_and_float_as_a_line(tmp_path: Path) -> None:
    for seed, more in enumerate((0, 1, 2)):
        write_result(tmp_path, f"uniform_w3a3_s{seed}", first(70 + more), 0.45)
        write_result(tmp_path, f"headwise_3bit_s{seed}", first(75 + more), 0.45)
    write_result(tmp_path, "headwise_4bit_s0", first(77), 0.8)
    write_result(tmp_path, "float_s0", first(78), None)
    assert draw_tradeoff(DEIT, read_rows(tmp_path), tmp_path / "deit.svg")
    assert not draw_tradeoff(SWIN, read_rows(tmp_path), tmp_path / "swin.svg")
    elements = list(ElementTree.parse(tmp_path / "deit.svg").iter())
    squares = [e for e in elements if e.get("class") == "f0" and e.tag.endswith("rect")]
    circles = [e for e in elements if e.get("class") == "f2"]
    assert len(squares) == 3 + 1 + 1  # seeds, mean, legend
    assert len(circles) == (3 + 1) + (1 + 1) + 1
    square, circle, other = (float(e.get(y)) for e, y in ((squares[3], "y"), (circles[3], "cy"), (circles[5], "cy")))
    assert other < circle < square  # pixels grow downwards
    (line,) = [e for e in elements if e.get("class") == "quiet dash"]
    assert float(line.get("d").split()[1].split("L")[0]) < other
    assert len([e for e in elements if e.get("class") in ("s0", "s2")]) == 2  # intervals; one seed has none


def test_readme_and_page_are_in_step_with_the_results(tmp_path: Path) -> None:
    write_document(KEPT, tmp_path / "evidence.md")
    for made in tmp_path.iterdir():
        assert made.read_text() == (DOCS / made.name).read_text(), "run python experiments/evidence.py --tables"
    assert f"{BEGIN}\n\n{block(KEPT)}\n{END}\n" in README.read_text(), "run python experiments/evidence.py --tables"


def test_the_block_of_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_readme(tmp_path, readme)
    assert "No row is trained yet." in readme.read_text()
    write_result(tmp_path, "uniform_w3a3_s0", first(70), 0.45)
    write_result(tmp_path, "headwise_3bit_s0", first(75), 0.45)
    write_result(tmp_path, "headwise_3bit_s1", first(77), 0.45)
    write_result(tmp_path, "float_s0", first(80), None)
    (tmp_path / "latency.json").write_text(json.dumps(latency(headwise_3bit=(0.5, 3.8, 77.0))))
    write_readme(tmp_path, readme)
    text = readme.read_text()
    line = "| 3 bits, micro DeiT | heads | 1 | 80.00 | 70.00 | 75.00 | +5.00 ± 1.35 (images), not shown |  | 50 % |  | 300 | 0.50 (3.80) |"
    assert line in text
    assert text.startswith(f"before\n{BEGIN}\n\n`python")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "No row" not in text
    write_readme(tmp_path, readme)
    assert readme.read_text() == text
    write_result(tmp_path, "hidden_3bit_s0", first(77), 0.45)
    write_readme(tmp_path, readme)
    both = "| 3 bits, micro DeiT | heads and hidden groups | 1 | 80.00 | 70.00 | 77.00 | +7.00 ± 1.58 (images), not shown |  | 70 % |  | 300 |  |"
    assert f"{line}\n{both}\n" in readme.read_text()
    write_result(tmp_path, "uniform_w3a3_s1", first(73), 0.45)
    write_readme(tmp_path, readme)
    assert "| heads | 1 (2) | 80.00 | 70.00 | 75.00 | +4.50 ±" in readme.read_text()  # 5 and 4 points


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_the_two_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=r"needs one line .* and after it one line .*: the results go between them"):
        write_readme(tmp_path, readme)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (76.4, 77.7, [76.5, 77, 77.5]),
        (1.5, 8.5, [2, 4, 6, 8]),
        (-90, 2106, [0, 500, 1000, 1500, 2000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected
