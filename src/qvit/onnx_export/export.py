"""export_onnx(): translate, check, verify, write; in this order, so that a file that exists is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qvit_runtime import program as p
from qvit_runtime.check import check

from ..system.runs import write_atomic
from .translate import translate
from .verify import Verification, verify

IMAGES = 2


def export_onnx(program: p.Program, path: Path | str, int2: bool = False) -> Verification:
    """Write a Program as an ONNX file of the opset that ONNX Runtime and OpenVINO both load.

    The input `images` is float32 (batch, channels, height, width), normalised; `output` has one row per image. metadata_props
    holds as JSON: preprocess (fields of qvit_runtime.program.Preprocess), labels, qvit (the metadata of the Program).

    int2  store 2-bit weights as int2 (mid-rise ones stay int4): ONNX Runtime reads that, OpenVINO does not

    Returns what was compared with the interpreter before the file was written. Raises OnnxExportError when an op has no exact
    form in ONNX or the graph disagrees, ProgramError when the Program is not well formed; nothing is written then.
    """
    check(program)
    model, t = translate(program, int2)
    onnx.checker.check_model(model, full_check=True)
    shape = program.buffers[program.input].shape
    verification = verify(model, t, np.random.default_rng(0).standard_normal((IMAGES, *shape)).astype(np.float32))
    write_atomic(Path(path), model.SerializeToString())
    return verification
