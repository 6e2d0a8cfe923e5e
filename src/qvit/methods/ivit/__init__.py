"""I-ViT (Li & Gu, ICCV 2023, arXiv 2207.01405): integer-only inference, from the image's codes to the logits.

    model = quantize(float_model, IViT())
    calibrate(model, images)                 post-training quantization may stop here
    qvit.fit(model, ...)                     quantization-aware training: weights against their own integers
    program = freeze(model)                  the same integers, bit for bit

Where Q-ViT and its kin multiply integers and do the rest in float, here every operation is one on integers: sums are
rescaled by a multiplier and a shift, softmax and GELU are made of shifts, LayerNorm of an integer square root, and the
residual stream has 16 bits. `qvit_runtime.integer_ops` states the arithmetic; `arithmetic` how the files here divide the
work. The forward pass of the module *is* the program: its logits in eval mode and in training are those of the interpreter.

Differences from the authors' code: rounding needs no float (half rounds up, theirs half to even in float64); scales are
fixed after calibration (theirs follow a moving average, in evaluation too), least-squares ones up to 8 bits (theirs
min-max), and those of exponentials have whole units (`layers`); square roots are exact; LayerNorm's beta is trained; a branch
ends in the 32-bit sums of proj or fc2, which the residual addition rescales (theirs first puts them on 16-bit grids of their
own).
The published recipe trains with AdamW at a learning rate of 1e-6, 30 to 90 epochs; that is `fit`'s to set.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import qvit_runtime.program as p

from ...calibration.calibrate import Images, calibration_images, check_finite
from ...freezing.freeze import default_preprocess
from ...network.placement import Placement
from ...network.support import UnsupportedModelError, check_norms, check_supported
from ...spec import check_bits
from .emission import Emission
from .layers import STREAM_BITS, Grid, Linear
from .network import IntegerSwin, IntegerTransformer, IntegerViT
from .observation import Observation


@dataclass(frozen=True)
class IViT:
    """Options of I-ViT.

    weight_bits      of every linear layer but the patch embedding and the classifier, which take 8
    activation_bits  of the operands of products: LayerNorm outputs, q, k, v, attention output, GELU output

    Image, final features, the inputs of softmax and GELU and the attention map keep 8 bits and the residual stream 16,
    whatever these say (`layers` has the reasons).
    """

    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            check_bits(f"IViT.{name}", getattr(self, name))


def quantize(model: nn.Module, config: IViT | None = None) -> IntegerTransformer:
    """An integer-only copy of `model`, not calibrated yet; the float keys of its state_dict are those of timm.

    Raises UnsupportedModelError naming what qvit does not know, or what has no integer form (QK-norm, a branch without LayerNorm).
    """
    config = config or IViT()
    check_supported(model)
    check_norms(model, "I-ViT")
    for name, module in model.named_modules():
        if isinstance(module, Attention) and not isinstance(module.q_norm, nn.Identity):
            raise UnsupportedModelError(
                f"{name} has QK-norm, for which I-ViT has no integer form; use a model without it, or another method"
            )
    source = copy.deepcopy(model)
    bits = (config.weight_bits, config.activation_bits)
    network: IntegerTransformer
    if isinstance(source, SwinTransformer):
        network = IntegerSwin(source, *bits)
    else:
        assert isinstance(source, VisionTransformer)
        network = IntegerViT(source, *bits)
    return network.to(next(model.parameters()).device).train(model.training)


def require_integer(model: nn.Module) -> IntegerTransformer:
    """The model, or TypeError when it is not one of I-ViT's."""
    if not isinstance(model, IntegerTransformer):
        raise TypeError(f"{type(model).__name__} is not an I-ViT model; make one with methods.ivit.quantize(model)")
    return model


@torch.no_grad()
def calibrate(model: nn.Module, images: Images, batches: int = 8) -> None:
    """Take the scales of all activations from the float network.

    model    from quantize
    images   batches (B, channels, height, width) of normalised training images, or (images, labels) pairs
    batches  how many of them to use

    Warns about scores that reach so far that Shiftmax flattens their softmax (`layers`). Raises ValueError when `images` is
    empty, FloatingPointError for parameters or activations that are not finite.
    """
    network, observation = require_integer(model), Observation()
    check_finite(network)
    device, image = next(network.parameters()).device, network.patch_embed.image
    for values in calibration_images(images, batches):
        network.run(observation, observation.see(values.to(device), image))
    observation.set_scales()
    for name, grid in network.grids().items():
        if name.endswith(".scores") and grid.scale > 1:
            warnings.warn(
                f"{name} reaches so far that a code stands for {float(grid.scale):.3g} powers of e, which Shiftmax takes for 1: its "
                "softmax is flatter than the float model's; train the model, or use another method",
                stacklevel=2,
            )


@torch.no_grad()
def freeze(
    model: nn.Module,
    preprocess: p.Preprocess | None = None,
    name: str = "",
    metadata: dict[str, str] | None = None,
) -> p.Program:
    """The program of a calibrated or trained model: what its forward pass computes, bit for bit.

    preprocess, name  as in `qvit.freeze`

    Raises UncalibratedError when a tensor has no scale.
    """
    network = require_integer(model)
    network.require_calibrated()
    embed = network.patch_embed
    image = (embed.channels, *embed.img_size)
    preprocess = preprocess or default_preprocess(network, embed.channels)
    emission = Emission(network, image)
    output = emission.dequantize(network.run(emission, emission.quantize(embed.image)))
    return p.Program(
        name=name or type(network).__name__,
        input="image",
        output=output,
        ops=tuple(emission.ops),
        buffers=emission.buffers,
        weights=emission.weights,
        constants={},
        preprocess=preprocess,
        metadata=metadata or {},
        integers=emission.integers,
    )


def placement(model: nn.Module) -> list[Placement]:
    """Rows of every integer tensor in the order of the model. There is no float row: nothing is float in between."""
    network = require_integer(model)
    rows = []
    for name, module in network.named_modules():
        match module:
            case Linear():
                rows.append(Placement(f"{name}.weight", module.bits, "signed", "scale per output channel", RESCALED))
            case Grid():
                sign = "signed" if module.signed else "unsigned"
                rows.append(Placement(name, module.bits, sign, "per tensor", _reason(name, module)))
    biases = sum(module.bias is not None for module in network.modules() if isinstance(module, Linear))
    rows.append(Placement("biases", 32, "signed", f"of {biases} layers", "integers in units of the sums"))
    return rows


RESCALED = "sums of 32 bits, one multiplier and shift per output"
REASONS = {
    "image": "the only Quantize",
    "scores": "input of Shiftmax",
    "attention": "Shiftmax: exponentials by shifts",
    "hidden": "input of ShiftGELU",
    "tokens": "residual stream, position embedding and prefix tokens added as integers",
    "logits": "mean of two heads",
}


def _reason(name: str, grid: Grid) -> str:
    part = name.rpartition(".")[2]
    if "norm" in name:
        return "I-LayerNorm: integer square root"
    if part in REASONS:
        return REASONS[part]
    return "residual stream: integer addition" if grid.bits == STREAM_BITS else "operand of a product"
