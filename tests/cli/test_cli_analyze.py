"""qvit analyze from the command line: a recipe, a timm model with a flat folder, the files it leaves, errors of one line."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from qvit.analysis.table import table
from qvit.bits.init_bits import apply_init_bits
from qvit.cli.analyze import add_analyze
from qvit.data.config import DataError
from qvit.data.digits import open_digits
from qvit.network.convert import quantize
from qvit.pipeline.float_model import create_float_model
from qvit.settings.recipe import load_recipe
from qvit.system.runs import CheckpointError

RECIPE = """
[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 14, embed_dim = 16, depth = 1, num_heads = 2, num_classes = 10 }
checkpoint = "tiny.safetensors"

[data]
dataset = "folder"
root = "digits"
crop = 1.0
batch_size = 8
"""
ARGUMENTS = tomllib.loads(RECIPE)["model"]["arguments"]
FEW = ("--images", "24", "--calibration-images", "8", "--batch-size", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its digits: 4 training and 4 validation images of each class."""
    base = tmp_path_factory.mktemp("analyze")
    for split in ("train", "validation"):
        source = open_digits(split)
        for index in range(0, len(source), len(source) // 40):
            pixels, label = source.read(index)
            target = base / "digits" / split / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target / f"{index}.png")
    (base / "tiny.toml").write_text(RECIPE)
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", **ARGUMENTS).state_dict(), base / "tiny.safetensors")
    return base


def run(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_analyze(parser.add_subparsers()).add_argument("--json")
    arguments = parser.parse_args(["analyze", *words])
    return arguments.verb(arguments)


def test_fewer_training_images_than_a_batch(folder: Path, tmp_path: Path) -> None:
    """Nothing is trained, so no batch has to be filled."""
    recipe = folder / "large_batch.toml"
    recipe.write_text(RECIPE.replace("batch_size = 8", "batch_size = 128"))
    assert run(str(recipe), "--bits", "4", *FEW, "--out", str(tmp_path))["images"] == 24


def test_a_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Result, verdict and start bits; a second time with --resume reads the first."""
    words = (str(folder / "tiny.toml"), "--bits", "2,4", *FEW, "--out", str(tmp_path), "--budget-gbitops", "0.0025")
    result = run(*words)
    out, err = capsys.readouterr()
    assert "\n".join([table(result), "", *result["verdict"], "", "wrote "]) in out
    assert out.endswith(
        f"wrote {tmp_path}/analysis.json and {tmp_path}/init_bits.json\n"
        f"next: start learned bits there: qvit run RECIPE --set init_bits={tmp_path}/init_bits.json\n"
    )
    assert "img/s" in err
    assert json.loads((tmp_path / "analysis.json").read_text()) == result
    assert (result["images"], result["labelled"], result["bits"]) == (24, 24, [2, 4])
    assert result["verdict"][-1].startswith("allocation under 0.0025 GBitOPs (0.002")
    model = quantize(create_float_model(load_recipe(folder / "tiny.toml").model), quiet=True)
    apply_init_bits(model, tmp_path / "init_bits.json")
    assert run(*words, "--resume") == result
    assert "img/s" not in capsys.readouterr().err


def test_a_flat_folder_has_no_labels(folder: Path, tmp_path: Path) -> None:
    """Calibration and measurement divide it: 40 images of which 8 calibrate."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted((folder / "digits" / "train").rglob("*.png"))):
        (flat / f"{index}.png").write_bytes(path.read_bytes())
    recipe = (str(folder / "tiny.toml"), "--data", str(flat))
    result = run(*recipe, "--bits", "3", *FEW[2:], "--out", str(tmp_path / "out"))
    count = len(list(flat.iterdir()))
    assert (result["judged_by"], result["labelled"], result["images"]) == ("float", 0, count - 8)
    with pytest.raises(
        DataError, match=r"holds 40 images, too few to calibrate on 39 and to measure on others; give more"
    ):
        run(*recipe, "--calibration-images", "39", "--out", str(tmp_path / "other"))


def test_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(folder / "tiny.toml")
    with pytest.raises(
        ValueError, match=r"^deit_tiny_patch16_224 does not say which images to read; give --data FOLDER"
    ):
        run("deit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"^bits are 3,9; give different widths from 2 to 8, such as 2,3,4$"):
        run(recipe, "--bits", "3,9")
    with pytest.raises(ValueError, match=r"^an allocation chooses between bit-widths: give --bits two or more"):
        run(recipe, "--bits", "3", "--budget-gbitops", "1", "--out", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no recipe.json, so it is no run directory$"):
        run(str(folder))
    with pytest.raises(CheckpointError, match=r"^there is no checkpoint /.*/none.pth;"):
        run("vit_tiny_patch16_224", "--checkpoint", "none.pth", "--data", "digits")
    with pytest.raises(SystemExit):
        run(recipe, "--bits", "two")
    assert "argument --bits: 'two' is not a list of bit-widths such as 2,3,4" in capsys.readouterr().err
