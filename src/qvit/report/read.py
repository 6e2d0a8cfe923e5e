"""read_run(): the files of one run directory as one typed value (`run.py`). A part that is not there is None or empty.

    result.json        Outcome         what the row is and what came out      recipe.json, provenance.json   as they are
    metrics.jsonl      numbers by step                                        bench.json     Bench (qvit-runtime bench --json)
    bits.jsonl         Widths by step                                         analysis.json  as it is (qvit analyze)
    model.qvit         Artifact (`artifact`)                                  model.safetensors   scale banks (`banks`)
    activations.json   Activations (`activations`)

What is used is checked here, so that a damaged file is one line that names it and not a page with a hole. The last line of a
log may be cut off, by a kill or because the run is writing it just now; any other broken line is damage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..evaluation.activation_histogram import ACTIVATIONS
from ..methods import learns_bits
from ..settings.recipe import FLOAT, recipe_from_values
from ..spec import Spec
from ..system.runs import load_tensors
from .activations import Activations, activations_of
from .artifact import read_artifact
from .banks import read_banks
from .find import ReportError
from .run import Bench, Numbers, Outcome, Run, StepTime, Widths

BENCH, MODEL = "bench.json", "model.safetensors"


def read_run(name: str, path: Path) -> Run:
    """Read a run directory, or a result file alone. Raises ReportError naming the file that is damaged."""
    if path.is_file():
        return Run(name, path, _outcome(path), None, False, None, (), (), None, None, None, None, ())
    tensors, spec = _model(path / MODEL)
    artifact = path / "model.qvit"
    return Run(
        name=name,
        path=path,
        outcome=_outcome(path / "result.json"),
        recipe=_json(path / "recipe.json"),
        learns_bits=_learns_bits(path / "recipe.json"),
        provenance=_json(path / "provenance.json"),
        metrics=_metrics(path / "metrics.jsonl"),
        history=_history(path / "bits.jsonl"),
        analysis=_analysis(path / "analysis.json"),
        bench=_bench(path / BENCH),
        artifact=read_artifact(artifact, tensors) if artifact.exists() else None,
        activations=_activations(path / ACTIVATIONS),
        banks=read_banks(tensors, spec) if isinstance(spec, Spec) else (),
    )


def _model(path: Path) -> tuple[dict[str, Tensor], Any]:
    """(state of the trained module, what its recipe says under [quantize])"""
    if not path.exists():
        return {}, None
    tensors, state = load_tensors(path)
    with _naming(path):
        return tensors, recipe_from_values(state["recipe"]).quantize


def _learns_bits(path: Path) -> bool:
    values = _json(path)
    if values is None:
        return False
    with _naming(path):
        recipe = recipe_from_values(values)
        return recipe.method != FLOAT and learns_bits(recipe.quantize)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that is not what it should be."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ReportError(f"{path} is damaged or not what qvit writes: {what}") from error


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with _naming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} in the place of an object")
        return content


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ReportError(f"{path} is damaged in line {number}: {error}") from error
    return records


def number_of(record: dict[str, Any], key: str) -> float | None:
    """A number, or None where there is none or it is not finite. Raises TypeError for anything else."""
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{key} is {value!r}, which is no number")
    return float(value) if value is not None and math.isfinite(value) else None


def _required(record: dict[str, Any], key: str) -> float:
    value = number_of(record, key)
    if value is None:
        raise KeyError(key)
    return value


def _whole(record: dict[str, Any], key: str) -> int | None:
    value = number_of(record, key)
    return None if value is None else int(value)


def _widths(bits: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: (int(found),) if isinstance(found, int) else tuple(map(int, found)) for name, found in bits.items()}


def _outcome(path: Path) -> Outcome | None:
    record = _json(path)
    if record is None:
        return None
    with _naming(path):
        numbers = (
            *("epochs", "top1", "top1_float", "top1_frozen", "agreement_frozen", "gbitops", "average_weight_bits"),
            *("average_activation_bits", "artifact_kib"),
        )
        return Outcome(
            method=str(record["method"]),
            model=str(record["model"]),
            arguments=", ".join(f"{name}={value}" for name, value in (record.get("model_args") or {}).items()),
            seed=_whole(record, "seed"),
            images=_whole(record, "images"),
            collapse=record.get("collapse") and str(record["collapse"]),
            budget={unit: _required(record["budget"], unit) for unit in record.get("budget") or {}},
            bits=_widths(record.get("bits") or {}),
            versions={str(name): str(text) for name, text in (record.get("versions") or {}).items()},
            **{key: number_of(record, key) for key in numbers},
        )


def _metrics(path: Path) -> tuple[Numbers, ...]:
    with _naming(path):
        records = []
        for record in _lines(path):
            _required(record, "step")
            records.append({key: number_of(record, key) for key in record})
        return tuple(records)


def _history(path: Path) -> tuple[Widths, ...]:
    with _naming(path):
        return tuple(
            Widths(int(_required(record, "step")), bool(record["locked"]), _widths(record["bits"]))
            for record in _lines(path)
        )


def _bench(path: Path) -> Bench | None:
    record = _json(path)
    if record is None:
        return None
    with _naming(path):
        return Bench(
            path=str(record["path"]),
            threads=int(_required(record, "threads")),
            batch=int(_required(record, "batch")),
            median=_required(record, "median"),
            steps=tuple(
                StepTime(str(step["name"]), tuple(map(int, step["ops"])), _required(step, "seconds"))
                for step in record.get("steps", ())
            ),
        )


def _activations(path: Path) -> Activations | None:
    record = _json(path)
    if record is None:
        return None
    with _naming(path):
        return activations_of(record)


def _analysis(path: Path) -> dict[str, Any] | None:
    """analysis.json; what the charts read of it is there and is a number."""
    record = _json(path)
    if record is None:
        return None
    with _naming(path):
        for row in record["rows"]:
            for key in ("bits", "finetune_steps", "loss", "loss_half_width"):
                _required(row, key)
            if not {"mode", "kind", "name"} <= row.keys():
                raise KeyError("name")
            if row["mode"] == "all but":
                _required(row, "gain"), _required(row, "gain_half_width")
        for row in record["everything"]:
            _required(row, "loss"), _required(row, "loss_half_width"), _required(row, "bits")
        for site in record["sites"]:
            if not isinstance(site["tensor"], str) or not isinstance(site["logit_sqnr_db"], list):
                raise TypeError(f"site {site['tensor']!r} is none")
        if not isinstance(record["verdict"], list):
            raise TypeError("the verdict is no list of lines")
    return record
