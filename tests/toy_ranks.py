"""A toy training run on several processes of this machine (gloo), where something happens to one of them.

    "signal"   the process sends itself SIGTERM while it makes the step
    "nan"      its logits are NaN in that step, the first time
    "nothing"

Every process leaves its whole state in RUN/rank-R.safetensors and ends with 0, or as `qvit` ends when it is interrupted.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

from qvit.training.fit_config import FitConfig
from toy_kills import SERVER

STEPS = 6
CONFIG = FitConfig(epochs=1, checkpoint_every=2, log_every=1, lock_at=0.34)
INTERRUPTED = 75


def run_ranks(run: Path, what: str = "nothing", rank: int = 0, step: int = 0, size: int = 2) -> list[int]:
    """Exit codes of `size` processes that train in `run`, or continue there; in step `step` (from 0) WHAT happens to RANK."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run.mkdir(exist_ok=True)
    ranks = [SERVER.Process(target=_train, args=(index, size, port, run, what, rank, step)) for index in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return [-1 if code is None else code for code in codes]


def _train(index: int, size: int, port: int, run: Path, what: str, rank: int, step: int) -> None:
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    import torch

    from qvit.data.seeds import seed_of
    from qvit.system.interruption import InterruptionError
    from qvit.system.runs import save_tensors
    from toy_training import toy_model, toy_run

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = toy_model()
    plain = model.get_parameter("head.weight").detach().clone()

    def happen(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if index != rank or torch.initial_seed() != seed_of("step", CONFIG.seed, step, 0, index):
            return output
        if what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif what == "nan" and not (run / "nan").exists():
            (run / "nan").touch()
            return output * torch.nan
        return output

    model.get_submodule("head").register_forward_hook(happen)
    try:
        toy_run(CONFIG, run, model, evaluation=None, resume=True)
    except InterruptionError:
        os._exit(INTERRUPTED)
    assert not torch.equal(model.get_parameter("head.weight"), plain)
    save_tensors(run / f"rank-{index}.safetensors", model.state_dict(), {})
    os._exit(0)
