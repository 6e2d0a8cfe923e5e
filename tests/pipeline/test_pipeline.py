"""The whole way on a few digits: float row, uniform row, head-wise row; files, fields, resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import qvit_runtime
from qvit.bits.budget import Budget, BudgetError, check_budget, resolve_budget
from qvit.bits.cost import cost
from qvit.cli import main
from qvit.data import open_eval
from qvit.evaluation.evaluate import evaluate
from qvit.freezing.emitter import FreezeError
from qvit.network.convert import quantize
from qvit.pipeline.context import open_recipe
from qvit.pipeline.finished import load, read_recipe, read_result
from qvit.pipeline.rows import teacher_of, uniform_row
from qvit.pipeline.run import run_recipe
from qvit.quantizers.quantizer import named_quantizers
from qvit.settings.provenance import check_recipe
from qvit.settings.recipe import Recipe, RecipeError, load_recipe, recipe_from_values
from qvit.spec import FixedBits, LearnedBits, Spec
from qvit.system.processes import device_name, process_state
from qvit.system.runs import CheckpointError, Run, load_tensors, save_tensors
from qvit.training.fit_config import FitConfig
from toy_models import vit
from toy_pipeline import FIELDS, UNIFORM3

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_files(done: tuple[Path, Path]) -> None:
    recipe, run = done
    for row in (run, run / "uniform3"):
        for name in (
            "recipe.json",
            "provenance.json",
            "metrics.jsonl",
            "model.safetensors",
            "model.qvit",
            "activations.json",
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
    assert result["device"] == device_name(process_state().device)
    assert result["agreement_frozen"] > 95
    floating = read_result(run / "float")
    assert floating.keys() >= FIELDS
    assert (floating["method"], floating["gbitops"], floating["artifact"]) == ("float", None, None)
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
    assert provenance["device"] == read_result(run)["device"]


def test_a_budget_of_uniform_bits_is_a_number_in_all_that_a_run_leaves(done: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        load_recipe(done[0], ["fit.epochs=0.4", "fit.distillation=0.0", "fit.cache_teacher=false"]),
        **{"budget": Budget(uniform=3), "train_float": None, "uniform_baseline": 0},
    )
    result = run_recipe(recipe, tmp_path / "run", quiet=True)
    number = {"gbitops": pytest.approx(UNIFORM3)}
    assert result["budget"] == number
    assert result["gbitops"] <= result["budget_gbitops"] == pytest.approx(UNIFORM3)
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["budget"] == number
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["budget"] == {"kind": "Budget", "uniform": 3}
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(RecipeError, match=r"another recipe, which differs in budget.uniform; resume it"):
        run_recipe(dataclasses.replace(recipe, budget=Budget(uniform=4)), tmp_path / "run", resume=True, quiet=True)
    assert run_recipe(recipe, tmp_path / "run", resume=True, quiet=True)["budget"] == number


@pytest.mark.parametrize(("edge", "expected"), [(FixedBits(8), 8), (LearnedBits(3, 8), 4)], ids=["fixed", "learned"])
def test_the_uniform_row_learns_no_bits(edge: FixedBits | LearnedBits, expected: int) -> None:
    """It costs what a budget of as many uniform bits is, and needs none."""
    learned = Spec(edge=edge)
    row = uniform_row(Recipe(quantize=learned, budget=Budget(gbitops=1.0), uniform_baseline=4))
    model = quantize(vit(depth=1), row.quantize, quiet=True)
    assert check_budget(model, row.budget) is None
    assert named_quantizers(model)["head.weight"].widths == [expected]
    budget = resolve_budget(Budget(uniform=4), quantize(vit(depth=1), learned, quiet=True))
    assert cost(model).gbitops == pytest.approx(budget.gbitops)


def test_another_image_or_model_is_another_cache_of_logits(done: tuple[Path, Path], tmp_path: Path) -> None:
    """160 images and 161 both make 5 batches of 32, in orders that have nothing in common."""
    shutil.copytree(done[0].parent / "digits", tmp_path / "digits")
    recipe = load_recipe(done[0], [f"data.root={tmp_path / 'digits'}"])

    def caches(recipe: Recipe) -> int:
        context = dataclasses.replace(open_recipe(recipe, quiet=True), cache=tmp_path / "cache")
        assert context.splits.train_batches == 5
        teacher_of(context, recipe.fit)
        return len(list((tmp_path / "cache").iterdir()))

    assert [caches(recipe), caches(recipe)] == [1, 1]
    norm = {"norm_layer": "layernorm"}  # what it has anyway: the same weights, in what might be another network
    model = dataclasses.replace(recipe.model, arguments={**recipe.model.arguments, **norm})
    assert caches(dataclasses.replace(recipe, model=model)) == 2
    image = next((tmp_path / "digits" / "train" / "3").iterdir())
    shutil.copy(image, image.with_name("0.png"))
    assert caches(recipe) == 3


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


def test_a_finished_run_is_not_passed_off_as_another_recipe(done: tuple[Path, Path]) -> None:
    path, run = done
    with pytest.raises(
        RecipeError, match=r"uniform3 was started with another recipe, which differs in fit.epochs; resume"
    ):
        run_recipe(load_recipe(path, ["fit.epochs=3"]), run, resume=True, quiet=True)
    with pytest.raises(RecipeError, match=r"float was started with another recipe, which differs in fit.epochs;"):
        run_recipe(load_recipe(path, ["train_float.epochs=3"]), run, resume=True, quiet=True)


def test_what_freeze_refuses_is_refused_before_training(done: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = load_recipe(done[0], ["quantize.keep_float=['head']"])
    with pytest.raises(FreezeError, match="head was kept float"):
        run_recipe(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_resume_with_another_recipe_is_refused(done: tuple[Path, Path]) -> None:
    path, run = done
    (run / "result.json").rename(run / "kept.json")
    try:
        recipe = load_recipe(path, ["fit.epochs=3", "quantize.edge={kind='FixedBits',bits=7}", "budget.gbitops=1"])
        recipe = dataclasses.replace(recipe, uniform_baseline=0)
        text = r"differs in budget.gbitops, fit.epochs, quantize.edge.bits, uniform_baseline; resume it"
        with pytest.raises(RecipeError, match=text):
            run_recipe(recipe, run, resume=True, quiet=True)
        other_workers = load_recipe(path, ["data.workers=1"])
        result = run_recipe(other_workers, run, resume=True, quiet=True)
        assert result["top1"] == json.loads((run / "kept.json").read_text())["top1"]
        assert result["training_seconds"] > load_tensors(Run(run).checkpoints()[-1])[1]["seconds"] > 0
        assert result["images_per_second"] == pytest.approx(2 * 5 * 32 / result["training_seconds"])
        provenance = json.loads((run / "provenance.json").read_text())
        assert len(provenance["resumed"]) == 1
        assert provenance["resumed"][0]["started"] >= provenance["started"]
    finally:
        (run / "kept.json").replace(run / "result.json")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"budget": Budget(gbitops=1e-9)}, BudgetError, "a budget of 1e-09 gbitops cannot be met"),
        ({"budget": None}, ValueError, r"needs a budget: .* or \[budget\] in the recipe"),
        pytest.param({"fit": FitConfig(cuda_graph=True)}, ValueError, "this run is on cpu", marks=without_gpu),
        pytest.param({"train_float": FitConfig(cuda_graph=True)}, ValueError, "this run is on cpu", marks=without_gpu),
    ],
    ids=["impossible", "missing", "graph", "graph of the float row"],
)
def test_a_recipe_is_checked_before_the_float_row_trains(
    changes: dict, error: type[Exception], text: str, done: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(load_recipe(done[0]), **changes)
    with pytest.raises(error, match=text):
        run_recipe(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_damaged_files_and_those_of_another_version_are_named(done: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(done[1] / "uniform3", tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    tensors, state = load_tensors(run / "model.safetensors")
    save_tensors(run / "model.safetensors", {name: t for name, t in tensors.items() if name != "cls_token"}, state)
    with pytest.raises(CheckpointError, match=r"run was made by another version .* do not fit: (.|\n)*cls_token"):
        load(run)
    (run / "result.json").write_text('{"schema": 1, "mod')
    with pytest.raises(CheckpointError, match=r"run/result.json is damaged: Unterminated string"):
        read_result(run)
    for content, text in (("", "Expecting value"), (json.dumps({**recipe, "new": 1}), "unknown key new in recipe")):
        (run / "recipe.json").write_text(content)
        with pytest.raises(RecipeError, match=rf"run/recipe.json is damaged or of another version of qvit: {text}"):
            read_recipe(run)
        with pytest.raises(RecipeError, match=rf"run/recipe.json is damaged or of another version of qvit: {text}"):
            check_recipe(Run(run), recipe_from_values(recipe))


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors does not exist"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no result.json: the run is not finished"):
        read_result(tmp_path)
