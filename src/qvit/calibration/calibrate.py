"""calibrate(): give every quantizer its scales from weights and from training images.

Weights are fitted directly. Activations are observed by forward hooks while the float network runs (quantizers are
stepped over, so every tensor is seen as the float model makes it); then every slot of the bank, 2 to 8 bits, gets its
scale from what was seen, by the rule of an observer: least squares, or one of the ranges of the baselines of
post-training quantization (`range_observers`). Post-training quantization may stop here.

A group of zeros (a pruned channel) has no best scale. Any will do where the grid has a zero; where it has none (`midrise`) every
weight becomes half a step, so the step is as small as a program may have it: the channel stays as good as dead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qvit_runtime.check_data import MIN_SCALE

from ..quantizers.fake_quantize import grouped
from ..quantizers.quantizer import Quantizer, calibrate_of, require_quantized
from .least_squares import Points, points
from .range_observers import LeastSquares, Observer, check_observer, fit_grid, watcher

Images = Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]
CHUNK = 64  # groups fitted at a time: bounds the memory of the search
NOTHING = 4 * MIN_SCALE  # of zeros on a grid without zero; a program stores half of it, and float32 rounds


class Watcher(Protocol):
    """Something that takes in a tensor, batch by batch."""

    def update(self, x: Tensor) -> None:
        """Take in one batch."""


@runtime_checkable
class ComputesInIntegers(Protocol):
    """A module without a float network inside once its quantizers are stepped over, and so with one beside it."""

    def float_forward(self, *args: Tensor) -> Tensor:
        """What the float model computes in the place of `forward`; calls the quantizers that `forward` calls."""


@contextmanager
def float_forward(model: nn.Module) -> Iterator[None]:
    """Inside, every quantizer passes its input through: the module computes what the float model computes.

    A forward hook returns the input in place of the output; an uncalibrated quantizer would raise before its hook runs,
    so calibrated ones are assumed only for the length of the block. Modules that compute in integers run their
    `float_forward`.
    """
    integers = [module for module in model.modules() if isinstance(module, ComputesInIntegers)]
    quantizers = require_quantized(model).values()
    before = [quantizer.is_calibrated for quantizer in quantizers]
    handles = [quantizer.register_forward_hook(lambda _, args, output: args[0]) for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.is_calibrated = True
    for module in integers:
        module.forward = module.float_forward
    try:
        yield
    finally:
        for module in integers:
            del module.forward
        for handle in handles:
            handle.remove()
        for quantizer, state in zip(quantizers, before, strict=True):
            quantizer.is_calibrated = state


@torch.no_grad()
def calibrate(model: nn.Module, images: Images, batches: int = 8, observer: Observer | None = None) -> None:
    """Fit the scales of all quantizers.

    model     from qvit.quantize
    images    batches (B, 3, height, width) of normalised training images, or (images, labels) pairs
    batches   how many of them to use
    observer  how scales follow from data; the default is LeastSquares()

    Warns about a group that is zero everywhere (it gets a finite scale). Raises ValueError when `images` is empty, for what is
    no observer, for what is no batch of images, and for a model that another method quantized; FloatingPointError for
    parameters or activations that are not finite.
    """
    if calibrate_of(model) != "qvit.calibrate":
        raise ValueError(
            f"this {type(model).__name__} has grids or statistics that qvit.calibrate does not fit; call "
            f"{calibrate_of(model)}(model, loader)"
        )
    check_finite(model)
    fit_all(model, images, batches, observer)


@torch.no_grad()
def fit_all(model: nn.Module, images: Images, batches: int, observer: Observer | None = None) -> None:
    """What `calibrate` does behind its checks, for methods that fit something else besides."""
    observer = LeastSquares() if observer is None else observer
    check_observer("observer", observer)
    quantizers = require_quantized(model)
    fit_weights(model, observer)
    watchers = {
        name: watcher(observer, quantizer.scale_groups, quantizer.axis)
        for name, quantizer in quantizers.items()
        if quantizer.batched
    }
    if not watchers:
        return
    observe(model, calibration_images(images, batches), watchers)
    for name, seen in watchers.items():
        fit_quantizer(name, quantizers[name], seen.points(), observer)


def calibration_images(images: Images, batches: int) -> Iterator[Tensor]:
    """The images of the first `batches` batches, (B, channels, height, width) each; labels beside them are not looked at.

    Raises ValueError for fewer than one batch, for what is no batch of images and, at its end, when there were none.
    """
    if batches < 1:
        raise ValueError(f"calibration was asked for {batches} batches; it takes 1 or more")
    batch = None
    for batch in islice(images, batches):
        values = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(values, Tensor) or values.ndim != 4:
            raise ValueError(
                f"calibration got {_what(batch)} as a batch; it takes tensors (B, channels, height, width), or tuples that "
                "begin with one: put a single tensor into a list, and take the images out of a dict"
            )
        yield values
    if batch is None:
        raise ValueError("calibration got no images: the loader is empty")


def _what(batch: object) -> str:
    """A batch in the words of an error."""
    if isinstance(batch, Tensor):
        return f"a Tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, (tuple, list)) and batch:
        return f"a {type(batch).__name__} that begins with {_what(batch[0])}"
    return f"a {type(batch).__name__}"


def observe(model: nn.Module, images: Iterable[Tensor], watchers: Mapping[str, Watcher]) -> None:
    """Run the float network and show each watcher what the quantizer of its name gets, batch by batch."""
    quantizers = require_quantized(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    handles = [
        quantizers[name].register_forward_pre_hook(lambda _, args, w=watcher: w.update(args[0]))
        for name, watcher in watchers.items()
    ]
    try:
        with float_forward(model):
            for values in images:
                model(values.to(device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)


def weight_owners(model: nn.Module) -> dict[str, Tensor]:
    """Weight tensor of each weight quantizer, by tensor name."""
    quantizers = require_quantized(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in quantizers}


def check_finite(model: nn.Module) -> None:
    """FloatingPointError for a parameter with NaN, which has no code; no activation shows it behind the last layer."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"calibration met NaN or infinity in {name}: check the float weights that the model was loaded with"
            )


