"""TSPTQ-ViT: post-training quantization with two-scaled activations (Tai, Lin, Wu, arXiv 2305.12901).

The problem. Three kinds of activations in a Vision Transformer fit no single scale: softmax and GELU outputs, whose small
values are many and whose large ones count, and LayerNorm outputs, where a few channels reach tens of times further than
the rest. The authors give each of them two scales a power of two apart, so that integers still do:

    V-2SF   softmax, GELU    two value regions     a region flag and k - 1 bits of magnitude     `region_quantizer`
    O-2SF   LayerNorm        two sets of channels  folded into the LayerNorm and the weight       `outliers`
    search  every scale      sum (dL/dO)^2 (O - O_hat)^2, weights and activations in turn         `search`

OUR RECONSTRUCTION. The paper's text was not available to us, only its abstract, and the authors published no code. What is
ours, and may differ from theirs: the formulas of all three files, the loss L behind dL/dO, an offset instead of a sign in
the small region of GELU, a searched m, and an 8-bit patch embedding and classifier, as everywhere in qvit. Numbers made
with it are not the authors' numbers.

    config = TSPTQ(weight_bits=6, activation_bits=6)
    qmodel = quantize(model, config)
    calibrate(qmodel, images, batches=1, config=config)     # 128 training images are enough; no label is read
    program = freeze(qmodel)

Weights have a scale per output channel, all other tensors one scale. It is post-training quantization: nothing is trained,
but gradients are taken once, so calibration needs the memory of a backward pass over 16 images.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from qvit_runtime.program import Preprocess, Program

from ...calibration.calibrate import Images, calibration_images, check_finite, fit_all
from ...freezing.freeze import freeze as freeze_module
from ...network.attention import QuantAttention, QuantWindowAttention
from ...network.convert import quantize as quantize_uniform
from ...network.layers import QuantConv2d, QuantLinear
from ...network.placement import Placement, format_placement
from ...network.placement import placement as uniform_placement
from ...quantizers.quantizer import Quantizer, named_quantizers
from ...quantizers.region_quantizer import GELU_DEPTH, RegionQuantizer
from ...spec import FixedBits, PerChannel, PerTensor, SingleScale, Spec, check_bits
from .outliers import Fold, apply_fold, find_fold, folded_sample, norm_readers
from .samples import CHUNK, AttentionSample, LayerSample, collect
from .search import Found, Operand, Product, Setting, search


@dataclass(frozen=True)
class TSPTQ:
    """Options of the method.

    weight_bits      2..8, of attention and MLP weights
    activation_bits  2..8, of their inputs and of q, k, v and the attention map; two-scaled codes count their flag
    rounds           how often the search goes from weights to activations
    candidates       scales on the linear grid, per operand, round (and m)
    """

    weight_bits: int = 8
    activation_bits: int = 8
    rounds: int = 2
    candidates: int = 48

    def __post_init__(self) -> None:
        check_bits("TSPTQ.weight_bits", self.weight_bits)
        check_bits("TSPTQ.activation_bits", self.activation_bits)
        for name, given, most in (("rounds", self.rounds, 100), ("candidates", self.candidates, 1000)):
            if not isinstance(given, int) or not 1 <= given <= most:
                raise ValueError(f"TSPTQ.{name} is {given!r}; it must be a whole number in 1..{most}")


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` decided.

    folds     one per LayerNorm that could be folded; without outlier channels where nothing was gained
    products  by name (a layer, or ATTENTION.scores and ATTENTION.mixed): settings, and the objective before and after
    """

    folds: tuple[Fold, ...]
    products: dict[str, Found]


def quantize(model: nn.Module, config: TSPTQ, *, quiet: bool = False) -> nn.Module:
    """A quantized copy of a supported timm model, not calibrated yet; prints its placement table on stderr.

    Raises UnsupportedModelError naming a module it does not know.
    """
    spec = Spec(
        weights=FixedBits(config.weight_bits),
        activations=FixedBits(config.activation_bits),
        heads=PerTensor(),
        weight_scale=PerChannel(),
        scale=SingleScale(),
    )
    result = quantize_uniform(model, spec, quiet=True)
    for module in result.modules():
        match module:
            case QuantAttention() | QuantWindowAttention():
                axis = module.attention_quantizer.axis
                module.attention_quantizer = RegionQuantizer(config.activation_bits, axis=axis)
            case Mlp():
                layer = module.fc2
                assert isinstance(layer, QuantLinear)
                axis = layer.input_quantizer.axis
                layer.input_quantizer = RegionQuantizer(config.activation_bits, axis=axis, depth=GELU_DEPTH)
    result.to(next(model.parameters()).device).train(model.training)
    if not quiet:
        print(format_placement(placement(result)), file=sys.stderr)
    return result


