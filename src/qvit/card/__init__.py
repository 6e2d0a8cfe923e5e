"""write_card(): a finished run as a folder that can be published: artifact, ONNX file, config.json, model card.

    RUN --[facts]--> Facts --+--> config.json   timm's hub format and ours   (config)
                             +--> model.qvit    the program under its public name
                             +--> model.onnx    where its ops can be said in ONNX
                             +--> README.md     the card                 (text, bits, card.md)

What an earlier card left goes first, README.md ahead of the others, but for config.json, which marks the folder as ours: it is
written first, and README.md last. So a folder with a card is complete and of one run, and one that was broken off can be written
again with `overwrite`. A folder that is not ours is never written to.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from qvit_runtime.artifact import to_bytes
from qvit_runtime.program import Program

from ..system.storage import write_atomic
from .config import config_of, is_ours
from .facts import CardError, read_facts
from .text import readme

ARTIFACT, ONNX, README = "model.qvit", "model.onnx", "README.md"
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
DATASET_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Card:
    """What was written: file name -> bytes, and why model.onnx is not among them, or ""."""

    folder: Path
    sizes: dict[str, int]
    no_onnx: str


def write_card(run: Path, out: Path, license_id: str, dataset: str = "", overwrite: bool = False) -> Card:
    """Write the folder `out` from the files of a finished run.

    license_id  licence of the weights as the hub calls it: apache-2.0, mit, cc-by-4.0, other, ...
    dataset     name of the images, on the hub if they are there
    overwrite   replace the files in a folder that this function wrote; others in it stay

    Raises CardError for a licence or data set that is no such name and for what `read_facts` says, FileExistsError for a folder
    that is not empty, StorageError when a file cannot be written.
    """
    if not LICENSE_ID.fullmatch(license_id):
        raise CardError(
            f"licence {license_id!r} is no identifier of the hub; they look like apache-2.0, mit, cc-by-4.0 or other"
        )
    if dataset and not DATASET_NAME.fullmatch(dataset):
        raise CardError(f"data set {dataset!r} is no name such as cifar10 or ORG/NAME")
    facts = read_facts(run, dataset)
    _claim(out, overwrite)
    artifact = to_bytes(facts.program)
    config = (json.dumps(config_of(facts), indent=2) + "\n").encode()
    for name in (README, ONNX, ARTIFACT):  # of another run, perhaps
        (out / name).unlink(missing_ok=True)
    write_atomic(out / "config.json", config)
    write_atomic(out / ARTIFACT, artifact)
    no_onnx = _write_onnx(facts.program, out / ONNX)
    sizes = {ARTIFACT: len(artifact), ONNX: 0, "config.json": len(config)}
    if no_onnx:
        del sizes[ONNX]
    else:
        sizes[ONNX] = (out / ONNX).stat().st_size
    text = readme(facts, license_id, sizes, no_onnx).encode()
    write_atomic(out / README, text)
    return Card(out, {**sizes, README: len(text)}, no_onnx)


def _claim(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless the folder is new, empty, or ours and to be overwritten."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{out} is not empty; give another folder, or --overwrite for one that qvit card wrote")
    if not is_ours(out):
        raise FileExistsError(
            f"{out} is not empty and qvit card did not write it; give another folder, nothing was changed"
        )


def _write_onnx(program: Program, path: Path) -> str:
    """Write the ONNX file; "" or why there is none."""
    try:
        from ..onnx_export import OnnxExportError, export_onnx  # it needs the extra `onnx`
    except ImportError as error:
        return str(error)
    try:
        export_onnx(program, path)
    except OnnxExportError as error:
        return str(error)
    return ""
