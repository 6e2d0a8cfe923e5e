"""GMAC/s of the native Linear for every pair of activation and weight bits: what bits buy on this processor.

    python benchmarks/engine_gemm.py [--path avx2] [--rows 197] [--inputs 192] [--outputs 768] [--json FILE]
    python benchmarks/engine_gemm.py --path avx2 --rows 24 --inputs 768 --json experiments/results/engine/gemm_avx2.json

One thread, one image; the best of many short runs, so that other processes matter little. The shape is fc1 of DeiT-Tiny
unless said otherwise. Quantized output, as in a network.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from peers.machine import processor
from qvit_runtime import program as p
from qvit_runtime.engine import Runner


def linear(rows: int, inputs: int, outputs: int, bits: int, weight_bits: int, rng: np.random.Generator) -> p.Program:
    """Linear and Quantize with random codes."""
    low, high = -(1 << (weight_bits - 1)), 1 << (weight_bits - 1)
    weight = p.Weight(
        rng.integers(low, high, (outputs, inputs)).astype(np.int8),
        np.array([[weight_bits]]),
        np.full((1, 1), 0.01, np.float32),
    )
    grid = p.Grid((bits,), True, np.array([0.1], np.float32), np.zeros(1, np.float32))
    buffers = {
        "x": p.Buffer("x", (rows, inputs), grid),
        "y": p.Buffer("y", (rows, outputs)),
        "z": p.Buffer("z", (rows, outputs), grid),
    }
    ops = (p.Linear("x", "y", "w", "b"), p.Quantize("y", "z"))
    constants = {"b": np.zeros(outputs, np.float32)}
    return p.Program("linear", "x", "z", ops, buffers, {"w": weight}, constants, p.Preprocess((1, 1)))


def best_seconds(program: p.Program, bits: int, path: str, repeats: int, rng: np.random.Generator) -> tuple[float, str]:
    """Seconds, and the path that the engine took."""
    runner = Runner(program, program.ops, ["x"], ["z"], 1, path, True)
    shape = (1, *program.buffers["x"].shape)
    x = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(np.int16)
    return min(sum(step.seconds for step in runner.profile([x])) for _ in range(repeats)), runner.path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="", help="kernel path; default: QVIT_CPU or the best")
    parser.add_argument("--rows", type=int, default=197)
    parser.add_argument("--inputs", type=int, default=192)
    parser.add_argument("--outputs", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    macs = options.rows * options.inputs * options.outputs
    widths = range(2, 9)
    table = {}
    print("GMAC/s, one thread; rows: activation bits, columns: weight bits")
    print("    " + "".join(f"{w:7d}" for w in widths))
    for bits in widths:
        line = []
        for weight_bits in widths:
            program = linear(options.rows, options.inputs, options.outputs, bits, weight_bits, rng)
            seconds, path = best_seconds(program, bits, options.path, options.repeats, rng)
            speed = macs / seconds / 1e9
            table[f"{bits}x{weight_bits}"] = round(speed, 1)
            line.append(speed)
        print(f"{bits:3d} " + "".join(f"{speed:7.1f}" for speed in line))
    if options.json:
        shape = {"rows": options.rows, "inputs": options.inputs, "outputs": options.outputs}
        where = {"path": path, "date": time.strftime("%Y-%m-%d"), "processor": processor()}
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps({**shape, **where, "gmacs": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
