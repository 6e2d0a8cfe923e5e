"""Files on disks that are full, read-only or no disks at all: whole files, whole lines, errors that say what to do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qvit.cli import main
from qvit.system import storage
from qvit.system.storage import StorageError, append_line, check_writable, explained, write_atomic


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


LIMIT = 4096  # bytes


@contextmanager
def small_files() -> Iterator[None]:
    """A real limit: no file of this process grows beyond LIMIT, and every second attempt writes a part of its bytes.

    Around one call only: the limit is that of the whole process, and what pytest prints may go to a larger file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_old_file_and_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(storage.os, "fsync", failing(errno.ENOSPC))
    text = (
        r"could not write .*x.json: No space left on device; 1,000 bytes were wanted and [\d,]+ are free there; complete files "
        r"are as they were; make room, then continue with --resume"
    )
    with pytest.raises(StorageError, match=text):
        write_atomic(path, b"n" * 1000)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.json", b"old")]
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_limit_of_the_system_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_atomic(path, b"o" * LIMIT)
    with (
        pytest.raises(StorageError, match=r"File too large; 4,097 bytes .* raise the limit on the size of files"),
        small_files(),
    ):
        write_atomic(path, b"n" * (LIMIT + 1))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.bin", b"o" * LIMIT)]


def test_a_log_gets_whole_lines_or_none(tmp_path: Path) -> None:
    """The system takes the first bytes of the last line before it refuses the rest; they must not stay."""
    path = tmp_path / "log.jsonl"
    line = "x" * 1499
    append_line(path, line)
    append_line(path, line)
    with pytest.raises(StorageError, match=r"log.jsonl: File too large; 1,500 bytes were wanted"), small_files():
        append_line(path, line)
    assert path.read_text() == f"{line}\n" * 2


def test_a_line_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    """Behind one that a kill cut off: what is appended would be lost with it."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b')
    append_line(path, "{}")
    append_line(path, "[]")
    assert path.read_text() == '{"a": 1}\n{"b\n{}\n[]\n'


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "make the directory writable, or give another --out"),
        (errno.EACCES, "make the directory writable"),
        (errno.EIO, "mend that"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_each_reason_has_its_advice(code: int, advice: str, tmp_path: Path) -> None:
    text = rf"{os.strerror(code)}; complete files are as they were; {advice}"
    with pytest.raises(StorageError, match=text), explained(tmp_path / "not" / "there", 0):
        failing(code)()


def test_a_writable_folder_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a file nobody can make one, whatever their rights."""
    (tmp_path / "file").write_text("")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'method = "float"\n[model]\nname = "vit_tiny_patch16_224"\npretrained = false\n[data]\nroot = "nowhere"\n'
    )
    assert main(["run", str(recipe), "--out", str(tmp_path / "file" / "run")]) == 74
    assert "Not a directory; complete files are as they were; a part of this path is a file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root; test_kill has a read-only file system")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"Permission denied; .* make the directory writable"):
        check_writable(tmp_path / "run")
    tmp_path.chmod(0o700)
