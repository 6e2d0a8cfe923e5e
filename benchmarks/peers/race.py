"""The contest: preparations, then one process per contender, then rounds in which everyone has a turn.

Interleaving makes slow drift of the machine (frequency, neighbours) fall on all alike; the order of each round is shuffled, so
that nobody always runs after the same one. What else was running is measured, not assumed: the processor time of the
machine less that of the contenders, as a share of one core.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from .contenders import Contender
from .machine import busy_seconds, own_seconds
from .process import ContenderError, Server, prepare
from .task import Task
from .worker import label

Result = dict[str, Any]  # what became of a contender: measurements, or "failed" and why


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def missing(contender: Contender) -> str:
    """The package that is not installed, or nothing."""
    return next((name for name in contender.imports if find_spec(name.partition(".")[0]) is None), "")


def prepare_all(task: Task, contenders: Sequence[Contender], failed: dict[str, str]) -> None:
    """Each preparation once; a folder that was used before keeps what succeeded there. Fills `failed`."""
    outcome: dict[str, str] = {}
    for contender in contenders:
        for step in contender.preparations:
            name = label(step)
            if contender.key in failed:
                break
            if name not in outcome:
                outcome[name] = _prepare_once(task, name)
            if outcome[name]:
                failed[contender.key] = outcome[name]


def _prepare_once(task: Task, name: str) -> str:
    """Why it failed, or nothing. Exports have a fixed batch, so a mark is per batch as well."""
    mark = task.path(f"logs/{name}.b{task.batch}.done")
    if mark.exists():
        return ""
    start = time.perf_counter()
    try:
        prepare(task, name)
    except ContenderError as failure:
        say(f"{name} failed: {failure}")
        return str(failure)
    say(f"{name}: {time.perf_counter() - start:.1f} s")
    mark.touch()
    return ""


def run(task: Task, contenders: Sequence[Contender], rounds: int, seconds: float) -> tuple[dict[str, Result], float]:
    """Results by contender, and the processor time others took, in cores, while the rounds went on."""
    for folder in ("logs", "answers"):
        task.path(folder).mkdir(parents=True, exist_ok=True)
    task.save()
    failed = {c.key: f"{missing(c)} is not installed" for c in contenders if missing(c)}
    prepare_all(task, contenders, failed)
    results: dict[str, Result] = {c.key: {} for c in contenders}
    servers: dict[str, Server] = {}
    try:
        for contender in contenders:
            if contender.key not in failed:
                _start(task, contender, servers, failed, results)
        others = _rounds(servers, rounds, seconds, failed, results)
        for key in list(servers):
            if key not in failed:
                _finish(task, key, servers[key], failed, results)
    finally:
        for server in servers.values():
            server.end()
    for key, why in failed.items():
        results[key] = {"failed": why}
    return results, others


def _start(
    task: Task, contender: Contender, servers: dict[str, Server], failed: dict[str, str], results: dict[str, Result]
) -> None:
    key = contender.key
    try:
        servers[key] = Server(task, contender)
    except ContenderError as failure:
        failed[key] = str(failure)
        say(f"{key} failed: {failure}")
        return
    results[key] = servers[key].ready | {"rounds": []}
    say(f"{key}: ready after {servers[key].ready['start_seconds']:.1f} s")


def _rounds(
    servers: dict[str, Server], rounds: int, seconds: float, failed: dict[str, str], results: dict[str, Result]
) -> float:
    order = list(servers)
    pids = [server.pid for server in servers.values()]
    start, before = time.perf_counter(), busy_seconds() - own_seconds(pids)
    for index in range(rounds):
        random.Random(index).shuffle(order)
        for key in order:
            if key not in failed:
                try:
                    results[key]["rounds"].append(servers[key].ask(turn=seconds)["milliseconds"])
                except ContenderError as failure:
                    failed[key] = str(failure)
        say(f"round {index + 1} of {rounds}")
    elapsed = time.perf_counter() - start
    return max(0.0, busy_seconds() - own_seconds(pids) - before) / elapsed


def _finish(task: Task, key: str, server: Server, failed: dict[str, str], results: dict[str, Result]) -> None:
    """Memory, and how far the logits are from the float model's."""
    try:
        results[key] |= server.ask(finish=True)
    except ContenderError as failure:
        failed[key] = str(failure)
        return
    results[key] |= errors(task.load(f"answers/{key}.npy"), task.load("reference.npy"))


def errors(logits: np.ndarray, reference: np.ndarray) -> Result:
    """max_error in units of a logit; relative_error = |difference| / |reference|, both as 2-norms over all images;
    agreement: share of images whose first class is the float model's."""
    difference = logits.astype(np.float64) - reference
    return {
        "max_error": float(np.abs(difference).max()),
        "relative_error": float(np.linalg.norm(difference) / np.linalg.norm(reference)),
        "agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
    }
