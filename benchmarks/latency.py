"""How well a latency table predicts the time of whole models that it was not made from.

    python benchmarks/latency.py --model deit_tiny_patch16_224 --out

For every kernel path: quantize and freeze the model (random weights: times do not depend on them), measure the table as
`qvit-runtime bench --table` does, then time other programs, interleaved: uniform 2 to 8 bits, and head-wise models whose
widths are drawn at random. The prediction is what `qvit.Budget(milliseconds=...)` believes these models cost. It is the
time of an undisturbed machine, so it is compared with the least of many calls; the median is given beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import qvit
from peers.machine import processor
from qvit.bits.cost import bits_in_force, costs
from qvit.quantizers.quantizer import named_quantizers
from qvit_runtime.bench import random_images
from qvit_runtime.engine import Engine, kernel_paths
from qvit_runtime.latency import measure_table

MIXED = {"heads of 2 to 8 bits": (2, 8), "heads of 2 to 4 bits": (2, 4), "heads of 5 to 8 bits": (5, 8)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model that qvit supports")
    parser.add_argument("--paths", default="", metavar="NAME,...", help="kernel paths; default: every vector path here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30, help="calls per pair of widths")
    parser.add_argument("--rounds", type=int, default=6, help="interleaved rounds of the models that are predicted")
    parser.add_argument("--out", nargs="?", const=Path("experiments/results"), type=Path, metavar="DIR")
    return parser.parse_args()


def quantized(name: str) -> torch.nn.Module:
    """The model with learned bits and scales for all of them."""
    torch.manual_seed(0)
    model = qvit.quantize(timm.create_model(name), qvit.Spec(), quiet=True).eval()
    qvit.calibrate(model, [torch.randn(4, *timm.data.resolve_data_config(model=model)["input_size"])])
    return model


def set_bits(model: torch.nn.Module, low: int, high: int, seed: int = 0) -> None:
    """Draw every learned width from low..high."""
    generator = torch.Generator().manual_seed(seed)
    for quantizer in named_quantizers(model).values():
        if quantizer.is_learned:
            quantizer.set_bits(torch.randint(low, high + 1, (quantizer.bit_groups,), generator=generator).float())


def time_all(engines: dict[str, Engine], images: np.ndarray, rounds: int, calls: int = 10) -> dict[str, np.ndarray]:
    """Milliseconds of every call, the engines taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            engine(images)
            for _ in range(calls):
                start = time.perf_counter()
                engine(images)
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * np.array(values) for name, values in seconds.items()}


def on_path(model: torch.nn.Module, path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, predict, time."""
    set_bits(model, 4, 4)
    started = time.perf_counter()
    table = measure_table(qvit.freeze(model), options.threads, repeats=options.repeats, path=path)
    took = time.perf_counter() - started
    engines, predicted = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/{path}.latency.json"
        table.save(file)
        budget = qvit.Budget(milliseconds=1.0, table=file)
        for name, (low, high) in {**{f"{b}/{b}": (b, b) for b in range(2, 9)}, **MIXED}.items():
            set_bits(model, low, high)
            engines[name] = Engine(qvit.freeze(model), options.threads, path)
            predicted[name] = float(budget.spent(costs(model), bits_in_force(model)))
    times = time_all(engines, random_images(engines["4/4"].program, 1), options.rounds)
    rows = {
        name: {
            "predicted_ms": round(predicted[name], 4),
            "measured_ms": round(float(ms.min()), 4),
            "median_ms": round(float(np.median(ms)), 4),
            "error": round(predicted[name] / float(ms.min()) - 1, 4),
            "error_of_median": round(predicted[name] / float(np.median(ms)) - 1, 4),
        }
        for name, ms in times.items()
    }
    return {
        "fixed_ms": round(table.fixed, 4),
        "bits_matter": table.bits_matter,
        "table_seconds": round(took, 1),
        "largest_error": max(abs(row["error"]) for row in rows.values()),
        "models": rows,
    }


def main() -> None:
    options = parse()
    paths = [name for name in options.paths.split(",") if name]
    paths = paths or [name for name, (built, here) in kernel_paths().items() if built and here and name != "scalar"]
    model = quantized(options.model)
    result = {
        "model": options.model,
        "threads": options.threads,
        "batch": 1,
        "weights": "random",
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
        "paths": {path: on_path(model, path, options) for path in paths},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        (options.out / f"latency_prediction_{options.model.removesuffix('_patch16_224')}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
