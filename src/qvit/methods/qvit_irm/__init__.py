"""Q-ViT of Li et al. (arXiv 2210.06707): fixed bits, rectified queries and keys (IRM), distilled similarities (DGD).

    baseline   every Linear and both attention products at fixed bits with learned scales (LSQ): one scale per output
               channel of a weight, per head of q, k, v and the attention map; patch embedding and classifier at 8 bits
    IRM        q and k are normalised per head before they are quantized        `rectify`
    DGD        their patch similarities follow those of the float model          `guide`

Either mechanism can be switched off for the ablation; with both off this is the baseline, bit for bit. The loss on logits is
`fit`'s: the paper's is hard distillation (fit.distillation = 0.5, fit.hard_distillation = true).

Differences from the paper. Its activations have a zero point; ours are symmetric but for GELU's, and beta of IRM moves q and k.
proj has one scale per head (its columns) instead of one per output channel, see `attention`. Models with QK-norm are
refused: their q and k are normalised already, by an operation that a rectifier cannot be folded into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...calibration.calibrate import Images, calibration_images, check_finite, fit_all, float_forward
from ...network.attention import QuantAttention, QuantWindowAttention, split_heads
from ...network.convert import quantize as quantize_spec
from ...network.placement import FOLDED, Placement
from ...network.placement import placement as placement_of_quantizers
from ...network.rectify import RectifiedLinear
from ...network.support import UnsupportedModelError
from ...spec import FixedBits, PerChannel, PerHead, Spec, check_bits
from .guide import IRMGuide


@dataclass(frozen=True)
class QViTIRM:
    """Options of the method."""

    weight_bits: int = 2
    """Of every Linear but the first and the last."""
    activation_bits: int = 2
    """Of their inputs, of q, k, v and of the attention map."""
    rectify: bool = True
    """IRM."""
    guide: float = 1.0
    """Weight of DGD in the loss; 0 switches it off."""
    momentum: float = 0.01
    """Of IRM's running statistics, per optimizer step."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            check_bits(f"QViTIRM.{name}", getattr(self, name))
        if not self.guide >= 0:
            raise ValueError(f"QViTIRM.guide is {self.guide}; it must not be negative (0 switches DGD off)")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"QViTIRM.momentum is {self.momentum}; it must lie between 0 and 1")

    @property
    def spec(self) -> Spec:
        """The baseline."""
        weights, activations = FixedBits(self.weight_bits), FixedBits(self.activation_bits)
        return Spec(weights, activations, heads=PerHead(), weight_scale=PerChannel())

    @property
    def label(self) -> str:
        """Name of a row in a table."""
        parts = [name for name, on in (("IRM", self.rectify), ("DGD", self.guide > 0)) if on]
        return f"{' + '.join(parts) or 'baseline'} W{self.weight_bits}A{self.activation_bits}"


def quantize(model: nn.Module, config: QViTIRM) -> nn.Module:
    """A quantized copy of a float model. Raises UnsupportedModelError for QK-norm, and as `qvit.quantize` does."""
    result = quantize_spec(model, config.spec, quiet=True)
    for name, attention in _attention(result).items():
        if isinstance(attention, QuantAttention) and not isinstance(attention.q_norm, nn.Identity):
            raise UnsupportedModelError(f"{name} has QK-norm: its q and k are normalised already; use method 'lsq'")
        if config.rectify:
            attention.qkv = RectifiedLinear(attention.qkv, attention.num_heads)
    return result.to(next(model.parameters()).device)


@torch.no_grad()
def calibrate(model: nn.Module, images: Images, batches: int = 8) -> None:
    """Statistics of IRM from the float network, then scales of all quantizers as `qvit.calibrate` finds them.

    images   batches (B, channels, height, width) of normalised training images, or (images, labels) pairs
    batches  how many of them to use; they are read twice, so they are kept

    Raises as `qvit.calibrate` does.
    """
    check_finite(model)
    kept = list(calibration_images(images, batches))
    rectified = {a.qkv: a.num_heads for a in _attention(model).values() if isinstance(a.qkv, RectifiedLinear)}
    if rectified:
        sums = _head_sums(model, rectified, kept)
        for layer, (count, first, second) in sums.items():
            mean = first / count
            layer.rectifier.start(mean, (second / count - mean.square()).clamp(min=0))
    fit_all(model, kept, len(kept))


Sums = tuple[int, Tensor, Tensor]  # elements per head; sum of values, of squares, float64 (2 H,)


def _head_sums(
    model: nn.Module, rectified: dict[RectifiedLinear, int], images: list[Tensor]
) -> dict[RectifiedLinear, Sums]:
    """Moments of q and k as the float network makes them, before rectification."""
    sums: dict[RectifiedLinear, Sums] = {}

    def add(layer: RectifiedLinear, qkv: Tensor) -> None:
        flat = torch.stack(split_heads(qkv, rectified[layer])[:2]).double().transpose(1, 2).flatten(2)  # (2, H, B N d)
        found = (flat.shape[-1], flat.sum(-1).flatten(), flat.square().sum(-1).flatten())
        before = sums.get(layer)
        sums[layer] = found if before is None else (before[0] + found[0], before[1] + found[1], before[2] + found[2])

    was_training, device = model.training, next(model.parameters()).device
    handles = [
        layer.rectifier.register_forward_pre_hook(lambda _, args, layer=layer: add(layer, args[0]))
        for layer in rectified
    ]
    try:
        with float_forward(model.eval()):
            for values in images:
                model(values.to(device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return sums


def placement(model: nn.Module) -> list[Placement]:
    """The table of all quantizers, and a row per rectifier: it folds."""
    rows = [
        Placement(f"{name}.qkv.rectifier", FOLDED, "", "IRM of q and k, per head", "goes into scales and bias of qkv")
        for name, attention in _attention(model).items()
        if isinstance(attention.qkv, RectifiedLinear)
    ]
    return [*placement_of_quantizers(model), *rows]


def guide(model: nn.Module, config: QViTIRM, teacher: nn.Module) -> IRMGuide | None:
    """What `fit` needs besides the loss on logits; None when both mechanisms are off."""
    if not config.rectify and not config.guide:
        return None
    return IRMGuide(model, teacher, config.guide, config.momentum)


def _attention(model: nn.Module) -> dict[str, QuantAttention | QuantWindowAttention]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (QuantAttention, QuantWindowAttention))
    }
