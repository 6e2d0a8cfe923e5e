"""Instrument: one quantized, calibrated and gated copy of a model, and the measurement of all its variants on a batch.

    float        all gates closed                                       the reference
    alone S      the gates of subject S open
    everything   all gates open
    all but S    all gates open except those of S

A measurement is what can be added up over batches: the predicted class of every image, and the energies |logits -
reference|^2 and |reference|^2, from which accuracy, agreement and the signal-to-noise ratio follow.

A site (one group of one tensor) is measured alone as well, on every n-th image of the batch: folders are sorted by class, so
the first images would be of one class. Its own noise |Q(x) - x|^2 is read in the float pass, where x is the float tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.calibrate import calibrate
from ..network.convert import quantize
from ..quantizers.fake_quantize import grouped
from ..quantizers.quantizer import named_quantizers
from ..spec import Bits, FixedBits, LearnedBits, PerHead, Spec
from .components import EDGES, Selection, Site, Subject, all_sites, component_of, select, subjects
from .config import AnalysisConfig
from .data import AnalysisData, First
from .gates import Gate, install_gates, open_gates
from .prefix import finish, first_step, inputs, steps
from .results import ALL_BUT, ALONE, EVERYTHING

EDGE_BITS = 8  # of patch embedding and classifier in the company of all others, as Spec has it
Tick = Callable[[int], None]


def widths(low: int, high: int) -> Bits:
    """Bits that may be anything from low to high, starting at high."""
    return FixedBits(low) if low == high else LearnedBits(low, high, start=float(high))


class Instrument:
    """Measures the variants of a float model, batch by batch.

    model               the quantized copy, gates inside
    calibration_images  how many the scales were fitted to
    subjects            what is switched
    variants            how many forward passes (from some step on) one batch takes
    """

    def __init__(self, model: nn.Module, data: AnalysisData, config: AnalysisConfig) -> None:
        low, high = min(config.bits), max(config.bits)
        bits = widths(low, high)
        self.model = quantize(model, Spec(bits, bits, PerHead(), edge=widths(low, EDGE_BITS)), quiet=True)
        calibration = First(data.calibration, config.calibration_images)
        calibrate(self.model, calibration, config.calibration_images)  # so many batches at most, of one image each
        self.calibration_images = calibration.seen
        self.model.eval()
        for quantizer in named_quantizers(self.model).values():
            quantizer.lock()
        self.sites: tuple[Site, ...] = all_sites(self.model)
        self.subjects: list[Subject] = subjects(self.model)
        groups = {name: quantizer.bit_groups for name, quantizer in named_quantizers(self.model).items()}
        self.edges = {site.tensor for site in self.sites if component_of(site, groups[site.tensor]) in EDGES}
        self.gates: dict[str, Gate] = install_gates(self.model)
        self.chain = steps(self.model)
        self.stride = max(1, data.images // config.site_images)
        self.variants = 2 + 2 * len(self.subjects) + len(self.sites)

    def set_bits(self, bits: int, edge_bits: int) -> None:
        """Give every quantizer this width, patch embedding and classifier the other."""
        for name, gate in self.gates.items():
            width = edge_bits if name in self.edges else bits
            gate.quantizer.set_bits(torch.full_like(gate.quantizer.bits, width))

    def measure(self, images: Tensor, labels: Tensor, bits: int, tick: Tick) -> dict[str, Any]:
        """The record of a batch at one bit-width; `tick` is called with the number of images after each variant."""
        parameter = next(self.model.parameters())
        images = images.to(parameter.device, parameter.dtype)
        self.set_bits(bits, bits)
        open_gates(self.gates, {})
        cached = inputs(self.chain, images)
        reference = cached[-1]
        tick(len(images))
        variants = {}
        for subject in self.subjects:
            variants[f"{ALONE} {subject.key}"] = self._variant(subject.selection, subject, cached, reference)
            tick(len(images))
        sites = self._measure_sites(images[:: self.stride].contiguous(), tick)
        self.set_bits(bits, EDGE_BITS)
        open_gates(self.gates, select(self.sites))
        cached = inputs(self.chain, images)
        variants[EVERYTHING] = outcome(cached[-1], reference)
        tick(len(images))
        for subject in self.subjects:
            selection = select(set(self.sites) - set(subject.sites))
            variants[f"{ALL_BUT} {subject.key}"] = self._variant(selection, subject, cached, reference)
            tick(len(images))
        return {
            "labels": labels.tolist(),
            "float": reference.argmax(1).tolist(),
            "signal": energy(reference),
            "variants": variants,
            "sites": sites,
        }

    def _variant(
        self, selection: Selection, subject: Subject, cached: list[Tensor], reference: Tensor
    ) -> dict[str, Any]:
        """The variant differs from what is cached in the gates of `subject` alone."""
        open_gates(self.gates, selection)
        return outcome(finish(self.chain, cached, first_step(self.chain, subject.selection)), reference)

    def _measure_sites(self, images: Tensor, tick: Tick) -> dict[str, Any]:
        """Energies of every site: of its tensor, of its own noise, and of the noise that it alone makes in the logits."""
        tensors: dict[str, dict[str, Any]] = {}
        open_gates(self.gates, {})
        with ExitStack() as stack:
            for name, gate in self.gates.items():
                stack.callback(gate.register_forward_hook(_noise_into(tensors, name)).remove)
            cached = inputs(self.chain, images)
        reference = cached[-1]
        for site in self.sites:
            open_gates(self.gates, select([site]))
            logits = finish(self.chain, cached, first_step(self.chain, [site.tensor]))
            tensors[site.tensor]["logits"].append(outcome(logits, reference)["noise"])
            tick(len(images))
        return {"signal": energy(reference), "tensors": tensors}


def outcome(logits: Tensor, reference: Tensor) -> dict[str, Any]:
    """Classes and noise energy of logits (B, classes). Raises FloatingPointError when they are not finite."""
    if not torch.isfinite(logits).all():
        raise FloatingPointError("a quantized variant gave NaN or infinite logits; check the weights of the model")
    return {"classes": logits.argmax(1).tolist(), "noise": energy(logits - reference)}


def energy(t: Tensor) -> float:
    """Sum of squares."""
    return float(t.double().square().sum())


def _noise_into(tensors: dict[str, dict[str, Any]], name: str) -> Callable[[Gate, tuple[Tensor, ...], Tensor], None]:
    """A hook that notes the energy of a tensor and of its quantization noise, per bit group."""

    def hook(gate: Gate, args: tuple[Tensor, ...], output: Tensor) -> None:
        quantizer = gate.quantizer
        energies = (
            grouped(t, quantizer.bit_groups, quantizer.axis).double().square().sum((0, 2)).tolist()
            for t in (args[0], quantizer(args[0]) - args[0])
        )
        tensors[name] = {**dict(zip(("signal", "noise"), energies, strict=True)), "logits": []}

    return hook
