"""compare(): rows of several methods beside each other, judged on the same images.

Each row comes from a finished run directory: numbers from result.json, the difference to the float model with its paired
95 % interval (`paired`) from predictions.safetensors, the latency from its artifact in the native engine. The first thing
that is checked is that all rows were judged on the same images, since otherwise nothing here could be compared. Rows may come
from different float models, as models of different sizes do: each stands below the float model that it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qvit_runtime
from qvit_runtime.bench import measure, random_images

from ..evaluation.outcome import load_predictions
from ..evaluation.paired import paired
from ..settings.recipe import FLOAT
from .finished import read_result

KEPT = (
    "method",
    "method_name",
    "model",
    "seed",
    "epochs",
    "images",
    "top1",
    "top1_float",
    "top1_frozen",
    "agreement_float",
    "agreement_frozen",
    "collapse",
    "gbitops",
    "average_weight_bits",
    "average_activation_bits",
    "artifact_kib",
    "calibration_seconds",
    "training_seconds",
)


def compare(runs: Sequence[Path], threads: int = 1, repeats: int = 30) -> dict[str, Any]:
    """{"images", "threads", "rows"} of finished run directories, in their order.

    The first row is the float model; another one follows wherever the next run was compared with one that predicts otherwise.

    Raises ValueError when the runs were judged on different images, and what `read_row` raises.
    """
    rows: list[dict[str, Any]] = []
    before: dict[str, np.ndarray] | None = None
    for run in runs:
        result, predictions = read_row(run), load_predictions(run)
        if before is not None and not np.array_equal(before["labels"], predictions["labels"]):
            raise ValueError(f"{run} was judged on other images than {runs[0]}: give all rows the same data and split")
        if before is None or not np.array_equal(before["float"], predictions["float"]):
            rows.append({"method": FLOAT, "top1": result["top1_float"], "model": result["model"]})
        before = predictions
        rows.append(
            {
                "run": str(run),
                **{key: result[key] for key in KEPT},
                **_difference(predictions),
                "milliseconds": latency(qvit_runtime.load(run / "model.qvit"), threads, repeats),
            }
        )
    return {"images": rows[-1]["images"], "threads": threads, "rows": rows}


def read_row(run: Path) -> dict[str, Any]:
    """result.json of a run that can be a row. Raises ValueError for a float run, and for a result of another version of qvit."""
    result = read_result(run)
    if result.get("method_name") == FLOAT:
        raise ValueError(f"{run} is a float run; it is part of every row already")
    missing = [key for key in KEPT if key not in result]
    if missing:
        raise ValueError(
            f"{run / 'result.json'} is of another version of qvit, it lacks {', '.join(missing)}; run it anew"
        )
    return result


def _difference(predictions: dict[str, np.ndarray]) -> dict[str, Any]:
    """Top-1 minus that of the float model and half its 95 % interval, in points; None without labels."""
    labels = predictions["labels"]
    known = labels >= 0
    if known.sum() < 2:
        return {"difference": None, "half_width": None}
    found = paired(*(predictions[name][known] == labels[known] for name in ("module", "float")))
    return {"difference": found.difference, "half_width": found.half_width}


def latency(program: qvit_runtime.Program, threads: int, repeats: int) -> float:
    """Median milliseconds of one image in the native engine."""
    return 1000 * measure(qvit_runtime.Engine(program, threads), random_images(program, 1), repeats).median
