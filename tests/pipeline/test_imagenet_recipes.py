"""The recipes for ImageNet are what make.py writes, and their budgets are those of the uniform models they name."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from paths import ROOT
from qvit.settings.recipe import load_recipe

FOLDER = ROOT / "recipes" / "imagenet"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_what_make_writes(make: ModuleType) -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.toml")}
    assert written == make.recipes(), "run python recipes/imagenet/make.py"
    assert len(written) == 30


def test_every_file_loads_and_is_named_after_its_model_budget_and_length() -> None:
    for path in FOLDER.glob("*.toml"):
        recipe = load_recipe(path)
        assert recipe.model.name.startswith("_".join(path.stem.split("_")[:2]))
        assert recipe.fit.epochs == (4 if path.stem.endswith("_short") else 300)
        assert (recipe.fit.features is not None) == path.stem.endswith("_short")
        assert recipe.fit.activations_first == (0.25 if path.stem.endswith("_short") else 0)


@pytest.mark.parametrize(  # derived by hand from the shapes: 8-bit first and last layers, methods' table in GBitOPs
    ("name", "expected"),
    [
        ("deit_tiny_4bit", 21.455),
        ("deit_tiny_3bit", 12.883),
        ("deit_small_4bit", 76.375),
        ("deit_small_3bit", 44.590),
        ("deit_base_4bit", 286.607),
        ("deit_base_3bit", 164.475),
        ("swin_tiny_4bit", 72.580),
        ("swin_tiny_3bit", 41.252),
    ],
)
@pytest.mark.parametrize("length", ["", "_short"])
def test_budgets_of_the_papers_rules(name: str, length: str, expected: float) -> None:
    budget = load_recipe(FOLDER / f"{name}{length}.toml").budget
    assert budget is not None
    assert round(budget.gbitops or 0, 3) == expected


def test_w2a3_is_6_bit_products_in_layers_and_9_in_attention() -> None:
    """DeiT-Tiny by hand: 12 blocks of 197 tokens, 192 channels; patch embedding and classifier at 8 bits."""
    tokens, width = 197, 192
    layers, attention = 12 * tokens * 12 * width**2, 12 * 2 * tokens**2 * width
    edge = (196 * 768 * width + width * 1000) * 64
    budget = load_recipe(FOLDER / "deit_tiny_w2a3.toml").budget
    assert budget is not None
    assert budget.gbitops == pytest.approx((6 * layers + 9 * attention + edge) / 1e9, rel=1e-12)
