"""What a resume may change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qvit.provenance import is_harmless
from qvit.recipe import load_recipe


def test_what_a_change_of_the_recipe_changes(done: tuple[Path, Path]) -> None:
    """Workers change no map-style data set but do change a stream; a float row does not read the spec."""
    row = load_recipe(done[0])
    floating = dataclasses.replace(row, method="float")
    stream = dataclasses.replace(row, data=dataclasses.replace(row.data, dataset="wds/"))
    assert is_harmless("data.workers", row)
    assert not is_harmless("data.workers", stream)
    assert not is_harmless("quantize.edge.bits", row)
    assert is_harmless("quantize.edge.bits", floating)
    assert not is_harmless("data.batch_size", floating)
