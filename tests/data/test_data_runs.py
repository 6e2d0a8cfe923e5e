"""Whole runs on shards with a broken image among them: resumed bit for bit, and on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qvit.cli import main
from qvit.data import DataConfig, DataError, open_data
from qvit.planning.dry_run import dry_run
from qvit.settings.recipe import load_recipe
from qvit.system.runs import load_tensors
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from toy_shards import CONFIG, change, png, write_shards
from toy_training import QUICK, same_state, three_bits, toy_model

RECIPE = """
method = "lsq"
calibration = 8

[quantize]
weights = { kind = "FixedBits", bits = 4 }
activations = { kind = "FixedBits", bits = 4 }

[train_float]
epochs = 0.2

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 1, num_heads = 2, num_classes = 3 }

[data]
dataset = "wds/"
root = "shards"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
crop = 1.0
train_crop = "pad"
mixup = 0.2
batch_size = 8
eval_batch_size = 5

[fit]
epochs = 2
log_every = 1
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Training shards of 14, 1 and 25 images, the fourth of which is no image, and evaluation shards of 4 and 3."""
    pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    folder.mkdir()
    first, *_ = write_shards(folder, "train", (14, 1, 25))
    change(first, {"0003.png": png(3)[:40]})
    write_shards(folder, "validation", (4, 3), first=100)
    return folder


def test_a_resumed_run_is_the_unbroken_one(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config: DataConfig = replace(CONFIG, root=str(shards), num_classes=5, batch_size=8, train_crop="pad", mixup=0.2)
    training = FitConfig(epochs=2, checkpoint_every=1, log_every=1, allocation=QUICK)

    def train(run: Path, resume: bool = False, max_steps: int | None = None) -> Any:
        splits = open_data(config, seed=0, skipped=run / "skipped.jsonl")
        model = toy_model()
        fit(
            model,
            splits.train,
            budget=three_bits(),
            config=training,
            order=splits.order,
            data=config,
            run=run,
            resume=resume,
            max_steps=max_steps,
        )
        return model

    whole = train(tmp_path / "whole")
    capfd.readouterr()
    train(tmp_path / "broken", max_steps=7)
    assert "read again" not in capfd.readouterr().err
    resumed = train(tmp_path / "broken", resume=True)
    assert "the stream of epoch 1 is read again from its beginning, up to step 7" in capfd.readouterr().err
    assert same_state(resumed, whole) == []
    for log in ("metrics.jsonl", "bits.jsonl", "skipped.jsonl"):
        lines = [(tmp_path / run / log).read_text() for run in ("whole", "broken")]
        assert lines[0] == lines[1], log


def test_a_run_reports_what_it_left_out(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "shards.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    assert main(["run", str(recipe), "--out", str(out), "--set", "data.max_corrupt=0"]) != 0
    assert "cannot be read: 1, more than max_corrupt=0" in capfd.readouterr().err
    assert main(["run", str(recipe), "--out", str(out), "--resume"]) == 0
    [line] = (out / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["name"].endswith("train-0.tar: 0003")
    assert json.loads((out / "result.json").read_text())["skipped_images"] == 1


@pytest.mark.parametrize(
    ("split", "count"), [("validation", "7"), ("validation-{0..1}.tar", "an unknown number")], ids=["info", "shards"]
)
def test_a_dry_run_opens_the_stream(shards: Path, tmp_path: Path, split: str, count: str) -> None:
    recipe = tmp_path / "shards.toml"
    recipe.write_text(RECIPE)
    lines = dry_run(load_recipe(recipe, [f"data.eval_split={split}"]))
    assert lines[1] == f"images: 40 to train or calibrate on, {count} to evaluate"
    with pytest.raises(DataError, match=r"do not fill one batch of 64"):
        dry_run(load_recipe(recipe, ["data.batch_size=64"]))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_train_what_one_trains(shards: Path, tmp_path: Path, workers: int) -> None:
    """Through torchrun on the CPU, over shards that divide unevenly: the same batches, so the same weights up to rounding."""
    recipe = tmp_path / "shards.toml"
    recipe.write_text(RECIPE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    results = []
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        command = [*launch, str(processes), "-m", "qvit", "run", str(recipe), "--out", str(out)]
        done = subprocess.run(
            [*command, "--set", f"data.workers={workers}"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads((out / "result.json").read_text())
        assert (result["images"], result["skipped_images"]) == (7, 1)
        names = {json.loads(line)["name"] for line in (out / "skipped.jsonl").read_text().splitlines()}
        assert len(names) == 1
        losses = [json.loads(line).get("loss") for line in (out / "metrics.jsonl").read_text().splitlines()]
        results.append(([loss for loss in losses if loss is not None], load_tensors(out / "model.safetensors")[0]))
    (losses, weights), (both_losses, both_weights) = results
    assert len(losses) == len(both_losses) == 10
    assert both_losses == pytest.approx(losses, abs=1e-3)
    furthest = max(float((weights[name].float() - both_weights[name].float()).abs().max()) for name in weights)
    assert furthest < 1e-2
