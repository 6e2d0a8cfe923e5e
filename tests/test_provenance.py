"""What a resume may change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qvit.provenance import check_recipe, is_harmless
from qvit.recipe import RecipeError, load_recipe, recipe_from_values
from qvit.runs import Run


def test_what_a_change_of_the_recipe_changes(done: tuple[Path, Path]) -> None:
    """Workers change no map-style data set but do change a stream; a float row does not read the spec."""
    row = load_recipe(done[0])
    floating = dataclasses.replace(row, method="float")
    stream = dataclasses.replace(row, data=dataclasses.replace(row.data, dataset="wds/"))
    assert is_harmless("data.workers", row)
    assert not is_harmless("data.workers", stream)
    assert is_harmless("data.max_corrupt", row), "a run that ended at its limit goes on with a higher one"
    assert is_harmless("fit.checkpoint_activations", row), "a run that ended for want of memory goes on with less"
    assert not is_harmless("fit.compile", row), "other rounding"
    assert not is_harmless("quantize.edge.bits", row)
    assert is_harmless("quantize.edge.bits", floating)
    assert not is_harmless("data.batch_size", floating)


def test_a_field_that_came_later_had_its_default(done: tuple[Path, Path], tmp_path: Path) -> None:
    values = json.loads((done[1] / "recipe.json").read_text())
    row = recipe_from_values(values)
    del values["init_bits"]
    run = Run(tmp_path)
    run.write_json("recipe.json", values)
    check_recipe(run, row)
    with pytest.raises(RecipeError, match=r"differs in init_bits; resume it with the same recipe"):
        check_recipe(run, dataclasses.replace(row, init_bits="bits.json"))
