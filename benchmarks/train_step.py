"""What a step of quantization-aware training costs: head-wise learned bits against the float step of the same model.

    python benchmarks/train_step.py --model deit_tiny_patch16_224 --batch 8 --json -

Both steps are forward, cross entropy, backward and AdamW, in train mode on random images. They take turns in one process,
so that whatever else the machine does falls on both, and the ratio is that of the medians. Peak memory is the resident
set of a fresh process that does one kind of step only; beside it what the process had taken when it was ready to start
(for QAT that includes its calibration).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from qvit.calibrate import calibrate
from qvit.convert import quantize
from qvit.spec import Spec

KINDS = ("float", "qat")


def make(kind: str, name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The model of a kind in train mode, images and labels."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    channels, height, width = model.pretrained_cfg["input_size"]
    images = torch.randn(batch, channels, height, width)
    labels = torch.randint(model.num_classes, (batch,))
    if kind == "qat":
        model = quantize(model, Spec(), quiet=True)
        calibrate(model, [images[:2]])
    return model.train(), images, labels


def stepper(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One training step as a function."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def interleaved(name: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind of step, taking turns; two of each are warm-up."""
    steps = {kind: stepper(*make(kind, name, batch)) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(rounds + 2):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:
                seconds[kind].append(time.perf_counter() - start)
    return seconds


def resident_mib() -> float:
    """Peak resident set of this process so far. Linux's ru_maxrss would be no less than that of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def memory(kind: str, name: str, batch: int) -> dict[str, float]:
    """Peak MiB of a fresh process, before and after three steps of one kind."""
    command = [sys.executable, __file__, "--model", name, "--batch", str(batch), "--memory-of", kind]
    command += ["--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(kind: str, name: str, batch: int) -> dict[str, float]:
    """In the fresh process itself."""
    step = stepper(*make(kind, name, batch))
    before = resident_mib()
    for _ in range(3):
        step()
    return {"ready": before, "peak": resident_mib()}


def profile(name: str, batch: int) -> str:
    """Where the time of three QAT steps goes, by operator."""
    step = stepper(*make("qat", name, batch))
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            step()
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model that qvit supports")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the result there; - is the standard output")
    parser.add_argument("--profile", action="store_true", help="print a profile of the QAT step and stop")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.model, arguments.batch)))
        return
    if arguments.profile:
        print(profile(arguments.model, arguments.batch))
        return
    peak = {kind: memory(kind, arguments.model, arguments.batch) for kind in KINDS}
    seconds = interleaved(arguments.model, arguments.batch, arguments.rounds)
    median = {kind: statistics.median(times) for kind, times in seconds.items()}
    result = {
        "model": arguments.model,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "ratio": median["qat"] / median["float"],
        "step_ms": {kind: 1000 * value for kind, value in median.items()},
        "peak_mib": {kind: peak[kind]["peak"] for kind in KINDS},
        "ready_mib": {kind: peak[kind]["ready"] for kind in KINDS},
        "torch": torch.__version__,
    }
    if arguments.json in (None, "-"):
        print(json.dumps(result, indent=2))
    else:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
        print(f"wrote {arguments.json}: ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
