"""PyTorch float32: eager, and compiled by Inductor with frozen weights, which its documentation recommends for inference
on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .network import FLOAT_WEIGHTS, build
from .task import Loaded, Run, Task

if TYPE_CHECKING:
    from torch import nn


def runner(model: Callable[..., Any]) -> Run:
    """A torch module as a function of numpy arrays. no_grad and not inference_mode: freezing refuses inference tensors."""
    import torch

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = model(torch.from_numpy(images)).numpy()
        return logits

    return run


def set_up(task: Task) -> dict[str, str]:
    """Threads; says which instructions torch picked."""
    import torch

    torch.set_num_threads(task.threads)
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def compiled(model: nn.Module) -> Callable[..., Any]:
    """torch.compile with constant folding of the weights; everything else as it comes."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.compile_threads = 1  # no pool of helper processes that would still be there when others are measured
    function: Callable[..., Any] = torch.compile(model)
    return function


def eager(task: Task) -> Loaded:
    detail = set_up(task)
    return Loaded(runner(build(task)), (task.path(FLOAT_WEIGHTS),), detail)


def inductor(task: Task) -> Loaded:
    detail = set_up(task)
    return Loaded(runner(compiled(build(task))), (task.path(FLOAT_WEIGHTS),), detail | {"freezing": "on"})
