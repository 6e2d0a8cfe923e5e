"""Two and three real processes (gloo, one machine; and two launchers that act as machines) against one with the same batches.

`training_worker` says what runs. Quantities are in quantization steps: the largest difference of a weight, over the scale of
its group. Adam moves a weight by up to the learning rate however small its gradient, so float32 rounding is what is left.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qvit_runtime
from paths import TESTS
from qvit.cli import main
from qvit.data import open_eval
from qvit.evaluation.evaluate import evaluate
from qvit.evaluation.outcome import load_predictions
from qvit.quantizers.quantizer import named_quantizers
from qvit.settings.recipe import recipe_from_values
from qvit.spec import Spec
from qvit.system.runs import Run, load_tensors
from toy_training import toy_model
from training_worker import CASES

pytestmark = pytest.mark.slow

WORKER = str(TESTS / "training_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run"]


def finish(*commands: list[str]) -> list[str]:
    """Run commands side by side; what they printed."""
    started = [
        subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    ends = [process.communicate(timeout=900) for process in started]
    for process, (_, error) in zip(started, ends, strict=True):
        assert process.returncode == 0, error[-3000:]
    return [output for output, _ in ends]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER / number of processes / case."""
    folder = tmp_path_factory.mktemp("processes")
    finish([sys.executable, WORKER, str(folder / "1"), *CASES])
    for number in ("2", "3"):
        finish([*LAUNCH, "--standalone", "--nproc_per_node", number, WORKER, str(folder / number), *CASES])
    return folder


def ended(folder: Path, rank: int) -> dict[str, Tensor]:
    return load_tensors(folder / f"rank-{rank}.safetensors")[0]


