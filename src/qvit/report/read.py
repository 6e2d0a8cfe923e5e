"""read_run(): the files of one run directory as one typed value. A part that is not there is None or empty.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..activation_histogram import ACTIVATIONS
from ..recipe import recipe_from_values
from ..runs import load_tensors
from ..spec import Spec
from .activations import Activations, activations_of
from .artifact import Artifact, read_artifact
from .banks import Bank, read_banks
from .find import ReportError

Numbers = dict[str, float | None]
BENCH = "bench.json"


@dataclass(frozen=True)
class Outcome:
    """A row of results. Accuracies and agreements in percent, sizes in KiB, times in seconds; None: not known."""

    method: str
    model: str
    seed: int | None
    epochs: float | None
    images: int | None
    top1: float | None
    top1_float: float | None
    top1_frozen: float | None
    agreement_frozen: float | None
    collapse: str | None
    gbitops: float | None
    budget: dict[str, float]
    average_weight_bits: float | None
    average_activation_bits: float | None
    artifact_kib: float | None
    training_seconds: float | None
    bits: dict[str, tuple[int, ...]]
    versions: dict[str, str]

    @property
    def is_float(self) -> bool:
        """The float model itself."""
        return self.method == "float"

    @property
    def is_uniform(self) -> bool:
        """One bit-width everywhere: a baseline for learned bits."""
        return self.method.startswith("uniform")

    @property
    def task(self) -> str:
        """Rows of one task may be compared: the same model, judged on as many images."""
        return f"{self.model}, {self.images} images"


@dataclass(frozen=True)
class Widths:
    """The bit-widths in force from a step on: tensor -> one per group."""

    step: int
    locked: bool
    bits: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StepTime:
    """Time of one step of the engine, seconds summed over threads; `ops` are places in the program."""

    name: str
    ops: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Bench:
    """A measurement of the native engine; seconds of one call with `batch` images."""

    path: str
    threads: int
    batch: int
    repeats: int
    lower_quartile: float
    median: float
    upper_quartile: float
    steps: tuple[StepTime, ...]

    @property
    def milliseconds(self) -> float:
        """Median of one image."""
        return 1000 * self.median / self.batch

    @property
    def conditions(self) -> str:
        """What must be equal for two times to be compared."""
        return f"{self.path}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class Run:
    """Everything that the report knows of one run."""

    name: str
    path: Path
    outcome: Outcome | None
    recipe: dict[str, Any] | None
    provenance: dict[str, Any] | None
    metrics: tuple[Numbers, ...]
    history: tuple[Widths, ...]
    analysis: dict[str, Any] | None
    bench: Bench | None
    artifact: Artifact | None
    activations: Activations | None
    banks: tuple[Bank, ...]

    @property
    def bits(self) -> dict[str, tuple[int, ...]]:
        """The bit-widths in force, of the outcome or of the newest line of the history."""
        if self.outcome is not None and self.outcome.bits:
            return self.outcome.bits
        return self.history[-1].bits if self.history else {}

    @property
    def is_trained(self) -> bool:
        """A run of a recipe and not only an analysis."""
        return self.outcome is not None or bool(self.metrics) or self.recipe is not None

    @property
    def lock_step(self) -> int | None:
        """The step at which the bits were locked."""
        return next((widths.step for widths in self.history if widths.locked), None)


def read_run(name: str, path: Path) -> Run:
    """Read a run directory, or a result file alone. Raises ReportError naming the file that is damaged."""
    if path.is_file():
        return Run(name, path, _outcome(path), None, None, (), (), None, None, None, None, ())
    tensors, spec = _model(path / "model.safetensors")
    artifact = path / "model.qvit"
    return Run(
        name=name,
        path=path,
        outcome=_outcome(path / "result.json"),
        recipe=_json(path / "recipe.json"),
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
            *("average_activation_bits", "artifact_kib", "training_seconds"),
        )
        return Outcome(
            method=str(record["method"]),
            model=str(record["model"]),
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
            repeats=int(_required(record, "repeats")),
            lower_quartile=_required(record, "lower_quartile"),
            median=_required(record, "median"),
            upper_quartile=_required(record, "upper_quartile"),
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
