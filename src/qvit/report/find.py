"""find_runs(): which run directories a user means, and what to call them.

What may be given                                                     what it stands for
    a run directory                                                    it, and the rows inside (`float`, `uniform3`)
    a folder of run directories                                        all of them
    a result file, or a folder of result files (`headwise.json`)       rows of which only the outcome was kept

A run is called by its path from the folder that the given one is in, without the suffix of a file (`demo`, `demo/uniform3`).
Where two would be called the same, all are called by their whole path from the folder that everything given has in common:
`x` is a directory then, and `x.json` a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

MARKS = ("result.json", "recipe.json", "metrics.jsonl", "analysis.json")
"""A folder with one of these is a run directory."""
DEPTH = 2  # a folder of runs, a run, a row inside it
ROW = {"schema", "method"}  # keys by which a result file is told from any other JSON


class ReportError(ValueError):
    """A run cannot be read; the text is one line and names the file."""


def find_runs(given: Sequence[Path]) -> dict[str, Path]:
    """Name -> run directory or result file, in the order given; each path once.

    Raises ReportError for a path that does not exist or holds no run.
    """
    found: dict[Path, str] = {}
    for path in map(Path.resolve, given):
        if not path.exists():
            raise ReportError(f"{path} does not exist; give run directories, such as runs/NAME of qvit run")
        inside = [path] if path.is_file() else [*_run_directories(path, DEPTH)] or [*_result_files(path)]
        if not inside:
            raise ReportError(f"{path} holds no run: a run directory has one of {', '.join(MARKS)}")
        for run in inside:
            name = run.relative_to(path.parent).as_posix()
            found.setdefault(run, name.removesuffix(".json") if run.is_file() else name)
    if len(set(found.values())) < len(found):
        common = Path(os.path.commonpath([path.resolve().parent for path in given]))
        found = {run: run.relative_to(common).as_posix() for run in found}
    return {name: run for run, name in found.items()}


def _run_directories(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / mark).exists() for mark in MARKS):
        yield folder
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir():
                yield from _run_directories(child, depth - 1)


def _result_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ReportError(f"{path} is damaged: {error}") from error
        if isinstance(content, dict) and content.keys() >= ROW:
            yield path