def differences(case: str, mine: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, float, float]:
    """Largest difference of weights in steps, of logarithms of scales, and of a weight's whole move relative to the move."""
    spec = CASES[case].spec
    assert isinstance(spec, Spec)
    model = toy_model(spec, drop_path_rate=0.0, proj_drop_rate=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(mine)
    steps, scales, moves = [], [], []
    for name, quantizer in named_quantizers(model).items():
        bank = f"{name}_quantizer.log_scale"
        scales.append((mine[bank] - other[bank]).abs().max())
        assert not torch.equal(mine[bank], before[bank]), name
        if not quantizer.batched:
            apart = mine[name] - other[name]
            steps.append(apart.abs().max() / quantizer.scale_at(quantizer.bit_width).detach().min())
            moves.append(apart.norm() / (mine[name] - before[name]).norm())
    return float(max(steps)), float(max(scales)), float(max(moves))


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", ["learned", "activations-first", "uniform", "accumulated", "bf16", "irm"])
def test_every_process_ends_with_the_same_model(case: str, number: int, runs: Path) -> None:
    first = ended(runs / str(number) / case, 0)
    for rank in range(1, number):
        other = ended(runs / str(number) / case, rank)
        assert first.keys() == other.keys()
        assert [name for name, value in first.items() if not torch.equal(value, other[name])] == []


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", ["learned", "uneven-probes", "activations-first", "uniform", "accumulated"])
def test_the_model_is_that_of_one_process(case: str, number: int, runs: Path) -> None:
    """Bits and locks equal; weights and scales, all of which have moved, up to float32 rounding."""
    one, several = ended(runs / "1" / case, 0), ended(runs / str(number) / case, 0)
    for name, value in one.items():
        if name.endswith(("bit_width", "extra_state")):
            assert torch.equal(several[name], value), name
    steps, scales, moves = differences(case, one, several)
    assert steps < 1e-3
    assert scales < 1e-4
    assert moves < 1e-3


@pytest.mark.parametrize("number", [2, 3])
def test_running_statistics_are_those_of_all_images(number: int, runs: Path) -> None:
    """IRM's: means are the mean of the processes' means, so one process's; variances within that of their means."""
    one, several = ended(runs / "1" / "irm", 0), ended(runs / str(number) / "irm", 0)
    names = [name for name in one if name.endswith("rectifier.mean")]
    assert names
    for name in names:
        torch.testing.assert_close(several[name], one[name], rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("number", [2, 3])
def test_bf16_differs_by_its_own_rounding(number: int, runs: Path) -> None:
    """Sums of a bfloat16 product depend on the size of the batch; codes flip, and a weight of six steps follows."""
    _, scales, moves = differences("bf16", ended(runs / "1" / "bf16", 0), ended(runs / str(number) / "bf16", 0))
    assert scales < 0.01
    assert moves < 0.3


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", ["learned", "activations-first", "uniform", "accumulated"])
def test_the_log_is_that_of_one_process_and_written_once(case: str, number: int, runs: Path) -> None:
    """Losses are means over processes, steps and evaluations are there once, so is the bit history."""
    one, several = (Run(runs / n / case / "run") for n in ("1", str(number)))
    for mine, other in zip(one.read("metrics.jsonl"), several.read("metrics.jsonl"), strict=True):
        assert mine.keys() == other.keys()
        assert all(math.isclose(mine[key], other[key], rel_tol=1e-4) for key in mine), (mine, other)
    assert one.read("bits.jsonl") == several.read("bits.jsonl")
    assert [path.name for path in one.checkpoints()] == [path.name for path in several.checkpoints()]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", ["learned", "uniform"])
def test_an_uneven_split_is_evaluated_once_and_in_order(case: str, number: int, runs: Path) -> None:
    """50 images in 7 batches: labels in the order of the split, the same outcome in every process."""
    one = json.loads((runs / "1" / case / "rank-0.json").read_text())
    found = [json.loads((runs / str(number) / case / f"rank-{rank}.json").read_text()) for rank in range(number)]
    assert all(outcome == found[0] for outcome in found)
    assert found[0]["labels"] == one["labels"]
    assert found[0]["images"] == 50
    assert sum(a != b for a, b in zip(found[0]["predictions"], one["predictions"], strict=True)) <= 1


def test_three_processes_cannot_share_sixteen_images(runs: Path) -> None:
    for rank in range(3):
        text = (runs / "3" / "indivisible" / f"rank-{rank}.txt").read_text()
        assert text.startswith("a batch of 16 images does not divide among 3 processes")
    assert not (runs / "3" / "indivisible" / "run" / "metrics.jsonl").exists()


def test_two_launchers_are_two_machines(runs: Path, tmp_path: Path) -> None:
    """Each starts one process and knows the other by address alone, as on two machines with a shared directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port), "--nnodes", "2", "--nproc_per_node", "1"]
    finish(*([*LAUNCH, *address, "--node_rank", rank, WORKER, str(tmp_path), "uniform"] for rank in ("0", "1")))
    for rank in range(2):
        mine, other = ended(tmp_path / "uniform", rank), ended(runs / "2" / "uniform", 0)
        assert [name for name, value in other.items() if not torch.equal(value, mine[name])] == []


def test_a_whole_recipe_is_judged_together(done: tuple[Path, Path], tmp_path: Path) -> None:
    """Two processes share 80 images in 3 batches; one process finds the same classes for the program that they left."""
    recipe, whole = done
    run = tmp_path / "run"
    (printed,) = finish(
        [*LAUNCH, "--standalone", "--nproc_per_node", "2", "-m", "qvit", "run", str(recipe), "--out", str(run)]
    )
    assert printed.count("wrote") == 1
    result = json.loads((run / "result.json").read_text())
    found, expected = load_predictions(run), load_predictions(whole)
    assert found["labels"].tolist() == expected["labels"].tolist()
    data = recipe_from_values(json.loads((run / "recipe.json").read_text())).data
    alone = evaluate(qvit_runtime.load(run / "model.qvit"), open_eval(data))
    assert alone.predictions.tolist() == found["program"].tolist()
    assert (alone.images, alone.top1) == (result["images"], result["top1_frozen"]) == (80, result["top1_frozen"])
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    assert {path.relative_to(run) for path in run.rglob("*")} == names
    assert main(["run", str(recipe), "--out", str(run), "--resume"]) == 0
    assert json.loads((run / "result.json").read_text()) == result
