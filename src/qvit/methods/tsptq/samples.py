"""What the search of TSPTQ looks at: operands of every product and the importance of its output, from one float pass.

The search (`search`) minimises sum F (O - O_hat)^2 over the outputs O of a product, F = (dL/dO)^2. arXiv 2305.12901
says "Hessian-guided"; which loss L and how its gradient is taken is OUR RECONSTRUCTION (the paper's text was not available):

The quantized model shall predict what the float model predicts, so the loss is KL(p || p_hat) with the float prediction p.
Its gradient at the float model is zero, and the square of zero guides nothing. What counts there is its Hessian: on the
logits that is H = diag(p) - p p^T, and a disturbance d of the logits costs 1/2 d^T H d. A random vector

    v = A e,  A = diag(sqrt p) - p sqrt(p)^T,  e of random signs        has E[v v^T] = A A^T = H

so one backward pass that starts from v at the logits gives g = J^T v at every O, and E[g^2] is the diagonal of J^T H J, the
Hessian of the loss in O. No label is read. (Cross entropy with the float model's own class has a gradient too, but only
images it is unsure of count there; labels drawn from p have the same expectation as v and far more noise, for the rare
class that is not the first decides everything.) A model without a classifier gives features, whose squared distance has
the Hessian 1: v = e.

Rows of O (token, or token of a window) are independent, so ROWS of them per product are enough; they are drawn over all
calibration images with a fixed seed. The two attention products keep whole entries (images, or windows), since all keys
belong to a query. In float, dL/dscores follows from the gradient of the attention map A: dS = A (dA - sum_k dA A).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.calibrate import float_forward
from ...network.attention import QuantAttention, QuantWindowAttention
from ...network.layers import QuantConv2d, QuantLinear
from ...quantizers.quantizer import require_quantized

ROWS = 1024  # rows of O per product
CHUNK = 16  # images per backward pass

Layer = QuantLinear | QuantConv2d
AttentionModule = QuantAttention | QuantWindowAttention


class LayerSample(NamedTuple):
    """Inputs (R, in) and importance (R, out) of a linear layer; the patch embedding is one on flattened patches."""

    inputs: Tensor
    importance: Tensor


class AttentionSample(NamedTuple):
    """Operands of both products of an attention module, for E entries, and the importance of their outputs.

    q, k, v     (E, H, N, d)
    attention   (E, H, N, N)
    scores      (E, H, N, N), importance of q k^T up to the constant factor that follows it
    mixed       (E, H, N, d), importance of attention v
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attention: Tensor
    scores: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class Samples:
    """By module name."""

    layers: dict[str, LayerSample]
    attentions: dict[str, AttentionSample]


@dataclass
class _Trace:
    """What one pass leaves behind: values by tensor name, and the tensors whose gradients are wanted."""

    values: dict[str, Tensor] = field(default_factory=dict)
    wanted: dict[str, Tensor] = field(default_factory=dict)


