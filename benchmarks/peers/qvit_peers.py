"""qvit: one calibration, six programs, the native engine; and the integer-only program of I-ViT.

A model with learned bits has, after calibration, a scale for every width from 2 to 8 in every group, so the uniform
programs and the mixed one are frozen from the same module by setting its bits. The mixed one gets them the way training
does, only shorter: sensitivity from a few probe batches, equal benefit per cost under the budget of uniform 3 bits, lock.
Patch embedding and classifier stay at 8 bits throughout, as in every recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .network import build
from .task import Loaded, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvit import Budget

WIDTHS = (8, 6, 4, 3, 2)
PROBES = 3
PROBE_IMAGES = 8


def _path(task: Task, name: str) -> Path:
    return task.path(f"qvit_{name}.qvit")


def programs(task: Task) -> None:
    """Preparation: qvit_8.qvit ... qvit_2.qvit, then qvit_mixed.qvit."""
    import torch

    import qvit
    import qvit_runtime
    from qvit.bits.cost import cost

    torch.set_num_threads(task.threads)
    model = qvit.quantize(build(task), qvit.Spec()).eval()
    images = torch.from_numpy(task.load("calibration.npy"))
    qvit.calibrate(model, images.split(PROBE_IMAGES))
    for bits in WIDTHS:
        _set_all(model, bits)
        qvit_runtime.save(qvit.freeze(model), _path(task, str(bits)))
        if bits == 3:
            budget = qvit.Budget(gbitops=cost(model).gbitops)
    _mix(model, images, budget)
    metadata = {"gbitops": f"{cost(model).gbitops:.3f}", "budget": f"{budget.limit:.3f}"}
    qvit_runtime.save(qvit.freeze(model, budget, metadata=metadata), _path(task, "mixed"))


def integer_only(task: Task) -> None:
    """Preparation: qvit_ivit.qvit, W8A8 without a float operation between the image's codes and the logits."""
    import torch

    import qvit_runtime
    from qvit.methods import ivit
    from qvit_runtime.integer_only import prove

    torch.set_num_threads(task.threads)
    model = ivit.quantize(build(task)).eval()
    images = torch.from_numpy(task.load("calibration.npy")).split(PROBE_IMAGES)
    ivit.calibrate(model, images, len(images))
    program = ivit.freeze(model)
    prove(program)
    qvit_runtime.save(program, _path(task, "ivit"))


def _set_all(model: nn.Module, bits: int) -> None:
    """Every learned width to `bits`."""
    import torch

    from qvit.quantizers.quantizer import named_quantizers

    for quantizer in named_quantizers(model).values():
        if quantizer.is_learned:
            quantizer.set_bits(torch.full((quantizer.bit_groups,), float(bits)))


def _mix(model: nn.Module, images: Tensor, budget: Budget) -> None:
    """Bits per tensor and head under the budget: where `fit` would start, then the lock."""
    import torch

    from qvit.bits.allocate import Lagrangian, update
    from qvit.bits.lock import lock
    from qvit.bits.sensitivity import Sensitivity

    _set_all(model, 4)
    sensitivity = Sensitivity(model)
    for batch in images.split(PROBE_IMAGES)[:PROBES]:
        with sensitivity.probe(len(batch)):
            logits = model(batch)
            torch.nn.functional.cross_entropy(logits, logits.detach().argmax(1)).backward()
        sensitivity.update()
    update(model, sensitivity, budget, Lagrangian(), moves=100)
    lock(model, sensitivity, budget)


def _load(task: Task, name: str) -> Loaded:
    from qvit_runtime import load
    from qvit_runtime.engine import Engine

    path = _path(task, name)
    program = load(path)
    engine = Engine(program, task.threads)

    def run(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = engine(images)
        return logits

    return Loaded(run, (path,), {"path": engine.path, **program.metadata})


def uniform(bits: int) -> Callable[[Task], Loaded]:
    """The loader of the program with `bits` bits everywhere."""
    return lambda task: _load(task, str(bits))


def mixed(task: Task) -> Loaded:
    return _load(task, "mixed")


def ivit_program(task: Task) -> Loaded:
    return _load(task, "ivit")
