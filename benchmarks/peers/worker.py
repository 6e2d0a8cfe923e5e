"""One process: either a preparation, or a contender that loads, answers, and runs when it is told.

    python -m peers.worker WORK prepare MODULE.FUNCTION
    python -m peers.worker WORK serve CONTENDER

A serving process says one line of JSON when it is ready and one after each command on its standard input:

    <- {"import_seconds", "load_seconds", "first_seconds", "file_bytes", "detail"}
    -> {"turn": SECONDS}     <- {"milliseconds": [...]}   a few calls uncounted, then timed calls for SECONDS, at least one
    -> {"finish": true}      <- {"peak_rss_mib": ...}     logits of all images are now in WORK/answers/CONTENDER.npy

The peak of memory is read before the many images of the last step are loaded: until then a process holds one batch.

Libraries print what they like: standard output is theirs turned to standard error, the answers have a descriptor of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any, TextIO

import numpy as np

from .contenders import CONTENDERS, Contender
from .machine import peak_mib
from .task import Run, Task

WARM_SHARE = 0.25  # of a turn that is not counted


def prepare(task: Task, name: str) -> None:
    """Run the preparation of that name."""
    everything = {label(step): step for contender in CONTENDERS for step in contender.preparations}
    everything[name](task)


def label(step: Any) -> str:
    """ "ort_peers.export" """
    return f"{step.__module__.rpartition('.')[2]}.{step.__name__}"


def turn(run: Run, images: np.ndarray, seconds: float) -> list[float]:
    """Milliseconds of single calls."""

    def calls(limit: float) -> Iterator[float]:
        start = time.perf_counter()
        before = start
        while True:
            run(images)
            after = time.perf_counter()
            yield 1e3 * (after - before)
            if after - start >= limit:
                return
            before = time.perf_counter()

    for _ in calls(WARM_SHARE * seconds):
        pass
    return list(calls(seconds))


def serve(task: Task, contender: Contender, commands: TextIO, answers: TextIO) -> None:
    """Load, say so, then obey."""

    def say(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    first = np.array(np.load(task.path("images.npy"), mmap_mode="r")[: task.batch])
    clock = [time.perf_counter()]
    for name in contender.imports:
        import_module(name)
    clock.append(time.perf_counter())
    loaded = contender.load(task)
    clock.append(time.perf_counter())
    loaded.run(first)
    clock.append(time.perf_counter())
    imported, ready, answered = np.diff(clock).tolist()
    say(
        import_seconds=imported,
        load_seconds=ready,
        first_seconds=answered,
        file_bytes=sum(path.stat().st_size for path in loaded.files),
        detail=loaded.detail,
    )
    for line in commands:
        match json.loads(line):
            case {"turn": seconds}:
                say(milliseconds=turn(loaded.run, first, seconds))
            case _:
                memory = peak_mib()
                np.save(task.path(f"answers/{contender.key}.npy"), answer(loaded.run, task))
                say(peak_rss_mib=memory)
                return


def answer(run: Run, task: Task) -> np.ndarray:
    """Logits of all images, batch by batch."""
    images = task.load("images.npy")
    return np.concatenate([run(part) for part in np.split(images, len(images) // task.batch)])


def main() -> None:
    work, what, name = sys.argv[1:]
    task = Task.read(work)
    if what == "prepare":
        prepare(task, name)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(task, next(c for c in CONTENDERS if c.key == name), sys.stdin, answers)


if __name__ == "__main__":
    main()
