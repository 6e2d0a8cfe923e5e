"""FQ-ViT (arXiv 2111.13824): every operation of the network quantized after training, attention in 4 bits, no training.

    config = FQViT(weight_bits=8, activation_bits=8, attention_bits=4)
    qmodel = quantize(model, config)
    calibrate(qmodel, images)                               # some hundred training images; no label is read
    program = freeze(qmodel)

Two tensors of a vision transformer resist plain 8-bit grids, and each gets a form of its own that costs shifts only.

Power-of-two factors (PTF). The channels of the residual stream differ in size by an order of magnitude. One
step s and one zero point serve all of them, and channel c has the step 2^a_c s, a_c in {0, 1, 2, 3}:

    s = (max - min) / (2^b - 1) / 8,   zero = rint(-min / (8 s)),   a_c = argmin over a of |x_c - grid(x_c; 2^a s, zero)|^2

A LayerNorm of the integers (code - zero) << a_c is the LayerNorm of the values, so it runs on integers (`modules`).

Log-int-softmax (LIS). Attention is spread over orders of magnitude, so a code c of b bits stands for 2^-c: i-exp makes
integers e ~ exp(x - max), and c = log2 of round(sum e / e), rounded at 1.5 x 2^f (not at sqrt(2) x 2^f). The product with
v is then a sum of shifted integers.

What sits where (tensors named as in the placement table):

    image, attn.proj.input, mlp.fc2.input      unsigned with a zero point, which goes into the bias
    stream: norm*.input                        unsigned with a zero point and power-of-two factors
    norm*.output                               signed: padding of Swin's windows must be code 0
    attn.q, attn.k, attn.v                     signed, one scale each: a product of two activations has no zero points here
    attn.scores                                signed, 8 bits at every setting: i-exp needs a step of half a nat or less
    attention map                              log2 codes of `attention_bits`, no scale
    weights                                    signed, one scale per output channel, largest value inside

The stream is quantized wherever a LayerNorm reads it, and the skip connection takes the quantized stream, as published: the
tokens, and the sum after every branch. `placement` lists what stays float: GELU, the additions on dequantized values, the
rescaling between integer products, LayerScale, mean pooling.

Where this differs from the paper or its code:
- their LayerNorm takes the root and the factor gamma / std in float for every token; ours is an op on integers with an integer
  square root (`qvit_runtime.integer_ops`). eps is ignored in both, and their output zero point is dropped.
- their attention has 2^b powers of two and zero besides, 2^b + 1 values; ours has 2^b codes, the last of which is zero.
- their q, k and v share one asymmetric scale, and the branches are quantized once more before they are added.
- Swin: the position bias is rounded to the step of the scores, not to a grid of its own.
- the factors of a channel are chosen on all calibration images, not on the last batch.
- first and last layers have the bits of the rest, as published for their 8; so has the image, which their ViT and DeiT
  configurations leave float: a program multiplies integers from the first product on.

Below 8 bits min-max ranges lose the network (published for other models at 6 bits): `observer` chooses others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...calibration.calibrate import (
    Images,
    calibration_images,
    check_finite,
    fit_quantizer,
    fit_weight,
    observe,
    weight_owners,
)
from ...calibration.observers import Extremes
from ...calibration.range_observers import MinMax, Observer, check_observer, grid_of_range, watcher
from ...network.convert import quantize as quantize_uniformly
from ...network.placement import format_placement
from ...network.support import UnsupportedModelError, check_norms
from ...quantizers.quantizer import require_quantized
from ...spec import FixedBits, PerChannel, PerTensor, Spec, check_bits
from .build import Builder
from .freeze import freeze as freeze
from .modules import FACTORS, IntegerLayerNorm
from .placement import placement as placement

# Steps of the scores. Coarser, and the parabola of i-exp leaves its integers; finer, and its sums leave 64 bits.
SCORE_STEPS = (2.0**-8, 0.5)


@dataclass(frozen=True)
class FQViT:
    """What FQ-ViT is to do.

    weight_bits      of all weights, 2..8
    activation_bits  of all activations but the scores, 2..8
    attention_bits   of the codes of the attention map, 2..8
    log2             these codes are powers of two (LIS); False: a float softmax on a plain unsigned grid. Published are
                     4 bits with LIS (the row 8/8/4) and 8 bits without (8/8/8)
    observer         how scales of activations follow from what was seen; published: MinMax(). Weights and the stream have
                     their min and max inside whatever it is
    """

    weight_bits: int = 8
    activation_bits: int = 8
    attention_bits: int = 4
    log2: bool = True
    observer: Observer = field(default_factory=MinMax)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "attention_bits"):
            check_bits(f"FQViT.{name}", getattr(self, name))
        check_observer("FQViT.observer", self.observer)


def quantize(model: nn.Module, config: FQViT | None = None, *, quiet: bool = False) -> nn.Module:
    """A quantized copy of a timm ViT, DeiT or Swin, not calibrated yet; prints its placement table on stderr.

    The keys of the float state_dict are those of timm; a quantizer that a LayerNorm shares with the layers behind it is in
    the state_dict under the name of each.

    Raises UnsupportedModelError naming a module it does not know.
    """
    config = config or FQViT()
    check_norms(model, "FQ-ViT")
    _refuse(model)
    spec = Spec(
        weights=FixedBits(config.weight_bits),
        activations=FixedBits(config.activation_bits),
        heads=PerTensor(),
        weight_scale=PerChannel(),
        edge=FixedBits(config.weight_bits),
        overrides=(("*.attention", FixedBits(config.attention_bits)),),
    )
    result = quantize_uniformly(model, spec, quiet=True)
    result.fqvit = config  # type: ignore[assignment]  # what `calibrate` goes by
    builder = Builder(config.activation_bits, config.attention_bits if config.log2 else None)
    result.patch_embed.proj.input_quantizer = builder.asymmetric()  # type: ignore[union-attr]
    for name, module in list(result.named_modules()):
        match module:
            case PatchEmbed():
                builder.free_norm(module, "norm")
            case PatchMerging():
                module.reduction = builder.norm_and_reader(module, "norm", module.reduction)
            case Block():
                result.set_submodule(name, builder.block(module))
            case SwinTransformerBlock():
                result.set_submodule(name, builder.swin_block(module))
    builder.ends(result)
    result.to(next(model.parameters()).device)
    if not quiet:
        print(format_placement(placement(result)), file=sys.stderr)
    return result


def _refuse(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for norm in ("q_norm", "k_norm"):
            if not isinstance(getattr(module, norm, nn.Identity()), nn.Identity):
                raise UnsupportedModelError(
                    f"{name}.{norm} normalises heads; FQ-ViT has no integer form of QK-norm here: use qvit.quantize for this model"
                )


@torch.no_grad()
def calibrate(model: nn.Module, images: Images, batches: int = 8) -> None:
    """Fit all grids of a model from `quantize`, in place, by its config's observer.

    images   batches (B, 3, height, width) of normalised training images, or (images, labels) pairs
    batches  how many of them to use; they are read twice, so they are kept: for ranges, then for the factors

    Warns about a tensor that is zero everywhere. Raises ValueError when `images` is empty or the model is not FQ-ViT's,
    FloatingPointError for parameters or activations that are not finite.
    """
    config = getattr(model, "fqvit", None)
    if not isinstance(config, FQViT):
        raise ValueError(
            f"this {type(model).__name__} is not an FQ-ViT network; call qvit.methods.fqvit.quantize first"
        )
    check_finite(model)
    kept = list(calibration_images(images, batches))
    quantizers = require_quantized(model)
    owners = weight_owners(model)
    for name, weight in owners.items():
        fit_weight(name, quantizers[name], weight, MinMax())
    norms = dict(_stream_norms(model))
    plain = {name: quantizer for name, quantizer in quantizers.items() if name not in owners and name not in norms}
    ranges = {name: Extremes(1, -1) for name in norms}
    seen = {name: watcher(config.observer, quantizer.scale_groups, quantizer.axis) for name, quantizer in plain.items()}
    observe(model, kept, {**ranges, **seen})
    for name, quantizer in plain.items():
        fit_quantizer(name, quantizer, seen[name].points(), config.observer)
        if name.endswith(".scores"):
            quantizer.set_bank(quantizer.scale_at(quantizer.bit_width).clamp(*SCORE_STEPS)[:, None], None)
    choices = {name: FactorChoice(ranges[name], config.activation_bits) for name in norms}
    observe(model, kept, choices)
    for name, choice in choices.items():
        norms[name].set_input_grid(choice.step, choice.zero, choice.best())


def _stream_norms(model: nn.Module) -> Iterator[tuple[str, IntegerLayerNorm]]:
    for name, module in model.named_modules():
        if isinstance(module, IntegerLayerNorm):
            yield f"{name}.input", module


class FactorChoice:
    """Which power-of-two factor fits each channel of the stream: sums of squared errors, (C, FACTORS).

    step  the smallest step s, 1/8 of the step that the whole range needs, float64 ()
    zero  the code of 0, one for all channels and factors, float64 ()
    """

    def __init__(self, extremes: Extremes, bits: int) -> None:
        scale, offset = grid_of_range(extremes.low[0], extremes.high[0], bits, signed=False, offset=True)
        self.step, self.zero = scale / 2 ** (FACTORS - 1), -(offset / scale).round()
        self.top = 2**bits - 1
        self.errors: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Add a batch (..., C)."""
        values = x.detach().double().cpu().flatten(0, -2)
        steps = self.step * torch.exp2(torch.arange(FACTORS).double())
        errors = [
            (values - (((values / step).round() + self.zero).clamp(0, self.top) - self.zero) * step).square().sum(0)
            for step in steps
        ]
        total = torch.stack(errors, 1)
        self.errors = total if self.errors is None else self.errors + total

    def best(self) -> Tensor:
        """The exponent of each channel, int64 (C,)."""
        assert self.errors is not None
        return self.errors.argmin(1)
