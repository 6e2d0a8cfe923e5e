"""What is there of the rows: the kept result files as values, and how two rows are compared."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evidence_losses import read_losses
from evidence_rows import ROWS, Row
from evidence_statistics import Difference, difference, paired


@dataclass(frozen=True)
class Found:
    """What is there of a row: seed -> result.json, and seed -> cross entropy of every image, float32 (images,)."""

    row: Row
    results: dict[int, dict[str, Any]]
    losses: dict[int, np.ndarray]

    @property
    def top1(self) -> list[float]:
        """Percent, by seed."""
        return [100.0 * float(outcomes.mean()) for outcomes in self.outcomes(list(self.results))]

    @property
    def mean(self) -> float:
        """Mean top-1 over the seeds, in percent."""
        return float(np.mean(self.top1))

    @property
    def loss(self) -> float | None:
        """Mean cross entropy over the images and seeds, or None where that of a seed is missing."""
        known = bool(self.results) and self.losses.keys() == self.results.keys()
        return float(np.mean([losses.mean() for losses in self.losses.values()])) if known else None

    def outcomes(self, seeds: Sequence[int]) -> np.ndarray:
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
        folders = {seed: kept / name for name, seed in row.runs if (kept / name / "result.json").exists()}
        results = {seed: json.loads((folder / "result.json").read_text()) for seed, folder in folders.items()}
        losses = {seed: read_losses(folder) for seed, folder in folders.items()}
        found.append(Found(row, results, {seed: loss for seed, loss in losses.items() if loss is not None}))
    return found


def of_budget(found: Sequence[Found], model: str, budget: str) -> list[Found]:
    """The trained rows of the main table of a model and budget; the budget "float" has its float row."""
    return [f for f in found if (f.row.model, f.row.budget, f.row.ablation) == (model, budget, "") and f.results]


def best_uniform(rows: Sequence[Found]) -> Found | None:
    """The uniform row to beat: the better one where there are two."""
    return _best([f for f in rows if f.row.is_uniform])


def best_control(rows: Sequence[Found]) -> Found | None:
    """The best of the rows with fixed bits on the grids of the learned ones."""
    return _best([f for f in rows if f.row.control])


def _best(rows: Sequence[Found]) -> Found | None:
    """The row with the highest mean top-1 on the seeds that all of them have; without such seeds, on its own."""
    seeds = common_seeds(*rows)
    return max(rows, key=lambda f: float(f.outcomes(seeds or list(f.results)).mean()), default=None)


def common_seeds(*rows: Found | None) -> list[int]:
    """The seeds that all of the rows have that are there."""
    seeds = [set(f.results) for f in rows if f is not None]
    return sorted(set.intersection(*seeds)) if seeds else []


def compared(first: Found | None, second: Found | None) -> Difference | None:
    """`first` minus `second` on the seeds that both have; None without one."""
    return _difference(first, second, common_seeds(first, second)) if first and second else None


def losses_compared(first: Found | None, second: Found | None, but: Collection[int] = ()) -> Difference | None:
    """Cross entropy of `first` minus that of `second`, on the seeds whose losses both have, `but` some; None without one."""
    if not (first and second):
        return None
    known = first.losses.keys() & second.losses.keys() - set(but)
    seeds = [seed for seed in common_seeds(first, second) if seed in known]
    if not seeds:
        return None
    a, b = (np.stack([found.losses[seed] for seed in seeds]) for found in (first, second))
    return paired(a, b, digits=4)


def gap_closed(reference: Found | None, uniform: Found | None, learned: Found | None) -> float | None:
    """Percent of the gap from uniform bits to float that learned bits close, on the seeds that all three have.

    None without such a seed, and where no gap is shown, for then it would be a share of nothing.
    """
    if not (reference and uniform and learned):
        return None
    seeds = common_seeds(reference, uniform, learned)
    gain, gap = _difference(learned, uniform, seeds), _difference(reference, uniform, seeds)
    known = gain is not None and gap is not None and gap.excludes_zero and gap.mean > 0
    return 100 * gain.mean / gap.mean if known else None


def above_half_way(reference: Found | None, uniform: Found | None, learned: Found | None) -> Difference | None:
    """Learned bits minus the middle of uniform bits and float, on the seeds that all three have; None without one."""
    seeds = common_seeds(reference, uniform, learned)
    if not (reference and uniform and learned and seeds):
        return None
    middle = (100.0 * reference.outcomes(seeds) + 100.0 * uniform.outcomes(seeds)) / 2
    return paired(100.0 * learned.outcomes(seeds), middle, digits=2)


def without_seeds(seeds: Collection[int], first: Found | None, second: Found | None) -> Difference | None:
    """`first` minus `second` on all seeds that both have but these, which say more than others; None when no other is left."""
    others = [other for other in common_seeds(first, second) if other not in seeds]
    return _difference(first, second, others) if first and second else None


def _difference(first: Found, second: Found, seeds: list[int]) -> Difference | None:
    return difference(first.outcomes(seeds), second.outcomes(seeds)) if seeds else None