def calibrate(
    model: nn.Module,
    images: Images,
    batches: int = 1,
    config: TSPTQ | None = None,
) -> Calibration:
    """Fold the outlier channels of the LayerNorms and find every scale, in place.

    model    from `quantize` of this file; LayerNorm and weights change, what it computes in float does not
    images   batches (B, channels, height, width) of normalised training images, or (images, labels) pairs
    batches  how many of them to use; some 100 images are enough
    config   its `rounds` and `candidates` are used; the bits are those of the model

    Raises ValueError for a model of another method and when `images` is empty, FloatingPointError for parameters or activations
    that are not finite.
    """
    config = config or TSPTQ()
    _require_regions(model)
    check_finite(model)
    together = torch.cat(list(calibration_images(images, batches)))
    samples = collect(model, together)
    layers = dict(samples.layers)
    folds = []
    for name, norm, readers in norm_readers(model):
        fold = find_fold(name, readers, layers)
        apply_fold(fold, norm, readers)
        layers.update({layer: folded_sample(fold, layers[layer]) for layer in readers})
        folds.append(fold)
    fit_all(model, together.split(CHUNK), len(together))  # where the search starts; it sees the folds
    found = {}
    for name, product in _products(model, layers, samples.attentions).items():
        result = search(product, config.rounds, config.candidates)
        _set(product.left.quantizer, result.left)
        _set(product.right.quantizer, result.right)
        found[name] = result
    return Calibration(tuple(folds), found)


def _require_regions(model: nn.Module) -> None:
    if not any(isinstance(module, RegionQuantizer) for module in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} has no two-scaled quantizers; call qvit.methods.tsptq.quantize(model, config) first"
        )


def _products(
    model: nn.Module, layers: dict[str, LayerSample], attentions: dict[str, AttentionSample]
) -> dict[str, Product]:
    """Every product of the network on its samples, at the settings in force."""
    modules, products = dict(model.named_modules()), {}
    for name, sample in layers.items():
        layer = modules[name]
        assert isinstance(layer, QuantLinear | QuantConv2d)
        products[name] = Product(
            _operand(sample.inputs, layer.input_quantizer),
            _operand(layer.weight.detach().flatten(1), layer.weight_quantizer),
            sample.importance,
        )
    for name, entries in attentions.items():
        module = modules[name]
        assert isinstance(module, QuantAttention | QuantWindowAttention)
        q, k = _operand(entries.q, module.q_quantizer), _operand(entries.k, module.k_quantizer)
        attention = _operand(entries.attention, module.attention_quantizer)
        products[f"{name}.scores"] = Product(q, k, entries.scores)
        products[f"{name}.mixed"] = Product(attention, _operand(entries.v.mT, module.v_quantizer), entries.mixed)
    return products


def _operand(values: Tensor, quantizer: Quantizer) -> Operand:
    shift = int(quantizer.shift) if isinstance(quantizer, RegionQuantizer) else 0
    return Operand(values, quantizer, Setting(quantizer.scale_at(quantizer.bit_width).detach(), shift))


def _set(quantizer: Quantizer, setting: Setting) -> None:
    if isinstance(quantizer, RegionQuantizer):
        quantizer.set_regions(setting.scale, setting.shift)
    else:
        quantizer.set_bank(setting.scale[:, None], None)


def freeze(
    model: nn.Module,
    preprocess: Preprocess | None = None,
    name: str = "",
    metadata: dict[str, str] | None = None,
) -> Program:
    """The integer program of a calibrated model; its metadata say that the method is TSPTQ.

    Arguments and errors are those of `qvit.freeze`, but for a budget: bits are given, not learned. Raises ValueError for
    a model of another method.
    """
    _require_regions(model)
    return freeze_module(model, None, preprocess, name, {"method": "TSPTQ (reconstruction)", **(metadata or {})})


def placement(model: nn.Module) -> list[Placement]:
    """The rows of `qvit.network.placement.placement`, with the regions of two-scaled tensors and the folded LayerNorm outputs."""
    quantizers = named_quantizers(model)
    behind_norms = {f"{layer}.input" for _, _, readers in norm_readers(model) for layer in readers}
    rows = []
    for row in uniform_placement(model):
        quantizer = quantizers.get(row.tensor)
        if isinstance(quantizer, RegionQuantizer):
            rows.append(_regions_row(row, quantizer))
        elif row.tensor in behind_norms:
            rows.append(replace(row, reason="one factor; that of outlier channels is in LayerNorm and weight"))
        else:
            rows.append(row)
    return rows


def _regions_row(row: Placement, quantizer: RegionQuantizer) -> Placement:
    ratio = f"1 : {1 << int(quantizer.shift)}" if quantizer.is_calibrated else "a power of two apart"
    return replace(
        row,
        sign="unsigned + offset" if quantizer.depth else "unsigned",
        granularity=f"per tensor, two scales {ratio}",
        reason="one factor and a shift" + ("; the offset goes into the bias" if quantizer.depth else ""),
    )
