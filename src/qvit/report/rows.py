"""The tables of the page that are text: the runs side by side, sizes, placement, and how a run was made.

A cell is what is shown and, where it is a number, what it is sorted by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..evaluation.activation_histogram import ACTIVATIONS
from .read import BENCH, MODEL
from .run import Run


@dataclass(frozen=True)
class Cell:
    """One cell; `number` is what a `numeric` column is sorted by, None where nothing is known."""

    text: str
    number: float | None = None
    numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. `keys` are run names where each row is one run, else empty."""

    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    keys: tuple[str, ...] = ()


def text(value: object) -> Cell:
    """A cell of text; nothing for None."""
    return Cell("" if value is None else str(value))


def figure(value: float | None, digits: int) -> Cell:
    """A cell with a number of so many digits behind the point; a dash for None."""
    return Cell("-" if value is None else f"{value:,.{digits}f}", value, True)


def side_by_side(runs: Sequence[Run]) -> Grid:
    """One row per run. A column that no run fills is left out."""
    conditions = {run.bench.conditions for run in runs if run.bench is not None}
    titles = (
        *("run", "method", "model", "images", "top-1 %", "minus float", "program, top-1 %"),
        *("program = module %", "GBitOPs", "budget", "W bits", "A bits", "KiB"),
        "ms" if len(conditions) < 2 else "ms, NOT all measured alike",
        *("epochs", "seed", "state"),
    )
    rows = [_row(run) for run in runs]
    used = [place for place in range(len(titles)) if any(row[place].text not in ("", "-") for row in rows)]
    return Grid(
        "Runs side by side",
        tuple(titles[place] for place in used),
        [[row[place] for place in used] for row in rows],
        tuple(run.name for run in runs),
    )


def _row(run: Run) -> list[Cell]:
    o = run.outcome
    milliseconds = figure(None if run.bench is None else run.bench.milliseconds, 2)
    if o is None:
        model = (run.recipe or {}).get("model") or {}
        newest = max((line["step"] or 0 for line in run.metrics), default=0)
        top1 = next((line["top1"] for line in reversed(run.metrics) if line.get("top1") is not None), None)
        gbitops, weights, activations = (
            next((line[key] for line in reversed(run.metrics) if line.get(key) is not None), None)
            for key in ("gbitops", "weight_bits", "activation_bits")
        )
        return [
            *(text(run.name), text(""), text(model.get("name")), figure(None, 0), figure(top1, 2), figure(None, 2)),
            *(figure(None, 2), figure(None, 2), figure(gbitops, 4), figure(None, 4)),
            *(figure(weights, 2), figure(activations, 2)),
            *(
                figure(None, 1),
                milliseconds,
                figure(None, 1),
                figure(None, 0),
                text(f"not finished, step {newest:,.0f}"),
            ),
        ]
    difference = None if o.top1 is None or o.top1_float is None or o.is_float else o.top1 - o.top1_float
    budget = ", ".join(f"{limit:.5g} {unit}" for unit, limit in o.budget.items())
    return [
        *(text(run.name), text(o.method), text(o.model), figure(o.images, 0), figure(o.top1, 2)),
        Cell("-" if difference is None else f"{difference:+.2f}", difference, True),
        *(figure(o.top1_frozen, 2), figure(o.agreement_frozen, 2), figure(o.gbitops, 4), text(budget)),
        *(figure(o.average_weight_bits, 2), figure(o.average_activation_bits, 2), figure(o.artifact_kib, 1)),
        *(milliseconds, figure(o.epochs, 1), figure(o.seed, 0), text(o.collapse or "finished")),
    ]


