"""From the records of an analysis to its result: rows with intervals, ranks with ties, signal-to-noise ratios.

The outcome of an image is whether its class is right; where no image has a label, whether it is the class of the float model.
A row's `loss` is the mean difference of paired outcomes, float minus variant, in percentage points; the `gain` of an
"all but one" row is that of the variant minus everything quantized (`paired`).

    SQNR in dB = 10 log10(sum |signal|^2 / sum |noise|^2)

at the logits over all images; at the tensors as the mean of noise / signal over the subject's sites, each counted alike.

Ranks. Rows of one kind are sorted by loss (alone) or gain (all but one). The first is the leader; those after it whose paired
difference from the leader has an interval that includes zero are tied with it and share its rank; the first that is not tied
leads the next group. The intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.paired import Paired, paired
from .components import Subject

ALONE, ALL_BUT, EVERYTHING = "alone", "all but", "everything"
Record = dict[str, Any]


@dataclass(frozen=True)
class _Variant:
    """One variant at one bit-width, all images together.

    right  outcomes of the judged images, bool
    same   the class of the float model, bool, all images
    sqnr   dB at the logits
    """

    right: np.ndarray
    same: np.ndarray
    sqnr: float | None


def decibels(noise: float, signal: float) -> float | None:
    """SQNR in dB; None where there is no noise or no signal."""
    return round(10 * math.log10(signal / noise), 3) if noise > 0 and signal > 0 else None


def analysis_of(records: list[Record], subjects: list[Subject]) -> dict[str, Any]:
    """What analysis.json holds beside its settings.

    images      how many were measured on
    judged_by   "labels", or "float" where no image has one
    labelled    images with a label
    top1_float  percent, or None without labels
    everything  one row per bit-width: all subjects quantized
    rows        one per subject, bit-width and mode
    sites       SQNR of every group of every tensor, per bit-width
    """
    batches: dict[int, list[Record]] = defaultdict(list)
    for record in sorted((r for r in records if "batch" in r), key=lambda r: r["batch"]):
        batches[record["bits"]].append(record)
    tuned = {(r["bits"], r["finetuned"]): r for r in records if "finetuned" in r}
    labels = _joined(next(iter(batches.values())), "labels")
    known = labels >= 0
    classes = _joined(next(iter(batches.values())), "float")
    everything: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    sites: list[dict[str, Any]] = []
    for bits, found in sorted(batches.items()):
        noise = _site_ratios(found)
        judge = _Judge(labels, _joined(found, "float"), sum(r["signal"] for r in found))
        untrained = {
            key: judge.variant(
                np.concatenate([r["variants"][key]["classes"] for r in found]),
                sum(r["variants"][key]["noise"] for r in found),
            )
            for key in found[0]["variants"]
        }
        everything.append(_row(judge, untrained[EVERYTHING], bits, 0))
        rows += _rows(judge, untrained, bits, 0, subjects, noise)
        sites += _site_rows(bits, found)
        if tuned:
            steps, reference = records[0]["settings"]["finetune_steps"], tuned[0, "float"]
            judge = _Judge(labels, np.array(reference["classes"]), reference["signal"])
            trained = {
                key: judge.variant(np.array(record["classes"]), record["noise"])
                for (width, key), record in tuned.items()
                if width == bits
            }
            everything.append(_row(judge, trained[EVERYTHING], bits, steps))
            rows += _rows(judge, trained, bits, steps, subjects, noise)
    return {
        "images": len(labels),
        "judged_by": "labels" if known.any() else "float",
        "labelled": int(known.sum()),
        "top1_float": round(float((classes == labels)[known].mean() * 100), 4) if known.any() else None,
        "everything": everything,
        "rows": rows,
        "sites": sites,
    }


def points(row: Record, what: str) -> str:
    """The `loss` or `gain` of a row with its interval, in words."""
    return f"{row[what]:.2f} ± {row[f'{what}_half_width']:.2f}"


def _joined(records: list[Record], key: str) -> np.ndarray:
    return np.concatenate([record[key] for record in records])


class _Judge:
    """Compares variants with one reference."""

    def __init__(self, labels: np.ndarray, reference: np.ndarray, signal: float) -> None:
        self.labels, self.classes, self.signal = labels, reference, signal
        self.known = labels >= 0
        self.reference = self._right(reference)

    def _right(self, classes: np.ndarray) -> np.ndarray:
        return (classes == self.labels)[self.known] if self.known.any() else classes == self.classes

    def variant(self, classes: np.ndarray, noise: float) -> _Variant:
        """Judge the predicted classes (images,) of a variant."""
        return _Variant(self._right(classes), classes == self.classes, decibels(noise, self.signal))


def _row(judge: _Judge, variant: _Variant, bits: int, steps: int) -> dict[str, Any]:
    return {
        "bits": bits,
        "finetune_steps": steps,
        **_numbers("loss", paired(judge.reference, variant.right)),
        "agreement": round(float(variant.same.mean() * 100), 4),
        "logit_sqnr_db": variant.sqnr,
    }


def _numbers(name: str, found: Paired) -> dict[str, float]:
    return {name: round(found.difference, 4), f"{name}_half_width": round(found.half_width, 4)}


def _rows(
    judge: _Judge,
    variants: dict[str, _Variant],
    bits: int,
    steps: int,
    subjects: list[Subject],
    noise: dict[tuple[str, int], float],
) -> list[dict[str, Any]]:
    rows = []
    for mode in (ALONE, ALL_BUT):
        for kind in dict.fromkeys(subject.kind for subject in subjects):
            members = [s for s in subjects if s.kind == kind and f"{mode} {s.key}" in variants]
            outcomes = {s.name: variants[f"{mode} {s.key}"] for s in members}
            ranks = _ranks({name: v.right for name, v in outcomes.items()}, largest_loss_first=mode == ALONE)
            for subject in members:
                variant = outcomes[subject.name]
                row = {"mode": mode, "kind": kind, "name": subject.name, "rank": ranks[subject.name]}
                row |= _row(judge, variant, bits, steps)
                if mode == ALONE:
                    ratio = float(np.mean([noise[site] for site in subject.sites]))
                    row["tensor_sqnr_db"] = decibels(ratio, 1.0)
                else:
                    row |= _numbers("gain", paired(variant.right, variants[EVERYTHING].right))
                rows.append(row)
    return rows


def _ranks(right: dict[str, np.ndarray], largest_loss_first: bool) -> dict[str, int]:
    """Name -> rank from 1; ties share one. Sorted by how few (or how many) outcomes are right."""
    sign = 1 if largest_loss_first else -1
    order = sorted(right, key=lambda name: sign * int(right[name].sum()))
    ranks: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(order, start=1):
        if not leader or not paired(right[name], right[leader]).is_tie:
            leader = name
            ranks[name] = place
        else:
            ranks[name] = ranks[leader]
    return ranks


def _sums(records: list[Record], tensor: str, what: str) -> np.ndarray:
    return np.sum([record["sites"]["tensors"][tensor][what] for record in records], axis=0)


def _site_ratios(records: list[Record]) -> dict[tuple[str, int], float]:
    """(tensor, group) -> noise / signal of the tensor itself; 0 for a tensor that is zero."""
    ratios = {}
    for tensor in records[0]["sites"]["tensors"]:
        noise, signal = _sums(records, tensor, "noise"), _sums(records, tensor, "signal")
        for group, ratio in enumerate(noise / np.where(signal > 0, signal, 1.0)):
            ratios[tensor, group] = float(ratio)
    return ratios


def _site_rows(bits: int, records: list[Record]) -> Iterable[dict[str, Any]]:
    logit_signal = sum(record["sites"]["signal"] for record in records)
    for tensor in records[0]["sites"]["tensors"]:
        noise, signal, logits = (_sums(records, tensor, what) for what in ("noise", "signal", "logits"))
        yield {
            "tensor": tensor,
            "bits": bits,
            "tensor_sqnr_db": [decibels(n, s) for n, s in zip(noise, signal, strict=True)],
            "logit_sqnr_db": [decibels(n, logit_signal) for n in logits],
        }