def collect(model: nn.Module, images: Tensor, seed: int = 0) -> Samples:
    """Samples of every product of a quantized model, from (B, channels, height, width) images, as the float model has them.

    Quantizers are stepped over and need no scale. Parameters get no gradient; the model's mode is left as it was.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, AttentionModule)}
    layer_parts: dict[str, list[LayerSample]] = {name: [] for name in layers}
    attention_parts: dict[str, list[AttentionSample]] = {name: [] for name in attentions}
    was_training = model.training
    model.eval()
    try:
        for chunk in images.split(CHUNK):
            share = len(chunk) / len(images)
            trace, gradients = _pass(model, chunk.to(device), generator)
            for name, layer in layers.items():
                layer_parts[name].append(_layer_rows(name, layer, trace, gradients, share, generator))
            for name in attentions:
                attention_parts[name].append(_attention_entries(name, trace, gradients, share, generator))
    finally:
        model.train(was_training)
    return Samples(
        {name: LayerSample(*map(torch.cat, zip(*parts, strict=True))) for name, parts in layer_parts.items()},
        {name: AttentionSample(*map(torch.cat, zip(*parts, strict=True))) for name, parts in attention_parts.items()},
    )


def _pass(model: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[_Trace, dict[str, Tensor]]:
    """One forward and backward pass; gradients by name of the wanted tensors."""
    with torch.enable_grad(), _traced(model) as trace:
        output = model(images.clone().requires_grad_())  # so that frozen parameters do not cut the graph
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        direction = hessian_direction(output.detach(), signs) if model.num_classes else signs
        gradients = torch.autograd.grad(output, list(trace.wanted.values()), direction)
    return trace, dict(zip(trace.wanted, gradients, strict=True))


def hessian_direction(logits: Tensor, signs: Tensor) -> Tensor:
    """v = A e for random signs e, both (B, classes): E[v v^T] is the Hessian diag(p) - p p^T of KL(p || p_hat)."""
    p = logits.softmax(-1)
    drawn = p.sqrt() * signs
    return drawn - p * drawn.sum(-1, keepdim=True)


@contextmanager
def _traced(model: nn.Module) -> Iterator[_Trace]:
    """Inside, the model computes in float and a trace records inputs of layers, operands of attention and outputs."""
    trace = _Trace()
    quantizers = require_quantized(model)

    def input_of(name: str) -> Callable[..., None]:
        return lambda module, args, output: trace.values.__setitem__(name, args[0].detach())

    def output_of(name: str) -> Callable[..., None]:
        return lambda module, args, output: trace.wanted.__setitem__(name, output)

    with float_forward(model), ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, Layer):
                handles.callback(module.register_forward_hook(input_of(f"{name}.input")).remove)
                handles.callback(module.register_forward_hook(output_of(f"{name}.output")).remove)
            elif isinstance(module, AttentionModule):
                for part in ("q", "k", "v", "attention"):
                    tensor = f"{name}.{part}"
                    handles.callback(quantizers[tensor].register_forward_hook(input_of(tensor)).remove)
                for tensor in (f"{name}.attention", f"{name}.proj.input"):
                    handles.callback(quantizers[tensor].register_forward_hook(output_of(tensor)).remove)
        yield trace


def _chosen(count: int, wanted: float, generator: torch.Generator) -> Tensor:
    """Indices of a random choice without repetition: about `wanted` of `count`, at least one."""
    return torch.randperm(count, generator=generator)[: max(1, round(wanted))]


def _layer_rows(
    name: str, layer: Layer, trace: _Trace, gradients: dict[str, Tensor], share: float, generator: torch.Generator
) -> LayerSample:
    inputs, gradient = trace.values[f"{name}.input"], gradients[f"{name}.output"]
    if isinstance(layer, QuantConv2d):
        inputs = F.unfold(inputs, layer.kernel_size, stride=layer.stride).mT  # (B, patches, channels * p * p)
        gradient = gradient.flatten(2).mT
    inputs, gradient = inputs.flatten(0, -2), gradient.flatten(0, -2)
    rows = _chosen(len(inputs), ROWS * share, generator).to(inputs.device)
    return LayerSample(inputs[rows], gradient[rows].square())


def _attention_entries(
    name: str, trace: _Trace, gradients: dict[str, Tensor], share: float, generator: torch.Generator
) -> AttentionSample:
    attention = trace.values[f"{name}.attention"]
    entries, heads, tokens, _ = attention.shape
    chosen = _chosen(entries, ROWS * share / tokens, generator).to(attention.device)
    q, k, v, attention = (trace.values[f"{name}.{part}"][chosen] for part in ("q", "k", "v", "attention"))
    pull = gradients[f"{name}.attention"][chosen]
    scores = attention * (pull - (pull * attention).sum(-1, keepdim=True))
    mixed = gradients[f"{name}.proj.input"][chosen].unflatten(-1, (heads, -1)).transpose(1, 2)
    return AttentionSample(q, k, v, attention, scores.square(), mixed.square())
