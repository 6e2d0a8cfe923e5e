"""Where a measurement was made and how quiet it was there. Linux; elsewhere most of it is empty."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
)  # what int8 and float kernels use
RESTRICTIONS = {  # the environment that keeps a contender to AVX2; ONNX Runtime and OpenVINO obey none
    "native": {},
    "avx2": {
        "QVIT_CPU": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
TICKS = os.sysconf("SC_CLK_TCK")


def processor() -> dict[str, object]:
    """Model, family and the flags that matter, as the first core of /proc/cpuinfo has them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    have = fields.get("flags", "").split()
    return {
        "model": fields.get("model name", platform.processor()),
        "family": fields.get("cpu family", ""),
        "model_number": fields.get("model", ""),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": {flag: flag in have for flag in FLAGS},
    }


def busy_seconds() -> float:
    """Processor time that the machine has spent since it started, all cores and users, stolen time included."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, path.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def own_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes so far."""
    total = 0
    for pid in pids:
        path = Path(f"/proc/{pid}/stat")
        if path.exists():
            fields = path.read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def peak_mib() -> float:
    """Peak resident set of this process. Linux's ru_maxrss would be no less than that of the parent process."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))
