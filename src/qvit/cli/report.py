"""qvit report: result files as one page.

qvit report runs/headwise runs/uniform3 -o report.html
qvit report runs --png pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .output import say

DEFAULT = Path("report.html")


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("report", help="one self-contained page of runs, and their pictures as files")
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directories (rows inside them are included), analyses, folders of runs, or result files",
    )
    parser.add_argument("-o", "--out", type=Path, default=DEFAULT, metavar="FILE", help=f"default: {DEFAULT}")
    parser.add_argument("--png", type=Path, metavar="DIR", help="also write every picture as a PNG file into DIR")
    parser.set_defaults(verb=report_verb)
    return parser


def report_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit report"""
    from ..report import make_report  # its charts need the extra `report`, the other verbs do not

    written = make_report(arguments.runs, arguments.out, arguments.png)
    size = arguments.out.stat().st_size / 1024 / 1024
    pictures = [f"wrote {len(written) - 1} pictures into {arguments.png}"] if arguments.png else []
    say(arguments, f"wrote {arguments.out} ({size:.1f} MB)", *pictures, "next: open it in a browser")
    return {"written": [str(path) for path in written]}
