"""How a training step is computed: choices of `FitConfig` that trade time, memory and rounding, and not what is learned.

    precision = "bf16"            autocast around the forward pass of the network: matrix products and convolutions in bfloat16.
                                  Quantizers compute in float32, so grids and codes are those of float32; what they
                                  give is rounded to bfloat16, as the product behind would round it
    compile = true                torch.compile of the network. Steps with a probe run uncompiled: compiled code does not see
                                  the hooks that come and go around it. Same function, other rounding, other draws of dropout
    cuda_graph = true             forward and backward pass recorded and replayed on an NVIDIA GPU, once the bits are final
                                  (`graphed`): the same kernels, fewer launches
    checkpoint_activations = true timm's own: each block keeps its input alone and runs a second time in the backward pass.
                                  Same numbers bit for bit, about a third more time, a fraction of the memory

A method says whether it goes with them (`methods.Method`), a recipe that asks for more is refused when it is read, and
`check_compute` refuses what only a caller of `fit` can ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .fit_config import FitConfig


def check_compute(config: FitConfig, model: nn.Module, hooked: bool) -> None:
    """Raise ValueError, before training, for a choice that this model or its guide does not go with.

    hooked  something watches the inside of the network in every step
    """
    if config.compile and hooked:
        raise ValueError(
            "fit.compile does not go with a guide, with fit.features or with fit.activations_first: compiled code does not see "
            "their hooks inside the network; set fit.compile = false"
        )
    if config.checkpoint_activations and not hasattr(model, "set_grad_checkpointing"):
        raise ValueError(
            f"fit.checkpoint_activations is set, but {type(model).__name__} has no set_grad_checkpointing, as timm's models "
            "have; set it to false"
        )


def check_graph(train: object, guided: bool, device: torch.device, processes: int) -> None:
    """Raise ValueError, before training, where the passes of a network cannot be recorded (`graphed`).

    train      the loader
    guided     the loss has a guide
    device     that of this process
    processes  that share the training
    """
    if device.type != "cuda" or torch.version.hip is not None:
        found = "an AMD GPU" if device.type == "cuda" else device.type
        raise ValueError(
            f"fit.cuda_graph records what is launched on an NVIDIA GPU, and this run is on {found}; set fit.cuda_graph = false"
        )
    if processes > 1:
        raise ValueError(
            f"fit.cuda_graph does not go with {processes} processes, which wait for each other within a pass; set it to false, or "
            "train in one"
        )
    if guided:
        raise ValueError(
            "fit.cuda_graph does not go with a guide, whose hooks inside the network would run once; set it to false"
        )
    if getattr(train, "pin_memory", False):
        raise ValueError(
            "fit.cuda_graph does not go with a loader that pins memory: its thread would disturb the recording; give the loader "
            "pin_memory=False, or set fit.cuda_graph = false"
        )


@contextmanager
def activations_recomputed(model: nn.Module) -> Iterator[None]:
    """Inside, the blocks of a timm model, quantized or not, keep their inputs and recompute the rest."""
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_grad_checkpointing(False)  # type: ignore[operator]
