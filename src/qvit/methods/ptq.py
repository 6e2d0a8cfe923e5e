"""Plain post-training quantization: the baseline that FQ-ViT and TSPTQ-ViT compare with, under any observer.

Uniform grids at fixed bits: one scale per output channel of a weight, one per tensor for activations (GELU's with an
offset), patch embedding and classifier at 8 bits; softmax, GELU, LayerNorm and the residual stream stay float. What an
observer makes of a tensor is `range_observers`' business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..calibration.calibrate import Images
from ..calibration.calibrate import calibrate as calibrate_quantizers
from ..calibration.range_observers import MinMax, Observer, check_observer
from ..network.convert import quantize as quantize_spec
from ..spec import FixedBits, PerChannel, PerTensor, Spec, check_bits


@dataclass(frozen=True)
class PostTraining:
    """Options of the method."""

    weight_bits: int = 8
    """Of every Linear but the first and the last."""
    activation_bits: int = 8
    """Of their inputs, of q, k, v and of the attention map."""
    observer: Observer = field(default_factory=MinMax)
    """Where the ends of a grid come from."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            check_bits(f"PostTraining.{name}", getattr(self, name))
        check_observer("PostTraining.observer", self.observer)

    @property
    def spec(self) -> Spec:
        """What is quantized and how."""
        weights, activations = FixedBits(self.weight_bits), FixedBits(self.activation_bits)
        return Spec(weights, activations, heads=PerTensor(), weight_scale=PerChannel())

    @property
    def label(self) -> str:
        """Name of a row in a table."""
        return f"PTQ {type(self.observer).__name__} W{self.weight_bits}A{self.activation_bits}"


def quantize(model: nn.Module, config: PostTraining) -> nn.Module:
    """A quantized copy of a float model; raises as `qvit.quantize` does."""
    return quantize_spec(model, config.spec, quiet=True)


def calibrate(model: nn.Module, config: PostTraining, images: Images, batches: int = 8) -> None:
    """Scales by the observer of the options; raises as `qvit.calibrate` does."""
    calibrate_quantizers(model, images, batches, observer=config.observer)
