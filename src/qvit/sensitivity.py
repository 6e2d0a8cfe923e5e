"""Sensitivity: how much loss each group would gain at each bit-width, estimated while training.

The published gradient of a bit-width counts clipped elements only (`fake_quantize`): weak, noisy, and blind to rounding,
which is most of the error. This is the informative one. To second order, replacing a tensor v by its quantized self
Q_n(v) raises the loss by the Fisher-weighted error

    E[g, n] = 1/2 sum_{i in group g} F_i (Q_n(v_i) - v_i)^2        F_i = E[(d loss of one image / d v_i)^2]

for every candidate n, not just the one in force. A probe is an ordinary training step with hooks: the forward hook of a
quantizer sees v, the gradient hook of its output sees d(mean loss)/dv = G over a batch of B images, and

    activations   F_i = B^2 G_i^2 image by image      (gradients of different images do not mix)
    weights       F_i = B G_i^2                       (at a noise-dominated gradient, E[G^2] = F / B)

Rounding errors of different elements are taken as independent, hence the diagonal. A running mean over probes gives a
table per tensor, (bit groups, candidates), from which `allocate` and `lock` decide: benefit of a bit = E[n] - E[n + 1].

Cold slots. A slot of the bank that is not in force gets no gradient, while weights and activations drift away from what
it was calibrated on; the first visit late in training would start from a stale scale. Since a probe quantizes with every
slot anyway, each unused slot makes one step of the least-squares iteration (`observers`) on the data of the probe, and is
warm whenever a bit-width changes. `Sensitivity.warm_slots` writes them, after the optimizer step. A coarse grid follows
its data within a probe or two; a fine one more slowly, pulled by the clipped elements alone, and it also needs it less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .fake_quantize import code_range, grouped
from .quantizer import Quantizer, require_quantized


class Sensitivity:
    """Running tables of Fisher-weighted error for every quantizer whose bits are learned.

    decay   weight of the past in the running mean, per probe
    images  how many images of a batch a probe looks at for activations
    """

    def __init__(self, model: nn.Module, decay: float = 0.9, images: int = 16) -> None:
        self.decay, self.images = decay, images
        self.quantizers = {name: q for name, q in require_quantized(model).items() if q.is_learned}
        self.tables = {
            name: torch.zeros(q.bit_groups, len(q.candidates), dtype=torch.float64)
            for name, q in self.quantizers.items()
        }
        self.probes = 0
        self._seen: dict[str, Tensor] = {}
        self._warm: dict[str, tuple[Tensor, Tensor | None]] = {}

    @contextmanager
    def probe(self, batch_size: int, parts: int = 1) -> Iterator[None]:
        """Hooks for one forward and backward pass over `batch_size` images with the mean loss, divided by `parts`.

        parts  batches per optimizer step: gradient accumulation divides each loss by their number
        """
        self._seen, self._warm = {}, {}
        handles = [
            quantizer.register_forward_hook(self._hook(name, quantizer, batch_size, parts))
            for name, quantizer in self.quantizers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, quantizer: Quantizer, batch_size: int, parts: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            values = args[0].detach()
            output.register_hook(lambda gradient: self._look(name, quantizer, values, gradient * parts, batch_size))

        return hook

    @torch.no_grad()
    def _look(self, name: str, quantizer: Quantizer, values: Tensor, gradient: Tensor, batch_size: int) -> None:
        fisher = float(batch_size)
        if quantizer.batched:
            rows = max(1, round(len(values) * min(1.0, self.images / batch_size)))
            share = rows / len(values)
            values, gradient = values[:rows], gradient[:rows]
            fisher = batch_size / share
        view = grouped(values.float(), quantizer.scale_groups, quantizer.axis)
        weight = grouped(gradient.float(), quantizer.scale_groups, quantizer.axis).square().mul_(fisher / 2)
        errors, scales, offsets = [], [], []
        for bits in quantizer.candidates:
            error, scale, offset = _candidate(quantizer, view, weight, bits)
            errors.append(error)
            scales.append(scale)
            offsets.append(offset)
        per_bit = torch.stack(errors, 1).view(quantizer.bit_groups, -1, len(errors)).sum(1)
        self._seen[name] = per_bit.double().cpu()
        self._warm[name] = (
            torch.stack(scales, 1),
            None if offsets[0] is None else torch.stack([o for o in offsets if o is not None], 1),
        )

    def update(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fold the last probe into the tables; `reduce` averages a tensor over processes."""
        self.probes += 1
        keep = min(self.decay, 1 - 1 / self.probes)  # a plain mean until the running mean has enough to run on
        for name, table in self.tables.items():
            if name in self._seen:
                seen = self._seen[name] if reduce is None else reduce(self._seen[name])
                table.mul_(keep).add_(seen, alpha=1 - keep)

    @torch.no_grad()
    def warm_slots(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the slots that are not in force one least-squares step, from the last probe."""
        for name, (scales, offsets) in self._warm.items():
            quantizer = self.quantizers[name]
            if quantizer.log_scale.shape != scales.shape:
                continue  # a single or shared bank has no slot of its own to keep warm
            slots = quantizer.per_scale(quantizer.slot_of(quantizer.bit_width))
            unused = torch.arange(scales.shape[1], device=slots.device) != slots[:, None]
            target = (scales if reduce is None else reduce(scales)).log()
            quantizer.log_scale.copy_(torch.where(unused, target, quantizer.log_scale))
            if offsets is not None and quantizer.offset is not None:
                shift = offsets if reduce is None else reduce(offsets)
                quantizer.offset.copy_(torch.where(unused, shift, quantizer.offset))

    def state_dict(self) -> dict[str, Tensor]:
        """Tables and number of probes, for a checkpoint."""
        return {**self.tables, "probes": torch.tensor(self.probes)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict."""
        self.probes = int(state["probes"])
        for name, table in self.tables.items():
            table.copy_(state[name])


def _candidate(quantizer: Quantizer, view: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted error (scale groups,) at a candidate width, and its next least-squares scale and offset."""
    widths = torch.full_like(quantizer.bit_width, bits)
    scale, offset = quantizer.scale_at(widths), quantizer.offset_at(widths)
    low, high = (float(bound) for bound in code_range(torch.tensor(float(bits)), quantizer.signed))
    s = scale.view(1, -1, 1)
    o = torch.zeros_like(s) if offset is None else offset.view(1, -1, 1)
    codes = ((view - o) / s).clamp_(low, high).round_()
    error = (codes * s + o).sub_(view).square_().mul_(weight).sum((0, 2))
    if offset is None:
        product, norm = (codes * view).sum((0, 2)), codes.square().sum((0, 2))
        return error, torch.where((product > 0) & (norm > 0), product / norm, scale), None
    mean_v, mean_q = view.mean((0, 2)), codes.mean((0, 2))
    centred = codes - mean_q.view(1, -1, 1)
    variance, covariance = centred.square().sum((0, 2)), (centred * view).sum((0, 2))
    good = (variance > 0) & (covariance > 0)
    new = torch.where(good, covariance / variance, scale)
    return error, new, torch.where(good, mean_v - new * mean_q, offset)
