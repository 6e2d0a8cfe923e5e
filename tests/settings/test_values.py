"""Values and recipes: round trip, overrides, paths, and the text of every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvit.bits.allocate import Lagrangian, Published
from qvit.bits.budget import Budget
from qvit.data import DataConfig
from qvit.settings.recipe import ModelConfig, Recipe, RecipeError, load_recipe, recipe_from_values, recipe_to_values
from qvit.settings.values import from_values, to_values
from qvit.spec import FixedBits, LearnedBits, PerChannel, PerTensor, SharedScale, Spec
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit_config import FitConfig

FULL = Recipe(
    method="qvit",
    seed=3,
    model=ModelConfig("vit_tiny_patch16_224", {"img_size": 32, "nested": [1, 2.5, "x"]}, checkpoint="w.pth"),
    train_float=FitConfig(epochs=2.5, seed=3),
    data=DataConfig(dataset="digits", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), mixup=0.8),
    quantize=Spec(
        FixedBits(3),
        LearnedBits(2, 6, 4.0),
        PerTensor(),
        PerChannel(),
        SharedScale(),
        overrides=(("head.*", FixedBits(4)), ("blocks.0.*", LearnedBits(3, 5))),
        keep_float=("blocks.1.mlp",),
    ),
    init_bits="bits.json",
    budget=Budget(kib=12.0),
    fit=FitConfig(allocation=Published(weight=2.0), precision="bf16", tensorboard=True),
    uniform_baseline=4,
)


@pytest.mark.parametrize("recipe", [FULL, Recipe()], ids=["full", "defaults"])
def test_round_trip_through_json(recipe: Recipe) -> None:
    assert recipe_from_values(json.loads(json.dumps(recipe_to_values(recipe)))) == recipe


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    (tmp_path / "r.toml").write_text(text)
    return load_recipe(tmp_path / "r.toml", overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fit]\nepoch = 3", r"unknown key epoch in r.toml.fit; known: epochs, optimizer, "),
        ("fits = 3", r"unknown key fits in r.toml; known: version, method"),
        ("[fit]\nepochs = 'x'", r"r.toml.fit.epochs is 'x'; it must be a float"),
        ("[fit]\naccumulate = 1.5", r"r.toml.fit.accumulate is 1.5; it must be an int"),
        ("[fit]\nrefill = 1", r"r.toml.fit.refill is 1; it must be a bool"),
        ("seed = true", r"r.toml.seed is True; it must be an int"),
        ("fit = 3", r"r.toml.fit is 3; it must be a table"),
        ("[model]\narguments = 'x'", r"r.toml.model.arguments is 'x'; it must be a table"),
        (
            "[fit.allocation]\nkind = 'Greedy'",
            r"r.toml.fit.allocation.kind is 'Greedy'; allowed: Lagrangian, Published",
        ),
        ("[fit.allocation]\nrate = 1.0", r"r.toml.fit.allocation.kind is None; allowed: Lagrangian, Published"),
        ("[fit.allocation]\nkind = ['x']", r"r.toml.fit.allocation.kind is \['x'\]; allowed: Lagrangian, Published"),
        ("[fit]\nkind = 'Spec'", r"r.toml.fit.kind is 'Spec'; it must be 'FitConfig'"),
        (
            "[quantize]\nweights = 3",
            r"r.toml.quantize.weights is 3; it must be a table with kind = 'FixedBits' or 'Lea",
        ),
        ("[quantize]\nweights = {kind = 'FixedBits'}", r"r.toml.quantize.weights: .*missing .*'bits'"),
        ("[quantize]\nweights = {kind = 'FixedBits', bits = 9}", r"FixedBits.bits is 9; bit-widths go from 2 to 8"),
        ("[quantize]\nkeep_float = 'head'", r"r.toml.quantize.keep_float is 'head'; it must be a list"),
        ("[quantize]\noverrides = [['head']]", r"r.toml.quantize.overrides\[0\] has 1 entries; it must have 2"),
        ("[data]\nmean = [1, 2]", r"r.toml.data.mean has 2 entries; it must have 3"),
        ("[budget]\ngbitops = 1\nkib = 2", r"a budget needs exactly one of"),
        ("method = ['qvit']", r"method is \['qvit'\]; allowed: 'qvit', "),
        ("version = 2", r"recipe version 2 is not known; this qvit reads version 1"),
        ("uniform_baseline = 9", r"uniform_baseline is 9; give 2 to 8 bits, or 0 for none"),
        ("seed = 1\n[fit]\nseed = 2", r"fit.seed is 2, but seed is 1; give the seed once, at the top"),
        ("[fit", r"r.toml is not valid TOML: "),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text)


def test_whole_numbers_are_floats_where_a_float_is_wanted() -> None:
    config = from_values(FitConfig, {"epochs": 3}, "fit")
    assert config.epochs == 3.0
    assert type(config.epochs) is float


def test_overrides(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "[fit]\nepochs = 1",
        "fit.epochs=3",
        "model.name=deit_small_patch16_224",
        "model.pretrained=true",
        "fit.allocation={kind = 'Lagrangian', rate = 0.5}",
        "data.dataset=digits",
        "data.mean=[0.5, 0.5, 0.5]",
        "budget.gbitops=2",
        "seed=7",
    )
    assert recipe.fit.epochs == 3
    assert recipe.fit.allocation == Lagrangian(rate=0.5)
    assert recipe.model.name == "deit_small_patch16_224"
    assert recipe.data.mean == (0.5, 0.5, 0.5)
    assert recipe.budget == Budget(gbitops=2.0)
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.epochs", r"override 'fit.epochs' is not KEY=VALUE, such as fit.epochs=3"),
        ("seed.x=1", r"override 'seed.x=1': seed is a value, not a table"),
        ("fit.epoch=1", r"unknown key epoch in r.toml.fit"),
    ],
)
def test_bad_overrides(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, "seed = 0", override)


def test_paths_start_at_the_recipe_and_typed_ones_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = "[model]\ncheckpoint = 'w.pth'\n[data]\ndataset = 'folder'\nroot = '../images'\nclass_map = '/names.txt'"
    recipe = load(tmp_path, text)
    assert recipe.model.checkpoint == str(tmp_path / "w.pth")
    assert recipe.data.root == str(tmp_path.parent / "images")
    assert recipe.data.class_map == "/names.txt"
    recipe = load(tmp_path, text, "data.root=mine")
    assert recipe.data.root == str(elsewhere / "mine")
    assert recipe.model.checkpoint == str(tmp_path / "w.pth")
    for name, expected in (("hfds/../cifar", f"hfds/{tmp_path.parent / 'cifar'}"), ("hfds/cifar10", "hfds/cifar10")):
        assert load(tmp_path, f"[model]\npretrained = true\n[data]\ndataset = '{name}'").data.dataset == expected
    (tmp_path / "pets" / "parquet").mkdir(parents=True)  # a folder that is there is no name on the hub
    assert load(tmp_path, "[model]\npretrained = true\n[data]\ndataset = 'hfds/pets/parquet'").data.dataset == (
        f"hfds/{tmp_path / 'pets' / 'parquet'}"
    )
    for root in ("https://host/shards", "pipe:cat /mnt/shards"):  # addresses of shards, and no folders
        assert load(tmp_path, text, "data.dataset=wds/", f"data.root={root}", "data.class_map=").data.root == root
    assert load(tmp_path, text.replace("'folder'", "'wds/'")).data.root == str(tmp_path.parent / "images")


def test_a_typed_table_starts_at_the_working_directory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it does, and nothing else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = "init_bits = 'b.json'\n[budget]\nkib = 2.0\n[model]\nname = 'vit_tiny_patch16_224'\ncheckpoint = 'w.pth'"
    recipe = load(tmp_path, text, 'data={dataset="folder", root="imgs", class_map="names.txt"}')
    assert recipe.data.root == str(tmp_path / "here" / "imgs")
    assert recipe.data.class_map == str(tmp_path / "here" / "names.txt")
    assert (recipe.init_bits, recipe.model.checkpoint) == (str(tmp_path / "b.json"), str(tmp_path / "w.pth"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe .*none.toml"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(("toml", "expected"), [("3", 3), ("[2, 3]", (2, 3))], ids=["one", "pair"])
def test_a_budget_of_uniform_bits_is_one_number_or_two(toml: str, expected: object, tmp_path: Path) -> None:
    sources = "[model]\npretrained = true\n[data]\ndataset = 'digits'\n"
    budget = load(tmp_path, f"{sources}[budget]\nuniform = {toml}").budget
    assert budget == Budget(uniform=expected)  # type: ignore[arg-type]
    assert from_values(Budget, json.loads(json.dumps(to_values(budget))), "budget") == budget


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("'w2a3'", r"r.toml.budget.uniform is 'w2a3'; it must be an int"),
        ("[2]", r"r.toml.budget.uniform has 1 entries; it must have 2"),
        ("[2, 9]", r"Budget.uniform is 9; bit-widths go from 2 to 8"),
        ("3\ngbitops = 1.0", r"exactly one of .*given: .'gbitops': 1.0, 'uniform': 3"),
    ],
)
def test_what_is_no_budget_of_uniform_bits(toml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, f"[budget]\nuniform = {toml}")


def test_none_is_left_out() -> None:
    assert to_values(Budget(kib=2.0)) == {"kind": "Budget", "kib": 2.0}


@pytest.mark.parametrize("change", [{"distillation": 0.5}, {"features": FeatureDistillation()}])
def test_a_float_model_is_not_its_own_teacher(change: dict) -> None:
    asking = FitConfig(**change)
    text = (
        r"fit asks for a teacher, which a recipe has in its float model alone: the one that is trained here; leave "
        r"fit.distillation and fit.features out"
    )
    with pytest.raises(RecipeError, match=text):
        Recipe(method="float", fit=asking)
    with pytest.raises(RecipeError, match=r"train_float asks for a teacher, .* leave train_float.distillation and"):
        Recipe(train_float=asking)
    Recipe(train_float=FitConfig(), fit=asking)
