"""OpenVINO with the latency hint: float32, as it comes, and int8 by NNCF's post-training quantization for transformers.

OpenVINO cannot be kept to AVX2: its kernels of oneDNN obey ONEDNN_MAX_CPU_ISA, its own do not, and together they crash
(2026.4 with a Swin). So --isa avx2 only forbids it bfloat16, which no AVX2 processor has.

Where a processor has bfloat16 instructions OpenVINO uses them unasked. "fp32" therefore asks for float32; "as it comes" does
not, nor does int8, whose remaining float parts then run in bfloat16. Each row says which precision was in force.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .network import build
from .task import Loaded, Task


def _name(task: Task, kind: str) -> str:
    return f"openvino_{kind}_b{task.batch}.xml"


def convert(task: Task) -> None:
    """Preparation: torch model to OpenVINO's format, with a fixed batch."""
    import openvino
    import torch

    torch.set_num_threads(task.threads)
    images = task.load("images.npy")[: task.batch]
    model = openvino.convert_model(build(task), example_input=torch.from_numpy(images), input=list(images.shape))
    openvino.save_model(model, task.path(_name(task, "float")), compress_to_fp16=False)


def int8(task: Task) -> None:
    """Preparation: NNCF with the transformer model type (SmoothQuant, bias correction, int8 per channel)."""
    import nncf
    import openvino

    images = task.load("calibration.npy")
    count = max(1, len(images) // task.batch)
    batches = list(np.resize(images, (count, task.batch, *images.shape[1:])))
    model = openvino.Core().read_model(task.path(_name(task, "float")))
    quantized = nncf.quantize(
        model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
    )
    openvino.save_model(quantized, task.path(_name(task, "int8")), compress_to_fp16=False)


def load_path(task: Task, files: tuple[Path, ...], precision: str = "") -> Loaded:
    """The model in the first of the files; precision: what to compute in, the default leaves the choice to OpenVINO."""
    if task.isa != "native":
        precision = "f32"
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": task.threads}
    if precision:
        hints["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(files[0], "CPU", hints)

    def run(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = compiled(images, share_inputs=True)[0]
        return logits

    in_force = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    detail = {"openvino": openvino.__version__, "inference_precision": in_force}
    return Loaded(run, files, detail)


def _load(task: Task, kind: str, precision: str = "") -> Loaded:
    path = task.path(_name(task, kind))
    return load_path(task, (path, path.with_suffix(".bin")), precision)


def load_float(task: Task) -> Loaded:
    return _load(task, "float", "f32")


def load_as_it_comes(task: Task) -> Loaded:
    return _load(task, "float")


def load_int8(task: Task) -> Loaded:
    return _load(task, "int8")
