"""Lives of `qvit` that end by SIGKILL: real processes, started fast because a fork server has loaded torch for them.

A life runs the command line in a process group of its own. It is killed from outside (`Life.kill`), or it kills itself at a
point of its N-th checkpoint write (`POINTS`), where a kill from outside would hardly ever land:

    open temporary, write | half-written | written | synced | rename -> named | unlink the oldest
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "qvit.cli", "toy_kills"])

FLOAT_RECIPE = """
method = "float"

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 7, embed_dim = 32, depth = 2, num_heads = 2, num_classes = 10 }
pretrained = false

[data]
dataset = "digits"
mean = [0.13, 0.13, 0.13]
std = [0.31, 0.31, 0.31]
crop = 1.0
train_crop = "pad"
flip = 0.0
batch_size = 64

[fit]
epochs = 1
log_every = 1
evaluate_every = 0
"""

POINTS = ("half-written", "written", "synced", "named")


def _checkpoint(descriptor: int) -> bool:
    return "checkpoints/.step-" in os.readlink(f"/proc/self/fd/{descriptor}")


def die_in_write(point: str, count: int) -> None:
    """From now on this process kills itself at `point` of the `count`-th checkpoint write."""
    sync, rename = os.fsync, os.replace
    writes = 0

    def dies(here: str) -> None:
        if (here, writes) == (point, count):
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(descriptor: int) -> None:
        nonlocal writes
        if not _checkpoint(descriptor):
            return sync(descriptor)
        writes += 1
        if (point, count) == ("half-written", writes):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            dies("half-written")
        dies("written")
        sync(descriptor)
        dies("synced")

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).parent.name == "checkpoints":
            dies("named")

    os.fsync, os.replace = fsync, replace  # type: ignore[assignment]


def _live(arguments: Sequence[str], prepare: Callable[..., None] | None, values: tuple[Any, ...]) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import torch

    from qvit.cli import main

    torch.set_num_threads(1)
    if prepare is not None:
        prepare(*values)
    os._exit(main(arguments))


class Life:
    """One process of `qvit ARGUMENTS...`; `prepare(*values)` is called in it first."""

    def __init__(self, arguments: Sequence[str], prepare: Callable[..., None] | None = None, *values: Any) -> None:
        self.process = SERVER.Process(target=_live, args=(arguments, prepare, values))
        self.process.start()

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until the condition holds, the time is over, or the process has ended."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end and self.process.is_alive():
            time.sleep(0.002)

    def kill(self) -> bool:
        """SIGKILL for the process and its loader workers; false when it had ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it had no group yet
            os.kill(self.process.pid or 0, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Its exit code, once it has ended."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode
