"""From records to rows: differences, ranks with ties, decibels, all made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qvit.analysis.components import Site, Subject
from qvit.analysis.results import analysis_of, decibels

SUBJECTS = [Subject("component", name, (Site(name, 0),)) for name in ("map", "gelu", "proj")]
IMAGES = 40


def record(batch: int, classes: dict[str, list[int]], noise: float = 1.0) -> dict[str, Any]:
    """20 images of class 0 that the float model gets right; what the variants say instead."""
    tensors = {name: {"noise": [noise], "signal": [100.0], "logits": [2.0]} for name in ("map", "gelu", "proj")}
    return {
        "bits": 3,
        "batch": batch,
        "labels": [0] * 20,
        "float": [0] * 20,
        "signal": 1000.0,
        "variants": {key: {"classes": found, "noise": 5.0} for key, found in classes.items()},
        "sites": {"signal": 400.0, "tensors": tensors},
    }


def wrong(count: int, first: int = 0) -> list[int]:
    return [int(first <= index < first + count) for index in range(20)]


def records() -> list[dict[str, Any]]:
    """Per batch alone: the map loses 8 of 20, GELU 7 others, proj none; in company all lose 10, without the map 2."""
    classes = {
        "alone component map": wrong(8),
        "alone component gelu": wrong(7, first=10),
        "alone component proj": wrong(0),
        "everything": wrong(10),
        "all but component map": wrong(2),
        "all but component gelu": wrong(10),
        "all but component proj": wrong(10),
    }
    settings = {"settings": {"finetune_steps": 0}}
    return [settings, record(1, classes, noise=3.0), record(0, classes)]


def test_rows() -> None:
    found = analysis_of(records(), SUBJECTS)
    rows = {(row["mode"], row["name"]): row for row in found["rows"]}
    assert [rows["alone", name]["rank"] for name in ("map", "gelu", "proj")] == [1, 1, 3]
    assert [rows["all but", name]["rank"] for name in ("map", "gelu", "proj")] == [1, 2, 2]
    alone = rows["alone", "map"]
    share = 16 / IMAGES
    assert alone["loss"] == 40.0
    assert alone["loss_half_width"] == pytest.approx(196 * math.sqrt(share * (1 - share) / (IMAGES - 1)), abs=1e-3)
    assert alone["agreement"] == 60.0
    assert alone["logit_sqnr_db"] == decibels(10.0, 2000.0)
    assert alone["tensor_sqnr_db"] == decibels(4.0, 200.0)
    assert (rows["all but", "map"]["loss"], rows["all but", "map"]["gain"]) == (10.0, 40.0)
    assert (rows["all but", "gelu"]["gain"], rows["all but", "gelu"]["gain_half_width"]) == (0.0, 0.0)
    assert found["everything"] == [
        {
            "bits": 3,
            "finetune_steps": 0,
            "loss": 50.0,
            "loss_half_width": pytest.approx(196 * math.sqrt(0.25 / (IMAGES - 1)), abs=1e-3),
            "agreement": 50.0,
            "logit_sqnr_db": decibels(10.0, 2000.0),
        }
    ]
    assert found["sites"][0] == {
        "tensor": "map",
        "bits": 3,
        "tensor_sqnr_db": [decibels(4.0, 200.0)],
        "logit_sqnr_db": [decibels(4.0, 800.0)],
    }


def test_images_without_a_label_do_not_count() -> None:
    """Half of them lose their labels: the loss is that of the others, agreement that of all."""
    changed = records()
    for part in changed[1:]:
        part["labels"] = [-1] * 10 + [0] * 10
    found = analysis_of(changed, SUBJECTS)
    rows = {(row["mode"], row["name"]): row for row in found["rows"]}
    assert (found["judged_by"], found["labelled"], found["top1_float"]) == ("labels", 20, 100.0)
    assert [rows["alone", name]["loss"] for name in ("map", "gelu")] == [0.0, 70.0]
    assert [rows["alone", name]["agreement"] for name in ("map", "gelu")] == [60.0, 65.0]


def test_trained_variants_have_their_own_reference() -> None:
    """The trained float model is wrong on 4 of 40; a trained variant that is wrong on 6 loses 5 points, not 15."""
    changed = records()
    changed[0]["settings"]["finetune_steps"] = 7
    classes = [1] * 4 + [0] * 36
    for name, count in (("float", 4), ("everything", 6), ("alone component map", 6), ("all but component map", 5)):
        changed.append(
            {"bits": 3, "finetuned": name, "classes": [1] * count + [0] * (40 - count), "noise": 1.0, "signal": 10.0}
        )
    changed[3]["bits"] = 0
    found = analysis_of(changed, SUBJECTS)
    trained = {row["mode"]: row for row in found["rows"] if row["finetune_steps"] == 7}
    assert changed[3]["classes"] == classes
    assert trained["alone"]["loss"] == 5.0
    assert trained["alone"]["logit_sqnr_db"] == 10.0
    assert (trained["all but"]["loss"], trained["all but"]["gain"]) == (2.5, 2.5)


@pytest.mark.parametrize(
    ("noise", "signal", "expected"), [(1.0, 100.0, 20.0), (100.0, 1.0, -20.0), (0.0, 1.0, None), (1.0, 0.0, None)]
)
def test_decibels(noise: float, signal: float, expected: float | None) -> None:
    assert decibels(noise, signal) == expected
