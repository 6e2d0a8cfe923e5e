"""Writing files on a disk that may be full, read-only or gone: the old file survives, and the error says what to do.

    write_atomic      a whole new file or the old one: temporary name, flush, rename
    append_line       a whole line more or none
    check_writable    asked before hours of training, not after them
    explained         turns the system's error into a StorageError

A kill at any moment needs no cleaning up: the temporary file has one name per target, and the next write takes it over. An
error does need it: the room that half a file takes is the room that is missing.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTINUE = "make room, then continue with --resume"
ELSEWHERE = "make the directory writable, or give another --out"
ADVICE = {
    errno.ENOSPC: CONTINUE,
    errno.EDQUOT: CONTINUE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then continue with --resume",
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.ENOTDIR: "a part of this path is a file; give another --out",
}


class StorageError(OSError):
    """A file could not be written; the text has its path, the reason, the room wanted and free, and what to do."""


@contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Around the writing of `size` bytes (0: of a folder) to `path`: raises StorageError for OSError."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(_existing(path)).free
        advice = ADVICE.get(error.errno or 0, "mend that, then continue with --resume")
        room = f"{size:,} bytes were wanted and {free:,} are free there; " if size else ""
        raise StorageError(
            f"could not write {path}: {error.strerror or error}; {room}complete files are as they were; {advice}"
        ) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that after a crash or an error it is the old one or the whole new one. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.partial")
    with explained(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, or nothing when that fails; on a line of its own where a kill cut the last one off.

    Raises StorageError.
    """
    content = (line + "\n").encode()
    with (
        explained(path, len(content)),
        open(path, "a+b", buffering=0) as file,
    ):  # closing a buffer would write it once more
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            os.truncate(path, before)
            raise


def check_writable(folder: Path) -> None:
    """Raise StorageError unless files can be made in the folder, or in the one where it would have to be made."""
    with explained(folder, 0), tempfile.TemporaryFile(dir=_existing(folder)):
        pass


def _existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
