"""Exported Programs in ONNX Runtime and OpenVINO against the interpreter: what is equal, and where it first is not.

    python benchmarks/onnx_agreement.py [--images 1000] [--out]

The trained Program is experiments/results/cifar10_headwise_3bit, on validation images of its recipe where that data is at
hand. The other families are micro models with random weights, calibrated, with head-wise bits under the budget of 3 bits,
as benchmarks/peers makes them: without training nothing keeps two classes apart, so top-1 is a harsh measure there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import qvit
import qvit_runtime
from peers import network, qvit_peers
from peers.task import Task
from qvit.data import open_eval
from qvit.onnx_export import agreement, onnxruntime_session, openvino_session
from qvit.settings.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "experiments/results/cifar10_headwise_3bit/model.qvit"
RECIPE = ROOT / "recipes/cifar10/headwise_3bit.toml"
RESULT = ROOT / "experiments/results/onnx_agreement.json"
SMALL = {"depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 100}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT": ("deit_tiny_patch16_224", {"img_size": 64, **SMALL}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, **SMALL}),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, **SMALL}),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 48, "depths": (2, 2, 2), "num_heads": (3, 6, 12), "num_classes": 100},
    ),
}
RUNTIMES = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}


def trained(images: int) -> Iterator[tuple[str, Path, np.ndarray]]:
    """The row of the trained Program, or none where its images are missing."""
    how = qvit_runtime.load(TRAINED).preprocess
    config = dataclasses.replace(
        load_recipe(RECIPE).data,
        image_size=how.size[0],
        crop_mode=how.crop_mode,  # type: ignore[arg-type]
        interpolation=how.interpolation,  # type: ignore[arg-type]
    )
    try:
        batches = [batch for batch, *_ in open_eval(config, images)]
    except (qvit.DataError, FileNotFoundError) as error:
        print(f"without the trained row: {error}")
        return
    yield "DeiT, trained on CIFAR-10", TRAINED, torch.cat(batches).numpy()


def random_families(images: int, work: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Name, artifact and images of each family."""
    for family, (model, arguments) in FAMILIES.items():
        folder = work / model
        folder.mkdir()
        task = Task(model, 1, 1, "native", str(folder), images, arguments=arguments)
        network.float_model(task)
        qvit_peers.programs(task)
        yield family, task.path("qvit_mixed.qvit"), task.load("images.npy")


def measure(family: str, artifact: Path, images: np.ndarray, work: Path) -> dict[str, Any]:
    """One row: the exported file, and each runtime on it."""
    program, path = qvit_runtime.load(artifact), work / "model.onnx"
    verification = qvit.export_onnx(program, path)
    return {
        "family": family,
        "opset": onnx.load(path).opset_import[0].version,
        "qvit_kib": artifact.stat().st_size / 1024,
        "onnx_kib": path.stat().st_size / 1024,
        "verification": dataclasses.asdict(verification),
        **{name: dataclasses.asdict(agreement(program, images, open_)) for name, open_ in RUNTIMES.items()},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Per runtime: codes equal, images with all codes equal, same class, and how far from a tie codes first differ."""
    head = ["family", "images", "opset", ".onnx KiB", ".qvit KiB"]
    head += [f"{short} {what}" for short in ("ORT", "OV") for what in ("codes %", "images %", "top-1 %", "first tie")]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["family"], str(row["onnxruntime"]["images"]), str(row["opset"])]
        cells += [f"{row['onnx_kib']:.0f}", f"{row['qvit_kib']:.0f}"]
        for name in RUNTIMES:
            found = row[name]
            cells += [f"{100 * found[key]:.2f}" for key in ("codes_equal", "images_equal", "top1_equal")]
            cells.append(f"{found['first_tie']:.0e}" if found["first_apart"] else "-")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="validation images of the trained Program, at most")
    parser.add_argument("--random-images", type=int, default=64, help="images of each other family")
    parser.add_argument("--out", nargs="?", const=RESULT, type=Path, metavar="FILE", help=f"write JSON ({RESULT.name})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = [*trained(options.images), *random_families(options.random_images, work)]
        rows = [measure(*case, work) for case in cases]
    print(markdown(rows))
    if options.out:
        packages = {name: version(name) for name in ("qvit", "onnx", "onnxruntime", "openvino", "numpy")}
        result = {"date": time.strftime("%Y-%m-%d"), "versions": packages, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
