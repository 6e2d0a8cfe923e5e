"""Activations first: a stage at the start of training in which weights are float while activations are quantized.

    step 0 ................. switch ................. lock ....... last step
      weights float,          weights quantized, their scales
      activations quantized   fitted to what they are then

A short run has few steps to find a network that works on its grids. GPLQ (arXiv 2506.11784) spends them on the activations:
weights can be fitted to a grid without training, while an activation becomes easier to quantize only if the weights in front
of it change. So it trains with quantized activations and float weights, and quantizes the weights last. Here that is a share of the
steps, `fit.activations_first`, with the feature loss of the same paper beside it (`feature_distill`). Whether the order also helps
where weights train on afterwards has not been measured here.

How. A forward hook on every weight quantizer returns the weight in place of the quantizer's output, for the length of a step or
an evaluation. Which ones is a function of the step number, so there is no state to save and a resume cannot lose it, and the
module itself has no mode: outside of `fit` it quantizes weights, inside the stage too (a run that `max_steps` stops there leaves
float-trained weights under the scales of their calibration). An evaluation inside the stage is of the network as it is
trained, with float weights, and its line in the log says so.

The switch, after the last step of the stage, fits every slot of every weight bank by least squares, as `calibrate` does; no data is
needed. Scales of weights have no gradient before, so the optimizer meets them here for the first time.

Bits are learned from the first step on. A probe sees the weight and the gradient at the weight itself, which is where the
expansion of `sensitivity` has its centre: the table says what quantizing it would cost. No slot of a weight is in force, so probes
keep all of them warm. The published gradient (`allocate.Published`) has nothing to say about a weight that is not clipped: the
budget alone would move its bits, so it is refused.

Differences from GPLQ, stage 1: theirs is the whole training, one epoch at a constant 5e-6 with one scale per channel of an
activation; ours is a share of one cosine, with scales (and bits) per tensor or head. Stage 2: theirs freezes the activations and
quantizes weights by percentiles and a linear compensation of each block's error, without training; ours trains everything
on and compensates nothing. `activations_first = 1` and `lock_at = 1` end with the switch, without the compensation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..calibration.calibrate import fit_weights
from ..quantizers.quantizer import require_quantized


@contextmanager
def float_weights(model: nn.Module) -> Iterator[None]:
    """Inside, the weights of a calibrated model are float, whatever their quantizers say; activations are quantized."""
    handles = [
        quantizer.register_forward_hook(lambda _, args, output: args[0])
        for quantizer in require_quantized(model).values()
        if not quantizer.batched
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ActivationsFirst:
    """The stage of one run.

    model  from quantize, calibrated; any model where there is no stage
    steps  optimizer steps that the stage lasts, 0: there is none

    Raises ValueError for a stage of a model without quantizers.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        if steps:
            require_quantized(model)
        self.model, self.steps = model, steps

    def lasts(self, step: int) -> bool:
        """Whether weights are float when `step` steps have been made."""
        return step < self.steps

    @contextmanager
    def network(self, step: int) -> Iterator[None]:
        """Around passes of the model when `step` steps have been made: its weights are float inside while the stage lasts."""
        if not self.lasts(step):
            yield
            return
        with float_weights(self.model):
            yield

    def after_step(self, step: int) -> bool:
        """Fit the scales of weights if optimizer step `step` was the last of the stage; true when it was."""
        if step + 1 != self.steps:
            return False
        fit_weights(self.model)
        return True
