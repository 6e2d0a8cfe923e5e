"""O-2SF: a scale 2^t times larger for the outlier channels of a LayerNorm, without a new op.

A few channels of a LayerNorm output reach some 40 times further than the median channel, and one scale for all rounds the
others to nothing. TSPTQ-ViT (arXiv 2305.12901) gives the outliers a scale of their own, a power of two larger. The paper's
text was not available; this is OUR RECONSTRUCTION from its abstract:

    channel c is an outlier  if  max |x_c| > tau * median over channels of max |x|
    its scale                    2^t s

Two scales on the channels of a layer's input would cut its integer product in two. But x_c / 2^t on scale s is x_c on scale
2^t s, and a product does not care where a factor stands:

    sum_c x_c w_oc  =  sum_c (x_c / 2^t) (2^t w_oc)

So the weight and bias of the LayerNorm are divided by 2^t in the outlier channels, and those columns of the weight behind
it multiplied. Powers of two are exact: the float function stays what it is, bit for bit. What it costs is range in the
weights, whose per-channel scales must now reach the larger columns. Therefore tau and t are searched with both operands
quantized, by the objective of `search`, and not folding is one of the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...network.layers import QuantLinear
from ...quantizers.fake_quantize import code_range
from ...quantizers.quantizer import Quantizer
from .samples import LayerSample
from .search import Operand, Product, Setting, search

TAUS = (2.0, 4.0, 8.0, 16.0)
SHIFTS = (1, 2, 3, 4, 5)  # up to 32: outliers reach some 40 times the median
ROWS = 256  # of a sample
CANDIDATES = 16  # scales tried for every (tau, t)


@dataclass(frozen=True)
class Fold:
    """Outlier channels of one LayerNorm: `channels` bool (C,) and t; t = 0 with no channel means that nothing was gained."""

    norm: str
    channels: Tensor
    shift: int

    def scaled(self, columns: Tensor, sign: int) -> Tensor:
        """The outliers of (..., C) times 2^(sign t)."""
        return torch.where(self.channels, columns * 2.0 ** (sign * self.shift), columns)


def norm_readers(model: nn.Module) -> Iterator[tuple[str, nn.LayerNorm, dict[str, QuantLinear]]]:
    """(name of the LayerNorm, it, the linear layers that read it by name), where a factor can pass from one to the other.

    Between them may be what is linear in every channel: windows, a choice of tokens, their mean. A LayerNorm without
    weights has nothing to fold into, and layers that were kept float need nothing.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs: list[tuple[nn.Module, list[nn.Module]]] = []
    for module in model.modules():
        match module:
            case Block() | SwinTransformerBlock():
                pairs += [(module.norm1, [module.attn.qkv]), (module.norm2, [module.mlp.fc1])]  # type: ignore[list-item]
            case PatchMerging():
                pairs.append((module.norm, [module.reduction]))
    if isinstance(model, SwinTransformer):
        pairs.append((model.norm, [model.head.fc]))
    else:
        last = model.norm if isinstance(model.fc_norm, nn.Identity) else model.fc_norm
        pairs.append((last, [getattr(model, head) for head in ("head", "head_dist") if hasattr(model, head)]))  # type: ignore[arg-type]
    for norm, layers in pairs:
        readers = {names[layer]: layer for layer in layers if isinstance(layer, QuantLinear)}
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and readers:
            yield names[norm], norm, readers


@torch.no_grad()
def find_fold(name: str, readers: dict[str, QuantLinear], samples: dict[str, LayerSample]) -> Fold:
    """The fold of one LayerNorm that lets the layers behind it lose least; nothing is changed."""
    reach = torch.stack([samples[layer].inputs.abs().amax(0) for layer in readers]).amax(0)  # (C,)
    nothing = Fold(name, torch.zeros_like(reach, dtype=torch.bool), 0)
    folds = [nothing]
    for tau in TAUS:
        channels = reach > tau * reach.median()
        if channels.any() and not any(torch.equal(channels, fold.channels) for fold in folds):
            folds += [Fold(name, channels, shift) for shift in SHIFTS]
    return min(folds, key=lambda fold: sum(_loss(fold, readers[layer], samples[layer]) for layer in readers))


def _loss(fold: Fold, layer: QuantLinear, sample: LayerSample) -> float:
    """The objective of a layer behind the fold, after a short search of its scales."""
    inputs, weight = fold.scaled(sample.inputs[:ROWS], -1), fold.scaled(layer.weight, 1)
    product = Product(
        _covered(inputs, layer.input_quantizer), _covered(weight, layer.weight_quantizer), sample.importance[:ROWS]
    )
    return search(product, rounds=1, candidates=CANDIDATES).end


def _covered(values: Tensor, quantizer: Quantizer) -> Operand:
    """An operand at the scale that clips nothing; 1 where everything is zero."""
    reach = values.abs().reshape(quantizer.scale_groups, -1).amax(1)
    bits = quantizer.per_scale(quantizer.bit_width).float()
    scale = torch.where(reach > 0, reach / code_range(bits, quantizer.signed)[1], torch.ones_like(reach))
    return Operand(values, quantizer, Setting(scale, 0))


@torch.no_grad()
def apply_fold(fold: Fold, norm: nn.LayerNorm, readers: dict[str, QuantLinear]) -> None:
    """Move the factors of a fold from the LayerNorm into the columns behind it, in place."""
    norm.weight.copy_(fold.scaled(norm.weight, -1))
    if norm.bias is not None:
        norm.bias.copy_(fold.scaled(norm.bias, -1))
    for layer in readers.values():
        layer.weight.copy_(fold.scaled(layer.weight, 1))


def folded_sample(fold: Fold, sample: LayerSample) -> LayerSample:
    """A sample of a layer behind the LayerNorm as it is after the fold."""
    return LayerSample(fold.scaled(sample.inputs, -1), sample.importance)
