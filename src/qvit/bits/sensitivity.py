"""Sensitivity: how much loss each group would gain at each bit-width, estimated while training.

The published gradient of a bit-width counts clipped elements only (`fake_quantize`): weak, noisy, and blind to rounding,
which is most of the error. This is the informative one. To second order, replacing a tensor v by its quantized self
Q_n(v) raises the loss by the Fisher-weighted error

    E[g, n] = 1/2 sum_{i in group g} F_i (Q_n(v_i) - v_i)^2        F_i = E[(d loss of one image / d v_i)^2]

for every candidate n, not just the one in force. A probe is an ordinary training step with hooks: the forward hook of a
quantizer sees v, the gradient hook of its output sees d(mean loss)/dv = G over a batch of B images, and

    activations   F_i = B^2 G_i^2 image by image      (gradients of different images do not mix)
    weights       F_i = B G_i^2                       (at a noise-dominated gradient, E[G^2] = F / B)

Rounding errors of different elements are taken as independent, hence the diagonal. For weights that is too dark a view: they
train, and move to where their rounding does least harm, which activations cannot. `weight_factor` takes a share off their
errors. It is a setting of the allocation (`allocate.Lagrangian`); how much training makes up for is not derived here.

A running mean over probes gives a
table per tensor, (bit groups, candidates), from which `allocate` and `lock` decide: benefit of a bit = E[n] - E[n + 1].

Cold slots. A slot of the bank that is not in force gets no gradient, while weights and activations drift away from what
it was calibrated on; the first visit late in training would start from a stale scale. Since a probe quantizes with every
slot anyway, each unused slot makes one step of the least-squares iteration (`observers`) on the data of the probe, and is
warm whenever a bit-width changes. `Sensitivity.warm_slots` writes them, after the optimizer step. A coarse grid follows
its data within a probe or two; a fine one more slowly, pulled by the clipped elements alone, and it also needs it less.

What a probe keeps is sums over elements, per scale group and candidate width, from which both follow:

    error      sum 1/2 F_i (Q_n(v_i) - v_i)^2
    moments    sums of q v and q^2, with an offset also of q, v and 1        q = the codes of v, raised with their levels (`midrise`)

Sums (and the gradients of weights) are averaged over the processes when the probe ends, so that all processes decide alike,
and as one process would on the whole batch.

Activation checkpointing runs a forward pass a second time, hooks included. A probe hooks an identity into the graph that
saves v as autograd saves anything: dropped and recomputed with the rest, and looked at once, by its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data.order import leading
from ..quantizers.fake_quantize import code_range, grouped
from ..quantizers.quantizer import Quantizer, require_quantized
from ..system.processes import mean_over_processes, process_state


class Sensitivity:
    """Running tables of Fisher-weighted error for every quantizer whose bits are learned.

    decay          weight of the past in the running mean, per probe
    images         how many images of a batch, of all processes together, a probe looks at for activations, at most
    share          and at most this share of the batch
    weight_factor  by which the errors of weights are multiplied
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9,
        images: int = 16,
        share: float = 1.0,
        weight_factor: float = 1.0,
    ) -> None:
        self.decay, self.images, self.share = decay, images, share
        self.weight_factor = weight_factor
        self.quantizers = {name: q for name, q in require_quantized(model).items() if q.is_learned}
        self.tables = {
            name: torch.zeros(q.bit_groups, len(q.candidates), dtype=torch.float64)
            for name, q in self.quantizers.items()
        }
        self.probes = 0
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def probe(self, batch_size: int, parts: int = 1) -> Iterator[None]:
        """Hooks for one forward and backward pass over `batch_size` images with the mean loss, divided by `parts`.

        batch_size  images of this process
        parts       batches per optimizer step: gradient accumulation divides each loss by their number
        """
        state = process_state()
        processes, batch = state.num_processes, batch_size * state.num_processes
        probed = max(1, round(batch * min(self.share, self.images / batch)))  # the first images of the batch
        mine = leading(probed, batch, processes, state.process_index)
        sums: dict[str, Tensor] = {}
        weights: dict[str, tuple[Tensor, Tensor]] = {}

        def look(name: str, values: Tensor, gradient: Tensor) -> None:
            quantizer, gradient = self.quantizers[name], gradient.float() * parts  # bfloat16 under autocast
            if not quantizer.batched:
                weights[name] = values, gradient  # of this process's images alone: wait for the others
                return
            rows = mine * (len(values) // batch_size)  # an image may be many windows
            fisher = batch_size * batch / probed
            sums[name] = _sums(quantizer, values[:rows], gradient[:rows], fisher)

        handles = [q.register_forward_hook(_hook(name, look)) for name, q in self.quantizers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, (values, gradient) in weights.items():
            fisher = float(batch_size * processes)
            sums[name] = _sums(self.quantizers[name], values, mean_over_processes(gradient), fisher)
        self._sums = {name: mean_over_processes(sums[name]) for name in self.quantizers if name in sums}

    def update(self) -> None:
        """Fold the last probe into the tables."""
        self.probes += 1
        keep = min(self.decay, 1 - 1 / self.probes)  # a plain mean until the running mean has enough to run on
        for name, sums in self._sums.items():
            table = self.tables[name]
            seen = sums[:, :, 0].reshape(len(table), -1, sums.shape[1]).sum(1)
            if not self.quantizers[name].batched:
                seen = seen * self.weight_factor
            table.mul_(keep).add_(seen, alpha=1 - keep)

    @torch.no_grad()
    def warm_slots(self, float_weights: bool = False) -> None:
        """Move the slots that are not in force one least-squares step, from the last probe.

        float_weights  weights were not quantized in it, so none of their slots was in force (`activations_first`)
        """
        for name, sums in self._sums.items():
            quantizer = self.quantizers[name]
            if quantizer.log_scale.shape != sums.shape[:2]:
                continue  # a single or shared bank has no slot of its own to keep warm
            slots = quantizer.per_scale(quantizer.slot_of(quantizer.bit_width))
            unused = torch.arange(sums.shape[1], device=slots.device) != slots[:, None]
            if float_weights and not quantizer.batched:
                unused.fill_(True)
            scale, offset = _least_squares_step(sums)
            moves = unused & (scale > 0).to(slots.device)
            quantizer.log_scale.copy_(torch.where(moves, scale.log().to(quantizer.log_scale), quantizer.log_scale))
            if offset is not None and quantizer.offset is not None:
                quantizer.offset.copy_(torch.where(moves, offset.to(quantizer.offset), quantizer.offset))

    def state_dict(self) -> dict[str, Tensor]:
        """Tables and number of probes, for a checkpoint."""
        return {**self.tables, "probes": torch.tensor(self.probes)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict."""
        self.probes = int(state["probes"])
        for name, table in self.tables.items():
            table.copy_(state[name])


class _Look(torch.autograd.Function):
    """The identity of `output`; its backward pass shows `look` the values and the gradient."""

    @staticmethod
    def forward(ctx, output, values, look):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values)
        ctx.look = look
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        ctx.look(*ctx.saved_tensors, gradient)
        return gradient, None, None


def _hook(name: str, look: Callable[[str, Tensor, Tensor], None]) -> Callable[..., Tensor | None]:
    """A forward hook that has `look` called with the input of a quantizer and the gradient of its output."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not output.requires_grad:
            return None
        return _Look.apply(output, args[0].detach(), lambda values, gradient: look(name, values, gradient))

    return hook


@torch.no_grad()
def _sums(quantizer: Quantizer, values: Tensor, gradient: Tensor, fisher: float) -> Tensor:
    """Error and moments at every candidate width: (scale groups, candidates, 3, or 6 with an offset) float64."""
    if not len(values):
        return torch.zeros(
            quantizer.scale_groups, len(quantizer.candidates), 3 if quantizer.offset is None else 6, dtype=torch.float64
        )
    view = grouped(values.float(), quantizer.scale_groups, quantizer.axis)
    weight = grouped(gradient.float(), quantizer.scale_groups, quantizer.axis).square().mul_(fisher / 2)
    sums = torch.stack([_candidate(quantizer, view, weight, bits) for bits in quantizer.candidates], 1).cpu().double()
    if quantizer.offset is None:
        return sums
    total = view.sum((0, 2)).cpu().double()
    both = torch.stack([total, torch.full_like(total, view.shape[0] * view.shape[2])], 1)
    return torch.cat([sums, both[:, None].expand(-1, sums.shape[1], -1)], 2)


def _candidate(quantizer: Quantizer, view: Tensor, weight: Tensor, bits: int) -> Tensor:
    """Sums of the weighted error, q v, q^2 and, with an offset, q at a candidate width: (scale groups, 3 or 4)."""
    widths = torch.full_like(quantizer.bit_width, bits)
    scale, offset = quantizer.scale_at(widths), quantizer.offset_at(widths)
    low, high = (float(bound) for bound in code_range(torch.tensor(float(bits)), quantizer.signed))
    s = scale.view(1, -1, 1)
    shifted = view if offset is None else view - offset.view(1, -1, 1)
    codes = (shifted / s).clamp_(low, high).round_()
    error = (codes * s).sub_(shifted).square_().mul_(weight)
    if quantizer.offset is None:
        levels = codes + quantizer.rise(bits)
        found = [error, levels * view, levels.square()]
    else:
        found = [error, codes * view, codes.square(), codes]
    return torch.stack([each.sum((0, 2)) for each in found], 1)


def _least_squares_step(sums: Tensor) -> tuple[Tensor, Tensor | None]:
    """(groups, candidates) scale of the line through (q, v), and its offset; the scale is 0 where there is none."""
    product, norm, offset = sums[:, :, 1], sums[:, :, 2], None
    variance, covariance = norm, product
    if sums.shape[2] > 3:
        codes, values, count = sums[:, :, 3:].unbind(2)
        variance, covariance = norm - codes.square() / count, product - codes * values / count
    usable = variance > 1e-5 * norm  # else all codes are one, up to the rounding of float32 sums
    scale = torch.where(usable, covariance / variance, 0.0)
    if sums.shape[2] > 3:
        offset = (values - scale * codes) / count
    return scale, offset
