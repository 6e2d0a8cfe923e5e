"""The outcome of a row: what counts as collapsed, and predictions that come back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qvit.evaluation.evaluate import Evaluation
from qvit.evaluation.outcome import Judged, collapse, load_predictions, outcome, save_predictions
from qvit.system.runs import CheckpointError, Run


@pytest.mark.parametrize(
    ("top1", "top1_float", "classes", "text"),
    [
        (29.9, 77.0, 10, r"collapsed: top-1 29.90 % is below 3 times chance \(10.00 %\)"),
        (30.1, 45.0, 10, None),
        (56.9, 77.0, 10, r"collapsed: top-1 56.90 % is more than 20 points under the float model \(77.00 %\)"),
        (57.1, 77.0, 10, None),
        (0.1, 72.2, 1000, r"collapsed: top-1 0.10 % is below 3 times chance \(0.10 %\)"),
        (60.0, 70.0, 2, None),  # three times chance is out of the float model's reach, too
        (1.0, 2.5, 10, None),
        (None, None, 10, None),
        (50.0, 77.0, None, r"more than 20 points under the float model"),
    ],
)
def test_collapse(top1: float | None, top1_float: float | None, classes: int | None, text: str | None) -> None:
    found = collapse(top1, top1_float, classes)
    if text is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(text, found)


def evaluation(predictions: list[int], labels: list[int]) -> Evaluation:
    found, truth = np.array(predictions), np.array(labels)
    known = truth >= 0
    top1 = float((found == truth)[known].mean() * 100) if known.any() else None
    return Evaluation(len(found), int(known.sum()), top1, None, found, truth, (found == truth)[known])


def test_predictions_come_back(tmp_path: Path) -> None:
    labels = [0, 1, 2, 3]
    judged = Judged(evaluation([0, 1, 2, 0], labels), evaluation([0, 1, 1, 0], labels), evaluation(labels, labels))
    save_predictions(Run(tmp_path), judged)
    found = load_predictions(tmp_path)
    assert {name: classes.tolist() for name, classes in found.items()} == {
        "labels": labels,
        "module": [0, 1, 2, 0],
        "program": [0, 1, 1, 0],
        "float": labels,
    }
    record = outcome({"gbitops": 1.0}, judged, None, 4)
    assert (record["top1"], record["top1_frozen"], record["top1_float"]) == (75, 50, 100)
    assert (record["agreement_float"], record["agreement_frozen"], record["gbitops"]) == (75, 75, 1.0)
    assert "more than 20 points" in record["collapse"]


def test_without_labels_there_is_agreement_only() -> None:
    judged = Judged(*(evaluation(classes, [-1, -1]) for classes in ([0, 1], [0, 1], [0, 0])))
    record = outcome({}, judged, None, 4)
    assert (record["top1"], record["collapse"], record["agreement_float"]) == (None, None, 50)


def test_a_run_without_predictions_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"predictions.safetensors does not exist"):
        load_predictions(tmp_path)
