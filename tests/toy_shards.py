"""Toy streams: tars of grey images, described by timm's `_info.json`; an image's grey level says which one it is.

Its label is the grey level modulo 3.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from qvit.data import Batch, DataConfig

CONFIG = DataConfig(
    dataset="wds/",
    root="shards",
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop=1.0,
    crop_mode="center",
    interpolation="bilinear",
    num_classes=3,
    train_crop="none",
    batch_size=4,
    eval_batch_size=5,
)


def png(grey: int) -> bytes:
    """A grey image as a file."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (grey,) * 3).save(file, "png")
    return file.getvalue()


def sample(grey: int) -> dict[str, bytes]:
    """The members of a sample, by file name."""
    return {f"{grey:04d}.png": png(grey), f"{grey:04d}.cls": str(grey % 3).encode()}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """A tar of members in the given order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path, split: str, sizes: Sequence[int], first: int = 0) -> list[Path]:
    """Tars with grey levels counting from `first`, added to the splits of `_info.json`; returns their paths."""
    info = folder / "_info.json"
    splits = json.loads(info.read_text())["splits"] if info.exists() else {}
    names = [f"{split}-{shard}.tar" for shard in range(len(sizes))]
    splits[split] = {"name": split, "filenames": names, "shard_lengths": list(sizes), "num_samples": sum(sizes)}
    info.write_text(json.dumps({"splits": splits}))
    for name, size in zip(names, sizes, strict=True):
        write_tar(folder / name, {k: v for grey in range(first, first + size) for k, v in sample(grey).items()})
        first += size
    return [folder / name for name in names]


def change(path: Path, changes: dict[str, bytes | None]) -> None:
    """Write a tar anew with other contents of some members; None leaves the member out."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]  # files all
    write_tar(path, {k: v for k, v in {**members, **changes}.items() if v is not None})


def greys(batches: Iterable[Batch]) -> list[int]:
    """The grey levels of all images in a row."""
    values = torch.cat([images for images, _ in batches])
    return [round(value) for value in ((values[:, 0, 8, 8] * 0.5 + 0.5) * 255).tolist()]
