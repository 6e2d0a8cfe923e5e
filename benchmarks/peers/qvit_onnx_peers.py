"""qvit's exported Programs in other people's runtimes: the same integers as qvit's own engine, another executor.

The file has a dynamic batch, as `qvit.export_onnx` writes it. OpenVINO is asked for float32, which it would otherwise
exchange for bfloat16 where the processor has that, and the codes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import openvino_peers, ort_peers
from .task import Loaded, Task

PROGRAMS = ("4", "mixed")  # of qvit_peers


def _path(task: Task, name: str) -> Path:
    return task.path(f"qvit_{name}.onnx")


def export(task: Task) -> None:
    """Preparation: qvit_4.onnx and qvit_mixed.onnx, from the artifacts."""
    import qvit
    import qvit_runtime

    for name in PROGRAMS:
        qvit.export_onnx(qvit_runtime.load(task.path(f"qvit_{name}.qvit")), _path(task, name))


def in_onnxruntime(name: str) -> Callable[[Task], Loaded]:
    """The loader of an exported Program in ONNX Runtime."""
    return lambda task: ort_peers.load_path(task, _path(task, name))


def in_openvino(name: str) -> Callable[[Task], Loaded]:
    """The loader of an exported Program in OpenVINO."""
    return lambda task: openvino_peers.load_path(task, (_path(task, name),), "f32")
