"""Every recipe in the repository loads, has a reachable budget, and passes its dry run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from paths import ROOT
from qvit.bits.budget import Budget, BudgetError, check_budget
from qvit.bits.cost import cost
from qvit.data import DataError
from qvit.freezing.emitter import FreezeError
from qvit.methods import METHODS
from qvit.pipeline.float_model import create_float_model
from qvit.planning.dry_run import dry_run, not_looked_at
from qvit.settings.recipe import FLOAT, Recipe, load_recipe
from qvit.spec import FixedBits, Spec
from qvit.system.runs import CheckpointError
from qvit.training.fit_config import FitConfig
from toy_models import uniform

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
QUICK = ("demo", "swin_lsq_w2a2")  # one of each architecture in the default suite; every recipe in `make test-all`


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


def test_there_are_recipes() -> None:
    assert {p.stem for p in RECIPES} >= set(QUICK)


def slow_for_imagenet(path: Path) -> list[pytest.MarkDecorator]:
    """Thirty large models; what they cost exactly is in test_imagenet_recipes, in the default suite."""
    return [pytest.mark.slow] if path.parent.name == "imagenet" else []


@pytest.mark.parametrize("path", [pytest.param(p, id=name_of(p), marks=slow_for_imagenet(p)) for p in RECIPES])
def test_loads_and_the_budget_is_reachable(path: Path) -> None:
    recipe = load_recipe(path)
    bare = dataclasses.replace(recipe.model, checkpoint="", pretrained=False)
    with torch.device("meta"):  # shapes are all that a budget needs, and some of these models are large
        model = create_float_model(bare)
    if recipe.method != FLOAT:
        check_budget(METHODS[recipe.method].quantize(model, recipe.quantize), recipe.budget)


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=name_of(p), marks=[] if p.stem in QUICK else pytest.mark.slow) for p in RECIPES]
)
def test_dry_run(path: Path) -> None:
    recipe = load_recipe(path)
    lines = dry_run(recipe)
    kinds = [line.partition(":")[0] for line in lines]
    quantized = recipe.method != FLOAT
    steps = {
        "model": True,
        "images": not any(absent.startswith("images of") for absent in not_looked_at(recipe)),
        "data": True,
        "float training": quantized and recipe.train_float is not None,
        "calibration": quantized,
        "budget": recipe.budget is not None and quantized,
        "training": recipe.fit.epochs > 0,
        "freeze": quantized,
    }
    assert kinds == [step for step, expected in steps.items() if expected]
    trained = sum("training: 2 of 4 steps done" in line for line in lines)
    assert trained == steps["training"] + steps["float training"]


def small(**changes: object) -> Recipe:
    recipe = load_recipe(ROOT / "recipes" / "demo.toml")
    arguments = {**recipe.model.arguments, "depth": 1, "embed_dim": 16, "num_heads": 2}
    model = dataclasses.replace(recipe.model, arguments=arguments)
    return dataclasses.replace(recipe, **{"model": model, "quantize": uniform(4), "budget": None, **changes})  # type: ignore[arg-type]


def test_dry_run_needs_neither_data_nor_weights() -> None:
    """The data set and the checkpoint of the recipe do not exist; a large accumulation is no obstacle either."""
    recipe = small()
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, checkpoint="nowhere.safetensors"),
        data=dataclasses.replace(recipe.data, dataset="folder", root="nowhere", batch_size=256),
        fit=dataclasses.replace(recipe.fit, accumulate=64),
    )
    assert dry_run(recipe)[-1].startswith("freeze: ")
    assert not_looked_at(recipe) == ["images of nowhere (not found)", "checkpoint nowhere.safetensors (not found)"]


def test_dry_run_tries_the_training_of_the_float_model_too() -> None:
    """It comes first in the run, and its settings are its own."""
    recipe = small(train_float=FitConfig(optimizer="admaw"))
    with pytest.raises(ValueError, match="Optimizer admaw not found"):
        dry_run(recipe)


@pytest.mark.parametrize(
    ("data", "absent"),
    [
        ({}, []),
        ({"dataset": "folder", "root": "nowhere"}, ["images of nowhere (not found)"]),
        ({"dataset": "hfds//nowhere/cifar"}, ["images of hfds//nowhere/cifar (not found)"]),
        ({"dataset": "hfids/timm/imagenet-1k-wds"}, ["images of hfids/timm/imagenet-1k-wds (fetched by the run)"]),
        ({"dataset": "wds/", "root": "shards"}, ["images of shards (not found)"]),
        ({"dataset": "wds/", "root": "https://host/x"}, ["images of https://host/x (fetched by the run)"]),
    ],
)
def test_what_a_dry_run_does_without(data: dict[str, str], absent: list[str]) -> None:
    recipe = small(train_float=None)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **data))  # type: ignore[arg-type]
    assert not_looked_at(recipe) == absent
    fetched = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=True))
    assert not_looked_at(fetched) == [*absent, "weights of vit_tiny_patch16_224 (fetched by the run)"]


def test_dry_run_looks_at_what_is_here(tmp_path: Path) -> None:
    """Weights that do not fit, folders that are other classes than the outputs, and small files that are missing."""
    recipe = small()
    weights = tmp_path / "w.pth"
    torch.save({"cls_token": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"w.pth does not fit the model"):
        dry_run(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, checkpoint=str(weights))))
    for split in ("train", "validation"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (28, 28)).save(tmp_path / split / "cat" / "0.png")
    data = dataclasses.replace(recipe.data, dataset="folder", root=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=r"has 1 classes \(cat\), but the model has 10 outputs"):
        dry_run(dataclasses.replace(recipe, data=data))
    with pytest.raises(DataError, match=r"split 'test' is not a folder"):
        dry_run(dataclasses.replace(recipe, data=dataclasses.replace(data, eval_split="test")))
    with pytest.raises(DataError, match=r"class_map='names.txt' is not a file"):
        dry_run(dataclasses.replace(recipe, data=dataclasses.replace(data, root="nowhere", class_map="names.txt")))
    with pytest.raises(ValueError, match=r"none.json"):
        dry_run(small(budget=Budget(milliseconds=1.0, table="none.json"), quantize=Spec()))
    with pytest.raises(ValueError, match=r"there is no init_bits file none.json"):
        dry_run(small(init_bits="none.json", budget=Budget(uniform=4), quantize=Spec()))


def test_dry_run_passes_the_stage_of_float_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one than the steps that it makes."""
    fitted: list[nn.Module] = []
    monkeypatch.setattr("qvit.training.activations_first.fit_weights", fitted.append)
    recipe = small()
    dry_run(dataclasses.replace(recipe, fit=dataclasses.replace(recipe.fit, activations_first=0.7, lock_at=0.8)))
    assert len(fitted) == 1


def test_dry_run_says_what_a_budget_of_uniform_bits_is() -> None:
    recipe = small(quantize=Spec(), budget=Budget(uniform=(2, 3)))
    model = METHODS["qvit"].quantize(create_float_model(recipe.model), Spec(FixedBits(2), FixedBits(3)))
    assert any(f"budget: {cost(model).gbitops:g} gbitops; this model reaches" in line for line in dry_run(recipe))


def test_dry_run_fails_where_the_run_would() -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        dry_run(small(budget=Budget(gbitops=1e-9)))
    with pytest.raises(FreezeError):
        dry_run(small(quantize=dataclasses.replace(uniform(4), keep_float=("blocks.0.mlp",))))