def tables_of(run: Run) -> Iterator[Grid]:
    """Sizes and placement of the artifact; without one, the bits of every tensor."""
    if run.artifact is None:
        if run.bits:
            rows = [[text(name), text(_bits(widths))] for name, widths in run.bits.items()]
            yield Grid("Bits of every tensor", ("tensor", "bits"), rows)
        return
    about = run.artifact.description
    totals = about["totals"]
    parts = {
        "weights, packed": totals["packed_weight_bytes"],
        "constants (biases, LayerNorm, embeddings)": totals["constant_bytes"],
        "integers of integer-only ops": totals["integer_bytes"],
    }
    rest = 1024 * run.artifact.kib - sum(parts.values())
    sizes = {**parts, "scales, graph and names": rest, "whole file": 1024 * run.artifact.kib}
    rows = [
        [text(name), figure(size / 1024, 1), figure(size / 10.24 / run.artifact.kib, 1)] for name, size in sizes.items()
    ]
    yield Grid("What the artifact is made of", ("part", "KiB", "%"), [row for row in rows if row[1].number])
    yield Grid(
        "Where operations run",
        ("operation", "count", "placement"),
        [[text(row["op"]), figure(row["count"], 0), text(row["placement"])] for row in about["placement"]],
    )
    yield Grid(
        "Weights",
        ("tensor", "shape", "bits", "mean bits", "KiB"),
        [
            [
                *(text(w["name"]), text(" x ".join(map(str, w["shape"])))),
                *(text(_bits([bits for row in w["bits"] for bits in row])), figure(w["average_bits"], 2)),
                figure(w["packed_bytes"] / 1024, 2),
            ]
            for w in about["weights"]
        ],
    )
    yield Grid(
        "Activations",
        ("tensor", "shape", "bits", "mean bits", "codes"),
        [
            [
                *(text(a["name"]), text(" x ".join(map(str, a["shape"]))), text(_bits(a["bits"]))),
                figure(sum(a["bits"]) / len(a["bits"]), 2),
                text("signed" if a["signed"] else "unsigned + offset" if a["offset"] else "unsigned"),
            ]
            for a in about["activations"]
        ],
    )


def _bits(widths: Sequence[int]) -> str:
    """One number where all groups agree; channels, which are many, as a range."""
    if len(set(widths)) == 1:
        return str(widths[0])
    return " ".join(map(str, widths)) if len(widths) <= 100 else f"{min(widths)} to {max(widths)}"


def provenance(run: Run) -> list[tuple[str, str]]:
    """How a run was made, as (what, text)."""
    facts: list[tuple[str, str]] = [("folder", str(run.path))]
    record = run.provenance or {}
    if "command" in record:
        facts.append(("command", " ".join(map(str, record["command"]))))
    facts += [(key, str(record[key])) for key in ("seed", "threads", "started") if key in record]
    if not record and run.outcome is not None and run.outcome.seed is not None:
        facts.append(("seed", str(run.outcome.seed)))
    resumed = record.get("resumed") or []
    if resumed:
        facts.append(("resumed", f"{len(resumed)} times, last {resumed[-1].get('started', '')}"))
    sources = [str(start["source"]) for start in (record, *resumed) if start.get("source")]
    if sources:
        facts.append(("source", ", then ".join(dict.fromkeys(sources))))
    versions = record.get("versions") or (run.outcome.versions if run.outcome is not None else {})
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def recipe_text(run: Run) -> str:
    """The resolved recipe, or nothing."""
    return json.dumps(run.recipe, indent=2) if run.recipe is not None else ""


def missing(run: Run) -> list[str]:
    """What the run lacks, in sentences, and how to make what can be made."""
    if run.path.is_file():
        return ["Only the outcome of this run was kept."]
    absent = []
    if run.outcome is None:
        absent.append("No result.json: the run is not finished.")
    elif not run.outcome.is_float:
        artifact = run.path / "model.qvit"
        if run.artifact is None:
            absent.append("No model.qvit: sizes, placement and weights are not known.")
        elif run.bench is None:
            absent.append(f"No {BENCH}; for times: qvit-runtime bench {artifact} --profile --json {run.path / BENCH}")
        if run.artifact is not None and run.activations is None:
            absent.append(f"No {ACTIVATIONS}: how activations lie on their grids is not known.")
        if len(run.history) < 2 and run.learns_bits:
            absent.append("No bits.jsonl: the path of the bits is not known.")
        if not (run.path / MODEL).exists():
            slots = ", and the scale slots," if run.learns_bits else ""
            absent.append(f"No {MODEL}: the float weights{slots} are not known.")
    return absent
