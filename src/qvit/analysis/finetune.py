"""Finetuning: what is left of a component's sensitivity after a little training.

Post-training errors overstate what a component costs a network that may adapt to it. Here each variant of each component
(alone, all but it; and everything) is a copy of the calibrated model that is trained for a few steps before it is measured.
Its reference is the float model after the same steps on the same images: training moves the float model too, and that must
not look like robustness.

The cost is that of (2 components + 1) bit-widths + 1 trainings: for 16 components (Swin has 17) and three widths 100 times
`finetune_steps` steps of a training batch, where the rest of an analysis is about 250 forward passes over the images. Layers and heads are
therefore not trained, and no prefix is shared, since the weights differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..training.fit import fit
from ..training.fit_config import FitConfig
from .components import Selection, select
from .config import AnalysisConfig
from .data import AnalysisData
from .gates import gates_of, open_gates
from .instrument import EDGE_BITS, Instrument, energy, outcome
from .results import ALL_BUT, ALONE, EVERYTHING

LEARNING_RATE = 1e-4
"""Peak of the cosine: a trained network is to adapt, not to be trained anew."""


class Finetuning:
    """Trains and measures the variants of an instrument's components, one after the other."""

    def __init__(self, instrument: Instrument, data: AnalysisData, config: AnalysisConfig) -> None:
        assert data.splits is not None
        self.instrument, self.data, self.config, self.splits = instrument, data, config, data.splits
        self.components = [subject for subject in instrument.subjects if subject.kind == "component"]

    def records(self, existing: list[dict[str, Any]], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """A record for the trained float model and for every variant that has none among `existing` yet."""
        done = {(record["bits"], record["finetuned"]) for record in existing if "finetuned" in record}
        missing = [variant for variant in self._variants() if variant[:2] not in done]
        if not missing:
            return
        say("training the float model, the reference of the trained variants")
        reference = self._logits(self._trained({}))
        if (0, "float") not in done:
            yield {"bits": 0, "finetuned": "float", **outcome(reference, reference), "signal": energy(reference)}
        for number, (bits, name, selection, edge_bits) in enumerate(missing, start=1):
            say(f"training {number} of {len(missing)}: {name}, {bits} bits")
            self.instrument.set_bits(bits, edge_bits)
            yield {"bits": bits, "finetuned": name, **outcome(self._logits(self._trained(selection)), reference)}

    def _variants(self) -> Iterator[tuple[int, str, Selection, int]]:
        """(bits, name, what is quantized, bits of the edge tensors)"""
        sites = set(self.instrument.sites)
        for bits in self.config.bits:
            yield bits, EVERYTHING, select(sites), EDGE_BITS
            for subject in self.components:
                yield bits, f"{ALONE} {subject.key}", subject.selection, bits
                yield bits, f"{ALL_BUT} {subject.key}", select(sites - set(subject.sites)), EDGE_BITS

    def _trained(self, selection: Selection) -> nn.Module:
        """A copy of the instrument's model with these groups quantized, after the steps."""
        model = copy.deepcopy(self.instrument.model)
        open_gates(gates_of(model), selection)
        config = FitConfig(
            epochs=self.config.finetune_steps / self.splits.train_batches,
            learning_rate=LEARNING_RATE,
            evaluate_every=0,
            seed=self.config.seed,
        )
        fit(model, self.splits.train, config=config, order=self.splits.order, data=self.data.data, quiet=True)
        return model.eval()

    @torch.no_grad()
    def _logits(self, model: nn.Module) -> Tensor:
        """(images, classes), in the order of the evaluation."""
        parameter = next(model.parameters())
        return torch.cat(
            [model(images.to(parameter.device, parameter.dtype)).cpu() for images, _ in self.data.measured]
        )
