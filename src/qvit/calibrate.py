"""calibrate(): give every quantizer its scales from weights and from training images.

Weights are fitted directly. Activations are observed by forward hooks while the float network runs (quantizers are
stepped over, so every tensor is seen as the float model makes it), one histogram per group; then every slot of the
bank, 2 to 8 bits, gets its least-squares scale. Post-training quantization may stop here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .fake_quantize import grouped
from .least_squares import Points, least_squares, least_squares_with_offset, points
from .observers import Histogram
from .quantizer import Quantizer, require_quantized

CHUNK = 64  # groups fitted at a time: bounds the memory of the search


@contextmanager
def float_forward(model: nn.Module) -> Iterator[None]:
    """Inside, every quantizer passes its input through: the module computes what the float model computes.

    A forward hook returns the input in place of the output; an uncalibrated quantizer would raise before its hook runs,
    so calibrated ones are assumed only for the length of the block.
    """
    quantizers = require_quantized(model).values()
    before = [quantizer.is_calibrated for quantizer in quantizers]
    handles = [quantizer.register_forward_hook(lambda _, args, output: args[0]) for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.is_calibrated = True
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for quantizer, state in zip(quantizers, before, strict=True):
            quantizer.is_calibrated = state


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]], batches: int = 8) -> None:
    """Fit the scales of all quantizers.

    model    from qvit.quantize
    images   batches (B, 3, height, width) of normalised training images, or (images, labels) pairs
    batches  how many of them to use

    Warns about a group that is zero everywhere (it gets a finite scale). Raises ValueError when `images` is empty.
    """
    quantizers = require_quantized(model)
    owners = weight_owners(model)
    for name, quantizer in quantizers.items():
        if not quantizer.batched:
            fit_weight(name, quantizer, owners[name])
    histograms = {
        name: Histogram(quantizer.scale_groups, quantizer.axis)
        for name, quantizer in quantizers.items()
        if quantizer.batched
    }
    if not histograms:
        return
    seen = _observe(model, images, batches, histograms)
    if not seen:
        raise ValueError("calibration got no images: the loader is empty")
    for name, histogram in histograms.items():
        _fit(name, quantizers[name], histogram.points())


def _observe(model: nn.Module, images: Iterable, batches: int, histograms: dict[str, Histogram]) -> int:
    quantizers = require_quantized(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    handles = [
        quantizers[name].register_forward_pre_hook(lambda _, args, h=histogram: h.update(args[0]))
        for name, histogram in histograms.items()
    ]
    seen = 0
    try:
        with float_forward(model):
            for batch in images:
                if seen == batches:
                    break
                model((batch[0] if isinstance(batch, (tuple, list)) else batch).to(device))
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return seen


def weight_owners(model: nn.Module) -> dict[str, Tensor]:
    """Weight tensor of each weight quantizer, by tensor name."""
    quantizers = require_quantized(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in quantizers}


@torch.no_grad()
def fit_weight(name: str, quantizer: Quantizer, weight: Tensor) -> None:
    """Least-squares scales of a weight for every slot."""
    values = grouped(weight.detach().float().cpu(), quantizer.scale_groups, quantizer.axis)
    _fit(name, quantizer, points(values.transpose(0, 1).reshape(quantizer.scale_groups, -1)))


def _fit(name: str, quantizer: Quantizer, data: Points) -> None:
    empty = (data.smallest == 0) & (data.largest == 0)
    if empty.any():
        groups = torch.nonzero(empty).flatten().tolist()
        warnings.warn(f"{name} is zero everywhere in group {groups}: its scale is arbitrary", stacklevel=3)
    rows, slots = quantizer.log_scale.shape
    if rows < quantizer.scale_groups:  # a bank that all groups share fits all of them together
        data = data.pooled()
    scale, offset = torch.empty(rows, slots), torch.empty(rows, slots)
    widths = quantizer.per_scale(quantizer.bit_width).cpu()[:rows]
    for slot, bits in enumerate(quantizer.candidates if slots > 1 else widths.unique().tolist()):
        chosen, column = (torch.arange(rows), slot) if slots > 1 else (torch.nonzero(widths == bits).flatten(), 0)
        for part in chosen.split(CHUNK):
            if quantizer.offset is None:
                scale[part, column] = least_squares(data.rows(part), bits, quantizer.signed).float()
            else:
                pair = least_squares_with_offset(data.rows(part), bits)
                scale[part, column], offset[part, column] = (value.float() for value in pair)
    quantizer.set_bank(scale, offset if quantizer.offset is not None else None)
