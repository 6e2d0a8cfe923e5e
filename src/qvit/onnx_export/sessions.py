"""The runtimes behind one signature: the bytes of a model in, a function from images to outputs by name out.

The reference evaluator of the onnx package is the specification in numpy; it verifies what is exported. The other two are
asked for what keeps the answer that of the Program. ONNX Runtime needs nothing said. OpenVINO needs float32: on a
processor with bfloat16 instructions it otherwise runs the float ops in bfloat16, unasked.

And OpenVINO (2026.4) must be kept from the signal stack of the calling thread. A compiled model puts its own there and, when it
goes, puts back the one that it found: with two models alive, and the first gone first, that is memory which is no longer
mapped. The next signal with a Python handler then ends the process with SIGSEGV and no word; SIGCHLD has such a handler as
soon as a DataLoader has had workers.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from onnx.reference import ReferenceEvaluator

from ..data.sources import require
from .translate import INPUT

Session = Callable[[np.ndarray], dict[str, np.ndarray]]


def reference_session(model: bytes) -> Session:
    """onnx.reference: slow, and nobody's optimization."""
    evaluator = ReferenceEvaluator(model)
    names = list(evaluator.output_names)
    return lambda images: dict(zip(names, list(evaluator.run(names, {INPUT: images})), strict=True))


def onnxruntime_session(model: bytes, threads: int = 1, optimized: bool = True) -> Session:
    """ONNX Runtime on the CPU, as it comes; `optimized=False` runs the nodes as they stand in the file."""
    require("onnxruntime", "running a model in ONNX Runtime", "bench")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def openvino_session(model: bytes, threads: int = 1) -> Session:
    """OpenVINO on the CPU, float32 where nothing is quantized."""
    require("openvino", "running a model in OpenVINO", "bench")
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    with _signal_stack_kept():
        compiled = core.compile_model(core.read_model(model), "CPU", hints)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled(images)
        return {name: results[place].copy() for place, name in enumerate(names)}

    return run


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Give the thread its alternate signal stack back at the end; elsewhere than on Linux, do nothing."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack, before = ctypes.CDLL(None).sigaltstack, _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