def fit_weights(model: nn.Module, observer: Observer | None = None) -> None:
    """Scales of all weights for every slot; the default observer is LeastSquares()."""
    quantizers = require_quantized(model)
    for name, weight in weight_owners(model).items():
        fit_weight(name, quantizers[name], weight, observer)


@torch.no_grad()
def fit_weight(name: str, quantizer: Quantizer, weight: Tensor, observer: Observer | None = None) -> None:
    """Scales of a weight for every slot; the default observer is LeastSquares()."""
    values = grouped(weight.detach().float().cpu(), quantizer.scale_groups, quantizer.axis)
    data = points(values.transpose(0, 1).reshape(quantizer.scale_groups, -1))
    fit_quantizer(name, quantizer, data, observer or LeastSquares())


@torch.no_grad()
def fit_quantizer(name: str, quantizer: Quantizer, data: Points, observer: Observer) -> None:
    """Fill every slot of a bank from the data of its groups; `name` is for the warning about groups of zeros."""
    rows, slots = quantizer.log_scale.shape
    empty = _of_zeros(data)
    if empty.any():
        groups = torch.nonzero(empty).flatten().tolist()
        warnings.warn(f"{name} is zero everywhere in group {groups}: {_fate(quantizer)}", stacklevel=3)
    if rows < quantizer.scale_groups:  # a bank that all groups share fits all of them together
        data = data.pooled()
        empty = _of_zeros(data)
    with_offset = quantizer.offset is not None
    scale, offset = torch.empty(rows, slots), torch.empty(rows, slots)
    widths = quantizer.per_scale(quantizer.bit_width).cpu()[:rows]
    for slot, bits in enumerate(quantizer.candidates if slots > 1 else widths.unique().tolist()):
        chosen, column = (torch.arange(rows), slot) if slots > 1 else (torch.nonzero(widths == bits).flatten(), 0)
        rise = quantizer.rise(bits)
        for part in chosen.split(CHUNK):
            pair = fit_grid(observer, data.rows(part), bits, quantizer.signed, with_offset, rise)
            scale[part, column], offset[part, column] = (value.float() for value in pair)
            if rise:
                scale[part[empty[part]], column] = NOTHING
    quantizer.set_bank(scale, offset if with_offset else None)


def _of_zeros(data: Points) -> Tensor:
    """Which groups are zero everywhere, bool (groups,)."""
    return (data.smallest == 0) & (data.largest == 0)


def _fate(quantizer: Quantizer) -> str:
    """What becomes of a group of zeros, for the warning."""
    raised = [bits for bits in quantizer.candidates if quantizer.rise(bits)]
    if not raised:
        return "its scale is arbitrary"
    if quantizer.log_scale.shape[0] < quantizer.scale_groups:
        return f"at {raised[0]} bits, whose grid has no zero, it becomes half a step of the scale that all groups share"
    return (
        f"its scale is arbitrary, and at {raised[0]} bits, whose grid has no zero, the smallest there is ({NOTHING:g})"
    )
