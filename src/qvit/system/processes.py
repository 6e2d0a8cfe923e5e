"""Which process this is, of how many: Accelerate's answer, asked for in one way.

Whoever asks Accelerate first decides for the whole process, and without `cpu=True` it ignores that torchrun started several
processes on a machine without an accelerator: each would train alone and all would write the same files.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env, reduce
from torch import Tensor


def on_cpu() -> bool:
    """Train on the CPU: asked for (`accelerate launch --cpu`), or there is nothing else."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Index, number and device of this process."""
    return PartialState(cpu=on_cpu())


def model_device() -> torch.device:
    """Where models are calibrated and evaluated: this process's CUDA device, or else the CPU.

    Not Apple's GPU: modules are judged in float64, which it does not have. `fit` trains there all the same.
    """
    device = process_state().device
    return device if device.type == "cuda" else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """In words: "cpu", or the name of an accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_main() -> bool:
    """Whether this process writes files."""
    return bool(process_state().is_main_process)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of a tensor of equal shape over the processes, the same bits in each; all must call."""
    state = process_state()
    if state.num_processes == 1:
        return tensor
    return reduce(tensor.to(state.device), "mean").to(tensor.device)


def require_same(what: str, number: int, wanted: str) -> None:
    """Raise RuntimeError in every process unless all come with the same number; all must call.

    what, wanted  of the text: what was counted, and what to do
    """
    found = gather(torch.tensor([number], device=process_state().device)).tolist()
    if len(set(found)) > 1:
        raise RuntimeError(f"the processes see different {what} ({', '.join(map(str, found))}); {wanted}")
