"""docs/evidence.md: tables and verdicts, from the result files of the rows alone. A row that is missing is named as such."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evidence_rows import DEIT, HEADS, ROWS, SWIN, UNIFORM, Row
from evidence_statistics import Difference, difference

HEADER = """# Evidence: learned bits against uniform bits

Written by `python experiments/evidence.py --tables` from experiments/results/evidence; `python experiments/evidence.py` trains the
rows that are missing. Every row starts from the same float weights and trains on 450,000 images of CIFAR-10 (10 epochs of
45,000), without a teacher; rows of one seed see the same images in the same order. Top-1 is that of the frozen program on all
5,000 validation images. Differences are paired by seed and by image, with 95 % intervals over either
(`experiments/evidence_statistics.py`); one counts as shown when neither interval includes zero.
"""
COLUMNS = ("row", "seeds", "top-1 %, mean", "each", "GBitOPs", "`.qvit` KiB", "ms", "minus uniform")


@dataclass(frozen=True)
class Found:
    """What is there of a row: seed -> result.json, and outcomes (seeds, images) in the same order."""

    row: Row
    results: dict[int, dict[str, Any]]

    @property
    def top1(self) -> list[float]:
        """Percent, by seed."""
        return [100.0 * float(outcomes.mean()) for outcomes in self.outcomes(list(self.results))]

    def outcomes(self, seeds: list[int]) -> np.ndarray:
        """bool (seeds, images)"""
        return np.stack([outcomes_of(self.results[seed]) for seed in seeds])


def outcomes_of(result: dict[str, Any]) -> np.ndarray:
    """Whether each image of a kept result is right, bool (images,)."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(result["correct"]), np.uint8))
    return bits[: result["images"]].astype(bool)


def read_rows(kept: Path) -> list[Found]:
    """All rows with what is there of them, in the order of ROWS."""
    found = []
    for row in ROWS:
        paths = {seed: kept / name / "result.json" for name, seed in row.runs}
        results = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
        found.append(Found(row, results))
    return found


def compared(first: Found, second: Found) -> Difference | None:
    """`first` minus `second` on the seeds that both have; None without one."""
    seeds = [seed for seed in first.results if seed in second.results]
    return difference(first.outcomes(seeds), second.outcomes(seeds)) if seeds else None


def write_document(kept: Path, out: Path) -> None:
    """Write the page."""
    found = read_rows(kept)
    latency_file = kept / "latency.json"
    latency = json.loads(latency_file.read_text()) if latency_file.exists() else {}
    out.write_text("\n".join([HEADER, *_document(found, latency)]) + "\n")


def _document(found: list[Found], latency: dict[str, float]) -> Iterator[str]:
    for model in (DEIT, SWIN):
        floats = next(f for f in found if f.row.model == model and f.row.budget == "float")
        for budget in ("3 bits", "W2A3", "4 bits"):
            rows = [
                f for f in found if (f.row.model, f.row.budget, f.row.ablation) == (model, budget, "") and f.results
            ]
            if not rows:
                continue
            baseline = best_uniform(rows)
            yield f"## {model}, budget of uniform {budget}\n"
            yield from table([floats, *rows] if floats.results else rows, baseline, latency)
            yield from verdict(rows, baseline, floats)
    ablations = [f for f in found if f.row.ablation and f.results]
    if ablations:
        full = next(f for f in found if f.row.name == "headwise_3bit")
        yield f"## {DEIT}, 3 bits: what each part is worth\n"
        yield "| head-wise learned bits, with one change | seeds | top-1 %, mean | minus unchanged |\n|---|---|---|---|"
        for f in ablations:
            change = compared(f, full)
            yield f"| {f.row.ablation} | {len(f.results)} | {np.mean(f.top1):.2f} | {change or ''} |"
        yield ""
    missing = [name for f in found for name, seed in f.row.runs if seed not in f.results]
    if missing:
        yield f"Not trained yet: {', '.join(missing)}.\n"


def best_uniform(rows: list[Found]) -> Found | None:
    """The uniform row to beat: the one with the higher mean top-1 where there are two."""
    uniform = [f for f in rows if f.row.title.startswith("uniform")]
    return max(uniform, key=lambda f: float(np.mean(f.top1)), default=None)


def table(rows: list[Found], baseline: Found | None, latency: dict[str, float]) -> Iterator[str]:
    """Markdown lines of rows of one budget."""
    yield "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    for f in rows:
        first = next(iter(f.results.values()))
        minus = None if baseline is None or f is baseline else compared(f, baseline)
        cells = (
            f.row.title,
            str(len(f.results)),
            f"{np.mean(f.top1):.2f}",
            ", ".join(f"{top1:.2f}" for top1 in f.top1),
            "" if first["gbitops"] is None else f"{first['gbitops']:.4f}",
            f"{first['artifact_kib']:.0f}" if first["artifact"] else "",
            f"{latency[f.row.name]:.2f}" if f.row.name in latency else "",
            str(minus) if minus else "",
        )
        yield "| " + " | ".join(cells) + " |"
    yield ""


def verdict(rows: list[Found], baseline: Found | None, floats: Found) -> Iterator[str]:
    """In words: what was gained, what share of the gap to float that is, and whether it is shown."""
    learned = next((f for f in rows if f.row.title == HEADS), None)
    gain = compared(learned, baseline) if learned and baseline else None
    if learned is None or baseline is None or gain is None:
        return
    shown = "shown" if gain.is_shown else "not shown"
    text = f"Head-wise learned bits minus {baseline.row.title if baseline.row.title != UNIFORM else 'uniform bits'}: {gain}, {shown}."
    gap = compared(floats, baseline)
    if gap is not None and gap.mean > 0:
        text += f" The gap of the uniform row to float is {gap.mean:.2f} points; {100 * gain.mean / gap.mean:.0f} % of it is closed."
    yield text + "\n"
