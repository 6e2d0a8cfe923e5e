"""qvit card: a finished run as a folder to publish.

qvit card runs/demo --license apache-2.0
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..card import write_card
from .output import say


def add_card(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("card", help="a finished run as a folder to publish: artifact, ONNX, model card")
    parser.add_argument("run", type=Path, help="run directory of a quantized run")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: hub/NAME of the run")
    parser.add_argument(
        "--license",
        required=True,
        metavar="ID",
        help="of the weights, your choice: apache-2.0, mit, cc-by-4.0, other, ...",
    )
    parser.add_argument(
        "--dataset", default="", metavar="NAME", help="public name of the images, such as cifar10 or ORG/NAME"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a folder that this verb wrote")
    parser.set_defaults(verb=card_verb)
    return parser


def card_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit card"""
    out = arguments.out or Path("hub") / arguments.run.resolve().name
    card = write_card(arguments.run, out, arguments.license, arguments.dataset, arguments.overwrite)
    say(arguments, *(f"wrote {out / name} ({size / 1024:.1f} KiB)" for name, size in card.sizes.items()))
    if card.no_onnx:
        say(arguments, f"no model.onnx: {card.no_onnx}")
    say(arguments, f"next: read {out / 'README.md'}, then: hf upload ORG/NAME {out}")
    return {**dataclasses.asdict(card), "folder": str(out)}
