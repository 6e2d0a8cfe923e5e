"""Latency and answers of the kept programs in the native engine, beside the float model in PyTorch eager.

Latency. All programs of a model and its float model take turns in one process (`benchmarks/latency.py`), one image at a time on
two threads, so that what disturbs the machine disturbs all alike. With t_r the median of the calls of round r,

    ms            median of t_r over the rounds
    times_float   median of t_r(float) / t_r over the rounds: above 1 the program is the faster one

The float model has random weights: neither its time nor an engine's depends on them.

Answers. The engine classifies every validation image, and its outcomes are held against those of the interpreter, which
result.json keeps. The two may differ where a float lies next to a tie; how far top-1 may is said in `evidence_report`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qvit_runtime
from evidence_found import outcomes_of
from evidence_rows import DISTILLED, ROWS, Row
from qvit.data import open_eval, resolve_data
from qvit.pipeline.float_model import create_float_model
from qvit_runtime.bench import random_images

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from latency import time_all
from peers.machine import processor

THREADS, BATCH = 2, 1
ROUNDS, CALLS = 20, 50

Record = dict[str, Any]


def measure(kept: Path) -> Record:
    """The record of latency.json: the conditions, and of every row with a kept program of seed 0 (and its float row) its numbers.

    Raises FileNotFoundError when no program is kept.
    """
    there = [row for row in ROWS if (kept / f"{row.name}_s0" / "model.qvit").exists()]
    rows = [row for row in there if row.model != DISTILLED]  # the same networks
    if not rows:
        raise FileNotFoundError(f"{kept} has no ROW_s0/model.qvit; train a row first: python experiments/evidence.py")
    torch.set_num_threads(THREADS)
    found: dict[str, Record] = {}
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        engines = {row.name: engine_of(kept, row) for row in mine}
        float_row = next(row for row in ROWS if row.model == model and row.budget == "float")
        float_model = eager_model(float_row)
        found |= race(engines, float_row.name, float_model, ROUNDS, CALLS)
        batches = list(open_eval(resolve_data(float_row.load(seed=0).data, float_model)))
        for row in mine:
            result = json.loads((kept / f"{row.name}_s0" / "result.json").read_text())
            found[row.name] |= answers(engines[row.name], batches, outcomes_of(result))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor()["model"],
        "isa": next(iter(engines.values())).path,
        "threads": THREADS,
        "batch": BATCH,
        "rounds": ROUNDS,
        "calls": CALLS,
        "rows": found,
    }


def engine_of(kept: Path, row: Row) -> qvit_runtime.Engine:
    """The frozen program of seed 0, ready to run."""
    return qvit_runtime.Engine(qvit_runtime.load(kept / f"{row.name}_s0" / "model.qvit"), THREADS)


def eager_model(row: Row) -> nn.Module:
    """The float model of a row, with random weights, in eval mode."""
    bare = dataclasses.replace(row.load(seed=0).model, checkpoint="", pretrained=False)
    return create_float_model(bare).eval()


def race(
    engines: dict[str, qvit_runtime.Engine], float_name: str, model: nn.Module, rounds: int, calls: int
) -> dict[str, Record]:
    """{row: {"ms", "times_float"}} of the engines and of the float model, taking turns."""

    @torch.inference_mode()
    def eager(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    contestants: dict[str, Callable[[np.ndarray], np.ndarray]] = {float_name: eager, **engines}
    images = random_images(next(iter(engines.values())).program, BATCH)
    times = time_all(contestants, images, rounds, calls)
    return ratios({name: np.median(ms.reshape(rounds, calls), 1) for name, ms in times.items()}, float_name)


def ratios(by_round: dict[str, np.ndarray], float_name: str) -> dict[str, Record]:
    """{row: {"ms", "times_float"}} from the milliseconds of each round, (rounds,) by row."""
    return {
        name: {
            "ms": round(float(np.median(ms)), 4),
            "times_float": round(float(np.median(by_round[float_name] / ms)), 3),
        }
        for name, ms in by_round.items()
    }


def answers(
    engine: Callable[[np.ndarray], np.ndarray], batches: Sequence[tuple[Tensor, Tensor]], interpreter: np.ndarray
) -> Record:
    """Top-1 in the engine and in the interpreter, in percent, and how many images only one of them has right.

    interpreter  bool (images,): its outcomes on the images of the batches
    """
    engine_right = np.concatenate([engine(images.numpy()).argmax(1) == labels.numpy() for images, labels in batches])
    if engine_right.shape != interpreter.shape:
        raise ValueError(
            f"the engine saw {len(engine_right)} images and the kept result has {len(interpreter)}; "
            "both take the whole validation split: is the data another one than that of the run?"
        )
    return {
        "top1_engine": round(100 * float(engine_right.mean()), 4),
        "top1_interpreter": round(100 * float(interpreter.mean()), 4),
        "outcomes_that_differ": int((engine_right != interpreter).sum()),
    }
