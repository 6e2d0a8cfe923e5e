"""What a step of quantization-aware training costs: head-wise learned bits against the float step of the same model.

    python benchmarks/train_step.py --model deit_tiny_patch16_224 --batch 8 --json -
    python benchmarks/train_step.py --variant bf16 --variant compiled --variant bf16+compiled --variant recomputed
    python benchmarks/train_step.py --device cuda --batch 128 --variant bf16 --variant unfused

Steps are forward, cross entropy, backward and AdamW, in train mode on random images. They take turns in one process, so that
whatever else the machine does falls on all, and the ratio is that of the medians, once of the clock and once of the processor
time of this process, which other work disturbs less. Learning bits probes every few steps (`qvit.bits.sensitivity`); `ratio` is that
of the mean step, probes and moves of the bits included. A variant is a float and a QAT step computed otherwise (`qvit.training.compute`;
"unfused" takes the torch formulas of fake quantization, `qvit.quantizers.fused`). Peak memory is that of a fresh process that does
one kind of step only, its resident set or what it allocated on the GPU; beside it what the process had taken when it was ready
to start (for QAT that includes its calibration).
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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian
from qvit.bits.budget import Budget
from qvit.bits.cost import cost
from qvit.calibration.calibrate import calibrate
from qvit.network.convert import quantize
from qvit.spec import Spec
from qvit.system.processes import device_name
from qvit.training.bit_schedule import BitSchedule
from qvit.training.fit_config import FitConfig

KINDS = ("float", "qat")
PROBE = "qat with a probe"
WAYS = ("bf16", "compiled", "recomputed", "unfused")
Times = dict[str, list[tuple[float, float]]]


def make(kind: str, name: str, batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model of a kind ("float", "qat", "qat bf16+compiled", ...) in train mode, images and labels, all on the device."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).to(device)
    channels, height, width = model.pretrained_cfg["input_size"]
    images = torch.randn(batch, channels, height, width).to(device)
    labels = torch.randint(model.num_classes, (batch,)).to(device)
    if kind.startswith("qat"):
        model = quantize(model, Spec(), quiet=True)
        calibrate(model, [images[:2]])
    if "recomputed" in kind:
        model.set_grad_checkpointing(True)
    return model.train(), images, labels


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fusing(kind: str) -> AbstractContextManager:
    """Inside, quantizers take the pass of this kind of step."""
    return patch("qvit.quantizers.quantizer.fused_pass", lambda *_: None) if "unfused" in kind else nullcontext()


def stepper(kind: str, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One training step as a function."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    network = torch.compile(model) if "compiled" in kind else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with fusing(kind):
            with torch.autocast(images.device.type, torch.bfloat16, enabled="bf16" in kind):
                logits = network(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        wait(images.device)

    return step


def probing_stepper(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One training step with hooks for the sensitivities, and the move of the bits that follows it."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    budget = Budget(gbitops=0.6 * cost(model).gbitops)
    schedule = BitSchedule(model, budget, FitConfig(), lock_step=10**9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with schedule.probe(len(images), 1):
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.after_step(0, probed=True)
        wait(images.device)

    return step


def interleaved(kinds: tuple[str, ...], name: str, batch: int, rounds: int, device: str) -> Times:
    """Seconds of each kind of step, by the clock and of processor time, taking turns; two of each are warm-up."""
    steps = {kind: stepper(kind, *make(kind, name, batch, device)) for kind in kinds}
    steps[PROBE] = probing_stepper(*make("qat", name, batch, device))
    seconds: Times = {kind: [] for kind in steps}
    for round_ in range(rounds + 2):
        for kind, step in steps.items():
            start, used = time.perf_counter(), time.process_time()
            step()
            if round_ >= 2:
                seconds[kind].append((time.perf_counter() - start, time.process_time() - used))
    return seconds


def medians(seconds: Times, clock: int) -> dict[str, float]:
    """Seconds of a step of each kind; clock 0: by the clock, 1: processor time."""
    return {kind: statistics.median(times[clock] for times in all_times) for kind, all_times in seconds.items()}


def ratio(median: dict[str, float], every: int) -> float:
    """Mean QAT step, one of `every` with a probe, in float steps."""
    return ((every - 1) * median["qat"] + median[PROBE]) / every / median["float"]


def resident_mib() -> float:
    """Peak resident set of this process so far. Linux's ru_maxrss would be no less than that of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def memory(kind: str, name: str, batch: int, device: str) -> dict[str, float]:
    """Peak MiB of a fresh process, before and after three steps of one kind."""
    command = [sys.executable, __file__, "--model", name, "--batch", str(batch), "--memory-of", kind]
    command += ["--device", device]
    command += ["--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(kind: str, name: str, batch: int, device: str) -> dict[str, float]:
    """In the fresh process itself."""
    step = stepper(kind, *make(kind, name, batch, device))
    used = resident_mib if device == "cpu" else lambda: torch.cuda.max_memory_allocated() / 2**20
    before = used()
    for _ in range(3):
        step()
    return {"ready": before, "peak": used()}


def profile(name: str, batch: int, device: str) -> str:
    """Where the time of three QAT steps goes, by operator."""
    step = stepper("qat", *make("qat", name, batch, device))
    step()
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []),
    ]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(3):
            step()
    return recorded.key_averages().table(
        sort_by=f"self_{'device' if device == 'cuda' else 'cpu'}_time_total", row_limit=25, max_name_column_width=40
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model that qvit supports")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the result there; - is the standard output")
    parser.add_argument("--profile", action="store_true", help="print a profile of the QAT step and stop")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        choices=[*WAYS, "bf16+compiled", "bf16+recomputed"],
        help="also measure steps that are computed so; may be repeated",
    )
    parser.add_argument("--memory-of", metavar="KIND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.model, arguments.batch, arguments.device)))
        return
    if arguments.profile:
        print(profile(arguments.model, arguments.batch, arguments.device))
        return
    kinds = (*KINDS, *(f"{kind} {way}" for way in arguments.variant for kind in KINDS))
    peak = {kind: memory(kind, arguments.model, arguments.batch, arguments.device) for kind in kinds}
    seconds = interleaved(kinds, arguments.model, arguments.batch, arguments.rounds, arguments.device)
    every = Lagrangian().every
    clock, processor = medians(seconds, 0), medians(seconds, 1)
    result = {
        "model": arguments.model,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "device": device_name(torch.device(arguments.device)),
        "rounds": arguments.rounds,
        "ratio": ratio(clock, every),
        "ratio_without_probes": clock["qat"] / clock["float"],
        "ratio_of_processor_time": ratio(processor, every),
        "ratio_of_processor_time_without_probes": processor["qat"] / processor["float"],
        "probe_every": every,
        "step_ms": {kind: 1000 * value for kind, value in clock.items()},
        "processor_ms": {kind: 1000 * value for kind, value in processor.items()},
        "peak_mib": {kind: used["peak"] for kind, used in peak.items()},
        "ready_mib": {kind: used["ready"] for kind, used in peak.items()},
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
