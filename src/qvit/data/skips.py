"""What cannot be read in training: another image stands in for it, it is counted and named, and there is a limit.

A run of days must not end at its thirtieth hour for one broken file, and images must not vanish unnoticed. So, where training
images are read (for training and for calibration),

    an unreadable image is replaced by the next readable one: its place in the order stays filled, and what fills it follows
    from the files alone, not from the number of workers or processes,
    its name goes to the screen and into a file, once,
    and more than `max_corrupt` of them end the run with the first names.

An evaluation replaces nothing: a top-1 over other images than those of the split is another number, so there an unreadable
image is an error.

Counting: images are read by the loader workers of several processes, which share nothing but files. Each appends what it
meets to one file, a line per image, and reads the file to learn what the others met. So the count is of different images,
whoever met them and however often, and a resume goes on with it. A line is one write to a file opened for appending, which
the system keeps whole on a local disk; two workers that meet one image at the same moment may both write it, and readers
drop the second line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..system.storage import append_line
from .config import DataError
from .sources import Source, UnreadableError

Item = TypeVar("Item")
NAMED = 5  # names in the error at the limit


@dataclass(frozen=True)
class Skipped:
    """One line of the file: an image that cannot be read, or a shard and how many `images` are lost with it."""

    name: str
    reason: str
    images: int = 1
    shard: bool = False


class Skips:
    """The unreadable images of a training split: at most `limit` of them, noted in `file`.

    Without a file they are noted in a new one in the folder for temporary files, which comes into being with the first.
    """

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit = limit
        self.file = file or Path(tempfile.gettempdir()) / f"qvit-skipped-{uuid.uuid4().hex[:12]}.jsonl"
        self._checked: set[str] = set()  # by this process, which need not look into the file again for them

    def add(self, skipped: Skipped) -> None:
        """Note it, and say so where it is new. Raises DataError beyond the limit."""
        if skipped.name in self._checked:
            return
        known = self.read()
        if skipped.name not in known:
            self._append(skipped)
            known = self.read()
            print(
                f"{skipped.name}: {skipped.reason}; left out of training ({_images(known)} of at most {self.limit} images, "
                f"see {self.file})",
                file=sys.stderr,
                flush=True,
            )
        if _images(known) > self.limit:
            raise DataError(self._beyond(known))
        self._checked.add(skipped.name)

    def read(self) -> dict[str, Skipped]:
        """All that was noted, by name, in the order of the file."""
        if not self.file.exists():
            return {}
        found: dict[str, Skipped] = {}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                skipped = Skipped(**json.loads(line))
            except json.JSONDecodeError:  # cut off by a kill; its image will be met and noted again
                continue
            found.setdefault(skipped.name, skipped)
        return found

    def images(self) -> int:
        """How many images are left out so far."""
        return _images(self.read())

    def has_shards(self) -> bool:
        """Whether a shard is among them, so that a pass over the split comes out shorter than it says."""
        return any(skipped.shard for skipped in self.read().values())

    def _append(self, skipped: Skipped) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.file, json.dumps(vars(skipped)))

    def _beyond(self, known: dict[str, Skipped]) -> str:
        names = "\n".join(f"  {skipped.name}: {skipped.reason}" for skipped in list(known.values())[:NAMED])
        return (
            f"training images that cannot be read: {_images(known)}, more than max_corrupt={self.limit}; the first are\n{names}\n"
            f"all are in {self.file}; replace them and delete that file, or set data.max_corrupt to how many may be left out"
        )


def _images(known: dict[str, Skipped]) -> int:
    return sum(skipped.images for skipped in known.values())


def first_readable(read: Callable[[int], Item], start: int, count: int, skips: Skips) -> Item:
    """`read` of the first of `start`, `start + 1`, ... (modulo `count`) that can be read; those before it are noted.

    Raises DataError beyond the limit, and when none of the `count` can be read.
    """
    for step in range(count):
        try:
            return read((start + step) % count)
        except UnreadableError as error:
            skips.add(Skipped(error.image, error.reason))
    raise DataError(f"none of {count} images can be read; see {skips.file}")


class StandIns:
    """A source in which the next readable image stands in for an unreadable one.

    Class folders are sorted by class, so a stand-in is nearly always of the class of the image that is missing.
    """

    def __init__(self, source: Source, skips: Skips) -> None:
        self.source = source
        self.skips = skips
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """As of a source; raises DataError beyond the limit of the skips."""
        return first_readable(self.source.read, index, len(self), self.skips)
