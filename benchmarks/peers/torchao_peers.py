"""torchao: int8 weights per channel, int8 activations quantized per token while running. Its kernels are meant for
torch.compile; eager is measured because it is what a user gets first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .network import build
from .task import Loaded, Task
from .torch_peers import compiled, runner, set_up

if TYPE_CHECKING:
    from torch import nn

FILE = "torchao_int8.pt"


def int8(task: Task) -> None:
    """Preparation: quantize the linear layers, save the state as torchao documents it."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    set_up(task)
    model = build(task)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    torch.save(model.state_dict(), task.path(FILE))


def _load(task: Task) -> nn.Module:
    import timm
    import torch
    import torchao  # noqa: F401  (registers its tensor classes for loading)

    model: nn.Module = timm.create_model(task.model, pretrained=False, **task.arguments).eval()
    model.load_state_dict(torch.load(task.path(FILE), weights_only=True), assign=True)
    return model


def eager(task: Task) -> Loaded:
    detail = set_up(task)
    return Loaded(runner(_load(task)), (task.path(FILE),), detail)


def inductor(task: Task) -> Loaded:
    detail = set_up(task)
    return Loaded(runner(compiled(_load(task))), (task.path(FILE),), detail | {"freezing": "on"})
