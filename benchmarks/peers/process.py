"""A contender's process seen from outside: started, asked, paused, ended; what goes wrong becomes a ContenderError with a reason.

Between its turns a process is stopped (SIGSTOP), with its children: thread pools that spin while they wait for work would
otherwise take a core from the contender whose turn it is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .contenders import Contender
from .machine import RESTRICTIONS
from .task import Task

PATIENCE = 600.0  # seconds for a load or a turn


class ContenderError(Exception):
    """Why a contender is out."""


def environment(task: Task, restricted: bool) -> dict[str, str]:
    """Threads, instruction sets, where this package is, and a compile cache of the contest's own: compiling counts."""
    return {
        **os.environ,
        **RESTRICTIONS[task.isa if restricted else "native"],
        "OMP_NUM_THREADS": str(task.threads),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TORCHINDUCTOR_CACHE_DIR": str(task.path("inductor")),
    }


def command(task: Task, what: str, name: str) -> list[str]:
    return [sys.executable, "-m", "peers.worker", task.work, what, name]


def reason(log: Path, code: int) -> str:
    """Killed by which signal, or the last thing said in a log that looks like an error."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines or ["it ended without a word"])[-1][:300]


def prepare(task: Task, name: str) -> None:
    """Run a preparation in a process of its own. Raises ContenderError."""
    log = task.path(f"logs/{name}.log")
    with log.open("w") as file:
        done = subprocess.run(
            command(task, "prepare", name), env=environment(task, restricted=False), stdout=file, stderr=file
        )
    if done.returncode:
        raise ContenderError(f"preparation {name}: {reason(log, done.returncode)}")


class Server:
    """A contender's process, paused whenever it has nothing to do."""

    def __init__(self, task: Task, contender: Contender) -> None:
        self._log = task.path(f"logs/{contender.key}.log")
        start = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command(task, "serve", contender.key),
                env=environment(task, contender.restrictable),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # a group of its own, so that its children stop and go with it
            )
        try:
            self.ready = self._hear() | {"start_seconds": time.perf_counter() - start}
        except ContenderError:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Wake, ask, hear, pause. Raises ContenderError."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        except BrokenPipeError as error:
            raise ContenderError(reason(self._log, self._process.wait())) from error
        return self._hear()

    def end(self) -> None:
        """Kill the process and what it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise ContenderError(f"no answer within {PATIENCE:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(reason(self._log, self._process.wait()))
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
