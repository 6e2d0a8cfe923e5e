"""`qvit eval --reference`: each model gets the images as it was made for them, and the weights that are its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import qvit_runtime
from qvit.cli import main
from qvit.data import DataConfig, open_eval
from qvit.evaluation.evaluate import evaluate
from toy_models import lively
from toy_programs import vit_program

ARGUMENTS = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
DATA = DataConfig(dataset="digits", image_size=28, num_classes=10, crop_mode="center", interpolation="bicubic")


def agreement(capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    assert main(["eval", *arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)["agreement"]


def predictions(model: torch.nn.Module | qvit_runtime.Program, **looks: object) -> np.ndarray:
    return evaluate(model, open_eval(dataclasses.replace(DATA, **looks))).predictions  # type: ignore[arg-type]


def tiny(seed: int) -> torch.nn.Module:
    return lively(timm.create_model("vit_tiny_patch16_224", **ARGUMENTS), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights with a preprocessing of their own, in timm's format."""
    place = tmp_path_factory.mktemp("hub") / "tiny_vit"
    looks = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bicubic"}
    timm.models.save_for_hf(tiny(0), str(place), safe_serialization=True, data_config=looks)
    return place


def test_each_gets_its_own_preprocessing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights behind two means: they do not agree, although on the images of either one they would."""
    other = tmp_path / "other"
    timm.models.save_for_hf(
        tiny(0), str(other), safe_serialization=True, data_config={"mean": (0.8, 0.2, 0.9), "std": (0.1, 0.9, 0.2)}
    )
    mine = predictions(tiny(0), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=1.0)
    others = predictions(tiny(0), mean=(0.8, 0.2, 0.9), std=(0.1, 0.9, 0.2), crop=0.9)
    expected = float((mine == others).mean() * 100)
    assert expected < 90
    found = agreement(capsys, f"local-dir:{folder}", "--data", "digits", "--reference", f"local-dir:{other}")
    assert found == expected


def test_a_checkpoint_is_that_of_the_model_that_is_evaluated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuned weights against those that the name stands for."""
    save_file(tiny(1).state_dict(), tmp_path / "tuned.safetensors")
    name, looks = f"local-dir:{folder}", {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop": 1.0}
    expected = float((predictions(tiny(1), **looks) == predictions(tiny(0), **looks)).mean() * 100)
    assert expected < 90
    weights = ["--checkpoint", str(tmp_path / "tuned.safetensors")]
    assert agreement(capsys, name, "--data", "digits", *weights, "--reference", name) == expected


def test_a_checkpoint_goes_to_the_reference_where_the_model_has_weights(
    done: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, digits = done[1] / "float", str(done[0].parent / "digits")
    name, found = f"local-dir:{folder}", []
    for seed in (0, 1):
        save_file(tiny(seed).state_dict(), tmp_path / "weights.safetensors")
        weights = ["--checkpoint", str(tmp_path / "weights.safetensors")]
        found.append(agreement(capsys, str(run), "--data", digits, *weights, "--reference", name))
    assert found[0] != found[1]


def test_a_reference_with_other_classes_is_refused(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, artifact = tmp_path / "other.qvit", str(done[1] / "model.qvit")
    qvit_runtime.save(vit_program(), other)
    assert main(["eval", artifact, "--data", str(done[0].parent / "digits"), "--reference", str(other)]) == 2
    classes = vit_program().buffers[vit_program().output].shape[-1]
    text = f"{artifact} has 10 classes and the reference {other} {classes} classes; give a reference that has the same"
    assert text in capsys.readouterr().err
