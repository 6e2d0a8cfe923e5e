"""qvit export: an artifact as an ONNX file.

qvit export model.qvit -o model.onnx
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import qvit_runtime

from .output import say


def add_export(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("export", help="an artifact as an ONNX file for ONNX Runtime and OpenVINO")
    parser.add_argument("model", type=Path, help=".qvit file, or run directory")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: the artifact's name with .onnx")
    parser.add_argument("--int2", action="store_true", help="store 2-bit weights in 2 bits: for ONNX Runtime only")
    parser.set_defaults(verb=export_verb)
    return parser


def export_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit export"""
    from ..onnx_export import export_onnx  # it needs the extra `onnx`, the other verbs do not

    artifact = arguments.model / "model.qvit" if arguments.model.is_dir() else arguments.model
    out = arguments.out or artifact.with_suffix(".onnx")
    verification = export_onnx(qvit_runtime.load(artifact), out, arguments.int2)
    say(
        arguments,
        f"wrote {out} ({out.stat().st_size / 1024:.1f} KiB)",
        f"every op agrees with the interpreter: {verification.codes} codes equal, values within "
        f"{verification.value_error:.1g} of the largest",
        f"next: onnxruntime.InferenceSession({str(out)!r}), input 'images'; OpenVINO: docs/onnx.md",
    )
    return {"written": str(out), "bytes": out.stat().st_size, **dataclasses.asdict(verification)}
