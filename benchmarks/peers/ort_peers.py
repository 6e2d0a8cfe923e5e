"""ONNX Runtime: float32, int8 static, int8 dynamic, from torch's ONNX export with a fixed batch, all graph optimisations on.

Its quantizer by default also makes additions, multiplications and softmax integer; a second static model with integer
matrix products only is measured beside it, since which one is faster depends on the processor.

Kernels come from MLAS, which picks its instructions by itself: there is no switch that keeps it to AVX2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .network import build
from .task import Loaded, Task

PRODUCTS = ["MatMul", "Gemm"]


def _name(task: Task, kind: str) -> str:
    return f"onnx_{kind}_b{task.batch}.onnx"


def export(task: Task) -> None:
    """Preparation: torch's exporter, then ONNX Runtime's own shape inference and clean-up, which its quantizers ask for."""
    import torch
    from onnxruntime.quantization.shape_inference import quant_pre_process

    torch.set_num_threads(task.threads)
    images = torch.from_numpy(task.load("images.npy")[: task.batch])
    exported = task.path(_name(task, "float"))
    torch.onnx.export(
        build(task),
        (images,),
        exported,
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
    )
    quant_pre_process(str(exported), str(task.path(_name(task, "clean"))))


class _Batches:
    """Calibration images in batches, as ONNX Runtime wants to be fed: a dict, and None at the end."""

    def __init__(self, task: Task) -> None:
        images = task.load("calibration.npy")
        count = max(1, len(images) // task.batch)
        batches = np.resize(images, (count, task.batch, *images.shape[1:]))
        self._left: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {"images": batch}


def _quantize_static(task: Task, kind: str, ops: list[str] | None) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(task.path(_name(task, "clean"))),
        str(task.path(_name(task, kind))),
        _Batches(task),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=ops,
    )


def int8_static(task: Task) -> None:
    """Preparation: QDQ, per channel, unsigned activations and signed weights, every op that the quantizer knows."""
    _quantize_static(task, "static", None)


def int8_static_products(task: Task) -> None:
    """Preparation: the same with integer matrix products only."""
    _quantize_static(task, "products", PRODUCTS)


def int8_dynamic(task: Task) -> None:
    """Preparation: weights per channel, activations quantized while running; there is no fast integer convolution."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    files = str(task.path(_name(task, "clean"))), str(task.path(_name(task, "dynamic")))
    quantize_dynamic(*files, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=PRODUCTS)


def load_path(task: Task, path: Path) -> Loaded:
    """A session on an ONNX file whose input is called images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(None, {"images": images})[0]
        return logits

    return Loaded(run, (path,), {"onnxruntime": onnxruntime.__version__, "kernels": "MLAS"})


def _load(task: Task, kind: str) -> Loaded:
    return load_path(task, task.path(_name(task, kind)))


def load_float(task: Task) -> Loaded:
    return _load(task, "float")


def load_static(task: Task) -> Loaded:
    return _load(task, "static")


def load_static_products(task: Task) -> Loaded:
    return _load(task, "products")


def load_dynamic(task: Task) -> Loaded:
    return _load(task, "dynamic")
