"""Made-up result files of the evidence: a folder per run, as `experiments/evidence.py` keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from evidence_losses import NAME


def write_result(
    kept: Path,
    name: str,
    right: np.ndarray,
    gbitops: float | None,
    losses: np.ndarray | None = None,
    device: str = "",
) -> None:
    """A finished run: `right` is the outcome of every image, bool (images,); without GBitOPs it is a float row.

    losses  cross entropy of every image; None: not kept
    device  that it was trained on; "": not recorded, as in early results
    """
    (kept / name).mkdir(parents=True)
    record = {
        "images": len(right),
        "gbitops": gbitops,
        "artifact": None if gbitops is None else "model.qvit",
        "artifact_kib": 300.0,
        "correct": np.packbits(right).tobytes().hex(),
    }
    record |= {"device": device} if device else {}
    (kept / name / "result.json").write_text(json.dumps(record))
    if losses is not None:
        save_file({"losses": losses.astype(np.float16)}, kept / name / NAME)


def first(percent: float, images: int = 1000) -> np.ndarray:
    """The first so many percent of the images are right."""
    return np.arange(images) < images * percent / 100


def write_logs(
    folder: Path,
    bits: dict[int, list[int]],
    lock: tuple[int, list[int]],
    log2_scales: dict[int, list[float]],
    losses: dict[int, float],
) -> None:
    """bits.jsonl, scales.jsonl and metrics.jsonl of a run with one group each in blocks 0, 1, ...; everything by step.

    lock  (step, widths): the locked line
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(
        folder / "bits.jsonl",
        [
            {"step": step, "locked": locked, "bits": {"head.weight": [8], **_by_tensor(widths)}}
            for locked, lines in ((False, bits), (True, dict([lock])))
            for step, widths in lines.items()
        ],
    )
    write_lines(
        folder / "scales.jsonl",
        [
            {"step": step, "log2_scale": {"head.weight": [0.0], **_by_tensor(scales)}}
            for step, scales in log2_scales.items()
        ],
    )
    write_lines(
        folder / "metrics.jsonl",
        [{"step": step, "loss": loss} for step, loss in losses.items()] + [{"step": 9, "top1": 1}],
    )


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _by_tensor(values: list[Any]) -> dict[str, list[Any]]:
    return {f"blocks.{block}.mlp.fc1.weight": [value] for block, value in enumerate(values)}


def latency(**rows: tuple[float, float, float | None]) -> dict[str, Any]:
    """latency.json of rows: (ms, times_float, top-1 in the engine or, for a float row, None); the interpreter has 77."""
    found = {}
    for name, (ms, times_float, top1) in rows.items():
        found[name] = {"ms": ms, "times_float": times_float}
        if top1 is not None:
            found[name] |= {"top1_engine": top1, "top1_interpreter": 77.0, "outcomes_that_differ": 3}
    conditions = {"date": "2026-11-26", "processor": "a CPU", "isa": "avx2", "threads": 2, "batch": 1}
    return {**conditions, "rounds": 20, "calls": 50, "rows": found}
