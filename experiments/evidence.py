"""Evidence: learned head-wise bits against uniform bits at the same cost, on real images. One command, every row.

    python experiments/evidence.py                  # train what is missing, in the order of evidence_rows.py
    python experiments/evidence.py --only headwise_3bit --seeds 0 1
    python experiments/evidence.py --parallel 16    # so many at a time: on a GPU, or where there are many cores
    python experiments/evidence.py --latency        # time the kept programs in the native engine, on a quiet machine
    python experiments/evidence.py --losses         # those of runs that were kept without, from their directories in runs/
    python experiments/evidence.py --tables         # docs/evidence.md, its figures, README.md from the result files alone

A row takes about half an hour of one core; it is resumed where it was killed, and a finished one is not trained again. Small models
leave a GPU nearly idle, and what it waits for is one core per row that augments images and launches kernels, so rows go side by side there;
NVIDIA's MPS, if it runs, lets their kernels overlap, and passes are recorded and replayed (`fit.cuda_graph`: the same numbers). What is kept of a row, in experiments/results/evidence/NAME_sSEED:

    result.json      as `qvit run` wrote it, and `correct`: the outcome of every validation image, one bit each, as hexadecimal
    losses.safetensors      cross entropy of every validation image (`evidence_losses`)
    model.qvit       the frozen program, so that anyone can measure it (`qvit eval`)
    bits.jsonl, scales.jsonl, metrics.jsonl      of the runs named in TRAJECTORIES: how bits and scales moved

and beside these folders latency.json (`evidence_latency`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import set_fused_attn

from evidence_convergence import keep_scales
from evidence_latency import measure
from evidence_losses import NAME as LOSSES
from evidence_losses import keep_losses
from evidence_readme import write_readme
from evidence_report import LATENCY, write_document
from evidence_rows import ROWS, SHARED, TRAJECTORIES, Row
from qvit.data import open_eval
from qvit.evaluation.evaluate import evaluate
from qvit.evaluation.outcome import load_predictions
from qvit.pipeline.finished import load_exact, read_recipe
from qvit.pipeline.run import run_recipe
from qvit.settings.recipe import FLOAT
from qvit.system.processes import process_state

ROOT = Path(__file__).resolve().parents[1]
RUNS, KEPT = ROOT / "runs" / "evidence", ROOT / "experiments" / "results" / "evidence"
LOGS = ("bits.jsonl", "metrics.jsonl")


def is_kept(name: str) -> bool:
    """Whether a run is finished and its results are in the repository."""
    return (KEPT / name / "result.json").exists()


def train(row: Row, name: str, seed: int) -> None:
    """Train (or continue) one run and keep its results."""
    print(f"{name}: {row.recipe}.toml {' '.join((*SHARED, *row.settings))} seed={seed}", flush=True)
    recipe = row.load(seed)
    if process_state().device.type == "cuda" and torch.version.hip is None:
        recipe = replace(recipe, fit=replace(recipe.fit, cuda_graph=True))
    result = run_recipe(recipe, RUNS / name, resume=True, show_placement=False)
    keep(name, result, outcomes(RUNS / name))
    print(f"{name}: top-1 {result['top1']:.2f} %", flush=True)


def train_apart(row: Row, name: str, seed: int, threads: int) -> bool:
    """One run in a process of its own, which writes no documents; what it says goes to runs/evidence/NAME.log. Whether it finished."""
    command = [sys.executable, __file__, "--only", row.name, "--seeds", str(seed), "--no-documents"]
    limits = {variable: str(threads) for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / f"{name}.log", "a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **limits}).returncode
    print(f"{name}: finished" if code == 0 else f"{name}: ended with code {code}, see {log.name}", flush=True)
    return code == 0


def train_side_by_side(runs: list[tuple[Row, str, int]], at_once: int) -> bool:
    """All of these runs, so many at a time; whether all were finished. One that fails, or is killed, leaves the others alone."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with ThreadPoolExecutor(at_once) as pool:
        ends = [pool.submit(train_apart, *run, threads) for run in runs]
        for end in as_completed(ends):
            end.result()
            write()
    return all(end.result() for end in ends)


def outcomes(run: Path) -> np.ndarray:
    """Whether each validation image is right, bool (images,): of the frozen program, or of the float model."""
    recipe = read_recipe(run)
    if recipe.method == FLOAT:
        return evaluate(load_exact(run), open_eval(recipe.data)).correct
    predictions = load_predictions(run)
    return predictions["program"] == predictions["labels"]


def keep(name: str, result: dict[str, Any], correct: np.ndarray) -> None:
    """Copy what the repository keeps of a run; result.json comes last, since it marks the row as done."""
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    files = [result["artifact"]] if result["artifact"] else []
    for file in [*files, *(LOGS if name in TRAJECTORIES else ())]:
        shutil.copyfile(RUNS / name / file, folder / file)
    if name in TRAJECTORIES:
        keep_scales(RUNS / name, folder)
    keep_losses(RUNS / name, folder)
    record = {**result, "correct": np.packbits(correct).tobytes().hex()}
    (folder / "result.json").write_text(json.dumps(record, indent=2) + "\n")


def fill_in_losses() -> None:
    """Of kept runs without losses whose directories are there."""
    for _, name, _ in chosen(None, None):
        folder = KEPT / name
        if not is_kept(name) or (folder / LOSSES).exists():
            continue
        if (RUNS / name).exists():
            keep_losses(RUNS / name, folder)
        else:
            print(f"{name}: {RUNS / name} is gone; its losses stay unknown")


def chosen(only: list[str] | None, seeds: list[int] | None) -> Iterator[tuple[Row, str, int]]:
    """The runs that are wanted: of every row the first seed, then of every row the second, ..."""
    rows = [row for row in ROWS if only is None or row.name in only]
    for round_ in range(max(row.seeds for row in rows)):
        for row in rows:
            for name, seed in row.runs[round_ : round_ + 1]:
                if seeds is None or seed in seeds:
                    yield row, name, seed


def write() -> None:
    """Everything that is made from the result files."""
    write_document(KEPT, ROOT / "docs" / "evidence.md")
    write_readme(KEPT, ROOT / "README.md")


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="train so many runs at a time; default: 1")
    parser.add_argument("--no-documents", action="store_true", help="leave docs/evidence.md and README.md as they are")
    parser.add_argument("--latency", action="store_true", help="train nothing, measure latency.json, then as --tables")
    parser.add_argument("--losses", action="store_true", help="train nothing, fill in missing losses, then as --tables")
    parser.add_argument("--tables", action="store_true", help="train nothing, write docs/evidence.md and README.md")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # settings of rows name files from here
    if arguments.latency:
        (KEPT / LATENCY).write_text(json.dumps(measure(KEPT), indent=1) + "\n")
    elif arguments.losses:
        fill_in_losses()
    elif not arguments.tables:
        runs = [run for run in chosen(arguments.only, arguments.seeds) if not is_kept(run[1])]
        if arguments.parallel > 1:
            finished = train_side_by_side(runs, arguments.parallel)
            sys.exit(0 if finished else 1)
        set_fused_attn(False)  # float rows: in bfloat16 on a CPU it takes twice the time of its parts
        for run in runs:
            train(*run)
            if not arguments.no_documents:
                write()
    if not arguments.no_documents:
        write()


if __name__ == "__main__":
    main()
