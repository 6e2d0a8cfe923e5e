"""A run directory: everything that a run leaves behind, written so that a kill at any moment loses nothing.

    recipe.json            the resolved recipe            provenance.json    command, seed, versions, source, threads; of resumes, too
    metrics.jsonl          one line per logged step       bits.jsonl         bit-widths whenever they change
    scales.jsonl           scales in force, now and then    skipped.jsonl    training images that could not be read
    checkpoints/step-N.safetensors                        result.json        the outcome
    model.qvit             the frozen program             model.safetensors  the trained quantized module
    predictions.safetensors  classes of every image       activations.json   how activations lie on their grids
    tensorboard/           the metrics once more, when `fit.tensorboard` is on

A checkpoint is one safetensors file: tensors of the model, the optimizer, the moving average and the sensitivities, and in
its metadata the rest as JSON (step, optimizer settings, layout). Nothing is ever unpickled. Files are whole or absent
(`storage`). A checkpoint that the disk damaged later is set aside under another name for the one before it. On resume, log
lines that are newer than the checkpoint are dropped, so that the log of a resumed run is that of an unbroken one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from .storage import append_line, explained, write_atomic


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the text names the file."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """One safetensors file with `state` as JSON in its metadata, atomically."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if plain[name].untyped_storage().data_ptr() in storages:  # one module used in two places: a file has no aliases
            plain[name] = plain[name].clone()
        storages.add(plain[name].untyped_storage().data_ptr())
    write_atomic(path, safetensors_bytes(plain, metadata={"state": json.dumps(state)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of save_tensors. Raises CheckpointError naming the file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(metadata["state"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of qvit ({type(error).__name__}: {error})"
        ) from error


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Run:
    """A run directory. Only the main process may write."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        with explained(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, data: Any) -> Path:
        """Write NAME as indented JSON, atomically."""
        path = self.folder / name
        write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())
        return path

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line to NAME."""
        append_line(self.folder / name, json.dumps(record))

    def read(self, name: str) -> list[dict[str, Any]]:
        """The records of NAME; none without the file. A last line that was cut off by a kill is left out."""
        path = self.folder / name
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def drop_after(self, name: str, step: int) -> None:
        """Forget the records of NAME that were written after `step`."""
        if (self.folder / name).exists():
            kept = [json.dumps(record) + "\n" for record in self.read(name) if record["step"] <= step]
            write_atomic(self.folder / name, "".join(kept).encode())

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.safetensors"))

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int) -> Path:
        """Write a checkpoint and drop those beyond the newest `keep`; for a moment there are keep + 1."""
        path = self.folder / "checkpoints" / f"step-{step:09d}.safetensors"
        save_tensors(path, tensors, {**state, "step": step})
        for old in self.checkpoints()[:-keep]:
            old.unlink()
        return path

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[Path]]:
        """The newest checkpoint that can be read, None when there is none; and newer files that are damaged.

        Raises CheckpointError when there are checkpoints and none of them can be read.
        """
        damaged: dict[Path, CheckpointError] = {}
        for path in reversed(self.checkpoints()):
            try:
                return Checkpoint(path, *load_tensors(path)), list(damaged)
            except CheckpointError as error:
                damaged[path] = error
        if damaged:
            newest = next(iter(damaged.values()))
            raise CheckpointError(f"{newest}, and no other can be read; delete the folder to train this row anew")
        return None, []
