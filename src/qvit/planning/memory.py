"""What a training run holds in memory and writes to disk, in bytes, found without running it.

    peak of a device = parameters + gradients + optimizer + moving average + teacher + saved activations

Saved activations are the tensors that autograd keeps for the backward pass. `torch.autograd.graph.saved_tensors_hooks` sees
every one of them in a forward pass, and storages are counted once. They are A + B x P for a batch of B images, A for what
belongs to the weights (their fake-quantized copies, the codes of their gradients), so batches of 2 and 3 tell both. A batch of
1 is no guide: there some transposed copies are views.

The sum is an estimate of the peak: activations go while gradients come, which makes it too high; temporaries inside one
operation, the sensitivities of a probe, a block whose activations are recomputed (`fit.checkpoint_activations`), the second
set of activations of recorded passes (`fit.cuda_graph`), and what the allocator keeps in reserve make it too low.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bits.allocate import Published
from ..bits.sensitivity import Sensitivity
from ..quantizers.quantizer import named_quantizers
from ..training.compute import activations_recomputed
from ..training.fit_config import FitConfig
from ..training.optimizer import make_optimizer, parameter_groups
from ..training.state import TrainingState


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, while training with `batch` images on it."""

    batch: int
    parameters: int
    gradients: int
    optimizer: int
    average: int
    teacher: int
    activations: int

    @property
    def peak(self) -> int:
        """Estimate of the most that is held at once."""
        held = self.parameters + self.gradients + self.optimizer + self.average + self.teacher
        return held + self.activations


def training_memory(
    model: nn.Module, config: FitConfig, image: tuple[int, int, int], batch: int, teacher: nn.Module | None
) -> Memory:
    """Memory of training `model` on batches of `batch` images (3, H, W) = `image` per device.

    model    a calibrated quantized model, or a float one
    teacher  the float model where something of the loss asks it, or where it is on the same GPU all the same; else None
    """
    device = next(model.parameters()).device  # the CPU's, or the GPU's where models are made on one
    two, three = (saved_activations(model, torch.zeros(count, *image, device=device), config) for count in (2, 3))
    saved = checkpoint_sizes(model, config)
    return Memory(
        batch=batch,
        parameters=saved["model"],
        gradients=size_of(p for p in model.parameters() if p.requires_grad),
        optimizer=saved.get("optimizer", 0),
        average=saved.get("average", 0),
        teacher=size_of(teacher.state_dict().values()) if teacher is not None else 0,
        activations=two + (batch - 2) * (three - two),
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_activations(model: nn.Module, images: Tensor, config: FitConfig) -> int:
    """Bytes that autograd keeps of one forward pass in train mode, besides the parameters and buffers of the model."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    was_training = model.training
    precision = torch.autocast(images.device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    recomputed = activations_recomputed(model) if config.checkpoint_activations else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision, recomputed:
        output = model.train()(images)
    model.train(was_training)
    del output
    return sum(tensor.untyped_storage().nbytes() for address, tensor in seen.items() if address not in own)


def checkpoint_sizes(model: nn.Module, config: FitConfig) -> dict[str, int]:
    """Bytes of the last checkpoint of a run by the kinds of its tensors ("model", "optimizer", "average", ...).

    One optimizer step on the meta device, where tensors have shapes and no memory, brings up the optimizer's state.
    """
    ghost = copy.deepcopy(model).to("meta")
    bit_rate = 1.0 if isinstance(config.allocation, Published) else None
    groups = parameter_groups(ghost, config.learning_rate, config.weight_decay, config.scale_learning_rate, bit_rate)
    optimizer = make_optimizer(groups, config.optimizer, config.learning_rate)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    learned = any(quantizer.is_learned for quantizer in named_quantizers(model).values())
    state = TrainingState(ghost, optimizer, Sensitivity(ghost) if learned else None, ema_decay=0.0)
    sizes: dict[str, int] = {}
    for name, tensor in state.tensors()[0].items():
        kind = name.partition(".")[0]
        sizes[kind] = sizes.get(kind, 0) + size_of([tensor])
    return {**sizes, "average": sizes["model"]} if config.ema_decay else sizes
