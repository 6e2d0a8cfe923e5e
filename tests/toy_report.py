"""Run directories for the tests of the report, written in milliseconds: what a run of qvit leaves behind, made up.

`write_run` has every part; `parts` takes some of them away. `write_analysis` is a directory of `qvit analyze`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import from_numpy

import qvit_runtime
from qvit.evaluation.activation_histogram import ACTIVATIONS, activation_histograms
from qvit.settings.recipe import Recipe, recipe_to_values
from qvit.system.runs import save_tensors
from toy_programs import vit_program

DEPTH, HEADS = 2, 2
HEAD_WISE = {"attn.qkv.weight": 3 * HEADS, "attn.q": HEADS, "attn.k": HEADS, "attn.v": HEADS, "attn.attention": HEADS}
HEAD_WISE |= {"attn.proj.input": HEADS, "attn.proj.weight": HEADS}
LAYER_WISE = ("attn.qkv.input", "mlp.fc1.weight", "mlp.fc1.input", "mlp.fc2.weight", "mlp.fc2.input")
EDGES = ("patch_embed.proj.weight", "patch_embed.proj.input", "head.weight", "head.input")
ALL = ("result", "recipe", "provenance", "metrics", "bits", "bench", "artifact", "activations", "model")


def groups(depth: int = DEPTH) -> dict[str, int]:
    """Tensor -> bit groups of a head-wise ViT."""
    found = {f"blocks.{block}.{name}": count for block in range(depth) for name, count in HEAD_WISE.items()}
    found |= {f"blocks.{block}.{name}": 1 for block in range(depth) for name in LAYER_WISE}
    return found | dict.fromkeys(EDGES, 1)


def bits_at(step: int, seed: int, depth: int = DEPTH) -> dict[str, list[int]]:
    """Bit-widths of every group at a step; they change with it."""
    draw = np.random.default_rng((seed, step))
    return {
        name: [8] if name in EDGES else draw.integers(2, 9, count).tolist() for name, count in groups(depth).items()
    }


def write_run(
    folder: Path,
    parts: Collection[str] = ALL,
    *,
    seed: int = 0,
    steps: int = 40,
    depth: int = DEPTH,
    recipe: Recipe | None = None,
    **result: Any,
) -> Path:
    """A run of so many logged steps, one bit record each; `result` overrides fields of result.json; `recipe` default: learned bits."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = recipe_to_values(recipe or Recipe())
    lock = steps // 2
    outcome = {
        "schema": 1,
        "model": "toy_vit",
        "method": "head-wise learned bits",
        "seed": seed,
        "epochs": 1.0,
        "images": 100,
        "top1": 70.0 + seed,
        "top1_float": 75.0,
        "top1_frozen": 70.0 + seed,
        "agreement_frozen": 100.0,
        "gbitops": 0.01 * (seed + 1),
        "budget": {"gbitops": 0.05},
        "average_weight_bits": 3.0,
        "average_activation_bits": 3.5,
        "artifact_kib": 20.0 + seed,
        "bits": {name: w if len(w) > 1 else w[0] for name, w in bits_at(lock, seed, depth).items()},
        "versions": {"qvit": "0.1.0"},
        **result,
    }
    write = {
        "result": lambda: _json(folder / "result.json", outcome),
        "recipe": lambda: _json(folder / "recipe.json", settings),
        "provenance": lambda: _json(
            folder / "provenance.json",
            {"command": ["qvit", "run", "toy.toml"], "seed": seed, "versions": {"qvit": "0.1.0"}, "started": "today"},
        ),
        "metrics": lambda: _lines(folder / "metrics.jsonl", _metrics(steps, seed)),
        "bits": lambda: _lines(
            folder / "bits.jsonl",
            [
                {"step": step, "locked": step >= lock, "bits": bits_at(min(step, lock), seed, depth)}
                for step in range(lock + 1)
            ],
        ),
        "bench": lambda: _json(folder / "bench.json", BENCH),
        "artifact": lambda: qvit_runtime.save(_program(depth), folder / "model.qvit"),
        "activations": lambda: _json(folder / ACTIVATIONS, _activations(depth)),
        "model": lambda: save_tensors(folder / "model.safetensors", _state(), {"recipe": settings}),
    }
    for part in parts:
        write[part]()
    return folder


BENCH = {
    **{"model": "model.qvit", "path": "scalar", "threads": 1, "batch": 2, "repeats": 3, "minimum": 0.003},
    **{"lower_quartile": 0.0035, "median": 0.004, "upper_quartile": 0.005, "spread": 0.3},
    "steps": [
        {"name": "Linear+Add", "ops": [3, 4], "seconds": 0.001},
        {"name": "Linear+Add", "ops": [9, 10], "seconds": 0.001},
        {"name": "Softmax", "ops": [5], "seconds": 0.002},
    ],
}


@cache
def _program(depth: int) -> qvit_runtime.Program:
    return vit_program(depth=depth, heads=HEADS)


@cache
def _activations(depth: int) -> dict[str, Any]:
    program = _program(depth)
    shape = program.buffers[program.input].shape
    images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    return activation_histograms(program, images)


def _metrics(steps: int, seed: int) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                **{
                    "step": step,
                    "epoch": step / steps,
                    "loss": 2 * math.exp(-step / steps) + 0.1 * math.sin(step + seed),
                },
                **{"gradient_norm": 1.0, "gbitops": 0.05 + 0.001 * math.sin(step), "weight_bits": 3.0},
                **{"activation_bits": 3.5, "learning_rate": 1e-3 * (1 - step / (steps + 1))},
            }
        )
        if step in (steps // 2, steps):
            lines.append({"step": step, "epoch": step / steps, "top1": 60.0 + seed + step / steps})
    return lines


def _state() -> dict[str, Any]:
    """The quantizers' part of a trained module's state: banks of seven scales that halve with each bit."""
    state: dict[str, Any] = {}
    for name, count in groups().items():
        slots = 1 if name in EDGES else 7
        bank = np.tile(-math.log(2) * np.arange(slots, dtype=np.float32), (count, 1))
        state[f"{name}_quantizer.log_scale"] = from_numpy(bank)
        state[f"{name}_quantizer.bit_width"] = from_numpy(np.full(count, 8 if name in EDGES else 3, np.int64))
    return state


def write_analysis(folder: Path) -> Path:
    """An analysis at 2 and 3 bits."""
    rows = []
    for bits in (2, 3):
        for kind, names in (("component", ("attention map", "GELU output")), ("head", ("blocks.0 head 0",))):
            for place, name in enumerate(names):
                common = {"kind": kind, "name": name, "rank": 1, "bits": bits, "finetune_steps": 0, "agreement": 90.0}
                common |= {"loss": 3.0 - place, "loss_half_width": 1.0}
                rows.append({"mode": "alone", **common})
                rows.append({"mode": "all but", **common, "gain": 1.0 + place, "gain_half_width": 0.5})
    sites = [
        {"tensor": name, "bits": bits, "tensor_sqnr_db": [9.0] * count, "logit_sqnr_db": [20.0 + bits] * count}
        for bits in (2, 3)
        for name, count in groups().items()
    ]
    everything = [{"bits": bits, "finetune_steps": 0, "loss": 9.0, "loss_half_width": 2.0} for bits in (2, 3)]
    record = {"rows": rows, "sites": sites, "everything": everything, "verdict": ["float top-1 75 %", "  a detail"]}
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "analysis.json", record)
    return folder


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
