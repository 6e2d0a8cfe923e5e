"""The command line: one file per verb. Each prints what it wrote and what to do next; --json FILE (or -) for machines.

qvit run RECIPE [--out DIR] [--set KEY=VALUE ...] [--resume] [--dry-run]
qvit plan RECIPE [--devices N]        time, memory and disk that it will take, measured in a minute or two
qvit ptq MODEL --method NAME --weight-bits 8 --activation-bits 8 --data DIR      quantize without training
qvit compare RECIPE...               methods in one table, with paired intervals
qvit analyze MODEL                   what breaks under quantization, and a start for learned bits
qvit report RUN... -o report.html    runs as one page
qvit eval WHAT [--data DIR]          a run directory, a .qvit artifact, a recipe (its float model) or a timm model name
qvit export MODEL.qvit -o MODEL.onnx    for ONNX Runtime and OpenVINO
qvit card RUN --license ID           a run as a folder to publish: artifact, ONNX, model card
qvit cost WHAT --weight-bits 4 --activation-bits 4    a timm model name, a recipe (and its budget), or a run
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..network.support import UnsupportedModelError
from ..quantizers.quantizer import UncalibratedError
from ..system.interruption import InterruptionError
from ..system.processes import is_main
from ..system.storage import StorageError
from .analyze import add_analyze
from .card import add_card
from .compare import add_compare
from .cost import add_cost
from .eval import add_eval
from .export import add_export
from .output import write_json
from .plan import add_plan
from .ptq import add_ptq
from .report import add_parser as add_report
from .run import add_run

MEND = 2  # a person has to mend something
STORAGE = 74  # EX_IOERR of sysexits.h: a disk is full or read-only
AGAIN = 75  # EX_TEMPFAIL: stopped by SIGTERM, run again
CTRL_C = 128 + signal.SIGINT

EXPECTED = (
    ValueError,
    FloatingPointError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    UnsupportedModelError,
    UncalibratedError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code, 0 when all went well (`docs/unattended.md` lists the others).

    Errors that a user can mend are one line on stderr.
    """
    arguments = _parser().parse_args(argv)
    try:
        result = arguments.verb(arguments)
        if arguments.json and is_main():
            write_json(arguments.json, result)
    except InterruptionError as error:
        _complain(f"{error}; continue with: {_resuming(sys.argv[1:] if argv is None else argv)}")
        return CTRL_C if error.signal is signal.SIGINT else AGAIN
    except StorageError as error:
        _complain(str(error))
        return STORAGE
    except EXPECTED as error:
        _complain(str(error))
        return MEND
    return 0


def _complain(text: str) -> None:
    print(f"qvit: {' '.join(text.split())}", file=sys.stderr)


def _resuming(argv: Sequence[str]) -> str:
    """The command that continues the run of this one."""
    return shlex.join(["qvit", *argv] if "--resume" in argv else ["qvit", *argv, "--resume"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qvit", description="Learn how many bits a Vision Transformer needs.")
    parser.add_argument("--version", action="version", version=f"qvit {version('qvit')}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (
        add_run,
        add_plan,
        add_ptq,
        add_compare,
        add_analyze,
        add_report,
        add_eval,
        add_export,
        add_card,
        add_cost,
    ):
        add(verbs).add_argument("--json", metavar="FILE", help="write the result as JSON, - for standard output")
    return parser
