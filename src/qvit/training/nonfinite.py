"""The first tensor with NaN or infinity: what a training run that stopped being finite is diagnosed by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteLossError(FloatingPointError):
    """Training met NaN or infinity; the text has the step, the tensor, the last good checkpoint and what was tried.

    step         optimizer steps that were finite before
    culprit      the first tensor that is not
    checkpoints  of the run, oldest first
    tried        fraction of the learning rates that did not help, None when nothing was tried
    """

    def __init__(self, step: int, culprit: str, checkpoints: Sequence[Path], tried: float | None) -> None:
        where = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        back = "" if tried is None else f"; going back and on at {tried:g} of the learning rates did not help"
        super().__init__(
            f"training stopped being finite at step {step}: {culprit} is the first tensor with NaN or infinity; {where}{back}"
            "; try a lower learning_rate, or a smaller clip_gradient"
        )
        self.step = step


def nonfinite_parameter(model: nn.Module) -> str | None:
    """Name of the first parameter of `model` that is not finite; None when all are."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name}"
    return None


@torch.no_grad()
def first_nonfinite(model: nn.Module, images: Tensor) -> str:
    """Name of the first one in a forward pass: a parameter, the images, or a module's output in the order of the pass."""
    parameter = nonfinite_parameter(model)
    if parameter is not None:
        return parameter
    if not torch.isfinite(images).all():
        return "the input image batch"
    found: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name or type(module).__name__)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the loss itself"


def first_nonfinite_gradient(model: nn.Module, parameters: Iterable[nn.Parameter]) -> str:
    """Name of the first gradient among `parameters` of `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in parameters:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {names[id(parameter)]}"
    return "the norm of all gradients together"
