"""A run directory: everything that a run leaves behind, written so that a kill at any moment loses nothing.

    recipe.json            the resolved recipe            provenance.json    command, seed, versions, threads; of resumes, too
    metrics.jsonl          one line per logged step       bits.jsonl         bit-widths whenever they change
    checkpoints/step-N.safetensors                        result.json        the outcome
    model.qvit             the frozen program             model.safetensors  the trained quantized module
    tensorboard/           the metrics once more, when `fit.tensorboard` is on

A checkpoint is one safetensors file: tensors of the model, the optimizer, the moving average and the sensitivities, and in
its metadata the rest as JSON (step, optimizer settings, layout). Nothing is ever unpickled. It is written under a
temporary name, flushed and renamed, so the newest complete one is always whole. On resume, log lines that are newer than
the checkpoint are dropped, so that the log of a resumed run is that of an unbroken one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

KEEP = 2  # checkpoints kept: the newest, and the one before in case of a bad disk


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the text names the file."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # one writer, one name: a kill leaves nothing to collect
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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


class Run:
    """A run directory. Only the main process may write."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, data: Any) -> Path:
        """Write NAME as indented JSON, atomically."""
        path = self.folder / name
        write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())
        return path

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line to NAME."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

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

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint and drop those beyond the newest KEEP."""
        path = self.folder / "checkpoints" / f"step-{step:09d}.safetensors"
        save_tensors(path, tensors, {**state, "step": step})
        for old in self.checkpoints()[:-KEEP]:
            old.unlink()
        return path
