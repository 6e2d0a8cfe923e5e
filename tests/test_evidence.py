"""The evidence's arithmetic: intervals, pairing, what is said of rows that are there or missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evidence_found import best_uniform, compared, read_rows
from evidence_report import write_document
from evidence_rows import ROWS, SHARED
from evidence_statistics import difference
from qvit.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "cifar10"


def outcomes(*rows: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in rows])


def test_an_interval_by_hand() -> None:
    found = difference(outcomes("1110", "1101"), outcomes("1000", "1001"))
    assert found.mean == pytest.approx(37.5)  # of the seeds: 50 and 25 points
    assert found.over_seeds == pytest.approx(12.706 * 25 / np.sqrt(2) / np.sqrt(2))
    assert found.over_images == pytest.approx(1.96 * np.std([0, 100, 50, 0], ddof=1) / 2)
    assert not found.is_shown
    assert str(found) == f"+37.50 ± {found.over_seeds:.2f} (seeds) ± {found.over_images:.2f} (images)"


def test_one_seed_has_no_interval_over_seeds() -> None:
    better = difference(np.ones((1, 100), bool), np.arange(100)[None] < 50)
    assert better.over_seeds is None
    assert better.is_shown
    assert not better.is_below
    worse = difference(np.arange(100)[None] < 50, np.ones((1, 100), bool))
    assert worse.is_below


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the shapes \(1, 4\) and \(1, 3\)"):
        difference(np.ones((1, 4), bool), np.ones((1, 3), bool))


def test_every_row_is_a_recipe_with_seeds_of_its_own() -> None:
    names = [name for row in ROWS for name, _ in row.runs]
    assert len(set(names)) == len(names)
    for row in ROWS:
        recipe = load_recipe(RECIPES / f"{row.recipe}.toml", [*SHARED, *row.settings, "seed=3"])
        assert (recipe.seed, recipe.fit.epochs, recipe.fit.precision) == (3, 10, "bf16")
        assert (recipe.fit.learning_rate, recipe.fit.distillation, recipe.data.batch_size) == (5e-4, 0, 128)
        assert recipe.train_float is None
        assert ("head-wise" in row.title) == ("headwise" in row.recipe)


def write(kept: Path, name: str, right: np.ndarray, gbitops: float | None) -> None:
    (kept / name).mkdir(parents=True)
    record = {
        "images": len(right),
        "gbitops": gbitops,
        "artifact": None if gbitops is None else "model.qvit",
        "artifact_kib": 300.0,
        "correct": np.packbits(right).tobytes().hex(),
    }
    (kept / name / "result.json").write_text(json.dumps(record))


def test_the_page_says_what_is_shown_and_what_is_missing(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = draw.random(1003) < 0.7  # not a multiple of 8: packed bits are padded
    gained, gap = base | (draw.random(1003) < 0.2), base | (draw.random(1003) < 0.4)
    for seed in (0, 1):
        write(tmp_path, f"uniform_w3a3_s{seed}", base, 0.45)
        write(tmp_path, f"headwise_3bit_s{seed}", gained, 0.4508)
    write(tmp_path, "float_s1", gap, None)
    out = tmp_path / "evidence.md"
    write_document(tmp_path, out)
    text = out.read_text()
    gain = 100 * (gained.mean() - base.mean())
    assert f"Head-wise learned bits minus uniform bits: +{gain:.2f} ± 0.00 (seeds)" in text
    assert ", shown. The gap" in text
    assert f"{100 * gain / (100 * (gap.mean() - base.mean())):.0f} % of it is closed" in text
    assert f"| uniform LSQ | 2 | {100 * base.mean():.2f} |" in text
    missing = text.split("Not trained yet: ")[1].strip(".\n").split(", ")
    assert "float_s0" in missing
    assert "headwise_3bit_s2" in missing
    assert "headwise_3bit_s1" not in missing


def test_the_better_uniform_row_is_the_one_to_beat_and_seeds_are_paired(tmp_path: Path) -> None:
    right = np.arange(100) < 60
    write(tmp_path, "uniform_w2a3_s0", right, 0.3)
    write(tmp_path, "uniform_w3a2_s0", np.arange(100) < 70, 0.3)
    write(tmp_path, "headwise_w2a3_s1", right, 0.3)
    rows = {found.row.name: found for found in read_rows(tmp_path)}
    best = best_uniform([rows["uniform_w2a3"], rows["uniform_w3a2"]])
    assert best is rows["uniform_w3a2"]
    assert compared(rows["headwise_w2a3"], rows["uniform_w2a3"]) is None
