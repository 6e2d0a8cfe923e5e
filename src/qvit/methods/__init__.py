"""The methods behind recipes: one frozen value of options each, and the verbs that understand it.

    method       options ([quantize] of a recipe)   trains   what it is
    qvit         Spec                               yes      Q-ViT, arXiv 2201.07703: learned bits (or fixed ones)
    lsq          Spec, fixed bits only              yes      uniform LSQ, arXiv 1902.08153: the baseline of the others
    qvit-irm     QViTIRM                            yes      Q-ViT of Li et al., arXiv 2210.06707: IRM and DGD
    ivit         IViT                               yes      I-ViT, arXiv 2207.01405: integers only
    fqvit        FQViT                              no       FQ-ViT, arXiv 2111.13824: log2 softmax, integer LayerNorm
    tsptq        TSPTQ                              no       TSPTQ-ViT, arXiv 2305.12901, our reconstruction
    ptq          PostTraining                       no       uniform post-training quantization under any observer

A method is a row of METHODS and nothing else knows their names: `rows` calls the verbs of the row. A row with
`trains=False` is post-training quantization; of the others, `fit.epochs = 0` makes the post-training variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from qvit_runtime.program import Program

from ..calibration.calibrate import Images, calibrate
from ..freezing.freeze import freeze
from ..network.convert import quantize
from ..network.placement import Placement, placement
from ..quantizers.exact import in_float64
from ..spec import FixedBits, LearnedBits, PerHead, SharedScale, SingleRange, SingleScale, Spec
from ..training.guide import Guide
from . import fqvit, ivit, ptq, qvit_irm, tsptq
from .fqvit import FQViT
from .ivit import IViT
from .ptq import PostTraining
from .qvit_irm import QViTIRM
from .tsptq import TSPTQ

Config = Spec | QViTIRM | IViT | FQViT | TSPTQ | PostTraining


def _no_guide(model: nn.Module, config: Any, teacher: nn.Module) -> Guide | None:
    return None


@dataclass(frozen=True)
class Method:
    """The verbs of a method. `config` is the class of its options.

    uniform    (weight bits, activation bits) -> options: what the command line can say
    label      options -> the name of a row in a table
    quantize   (float model, options) -> a quantized copy
    calibrate  (module, options, batches, how many of them): scales from weights and images, in place
    freeze     (module, budget or None, preprocess, name, metadata) -> Program
    placement  module -> rows of the placement table
    guide      (module, options, float teacher) -> what `fit` is to add to the loss, or None
    exact      module -> what is compared with its program, see `exact`
    trains      the module can be trained
    compiles    with fit.compile and fit.cuda_graph: nothing watches the inside of the network, and it computes in floats
    recomputes with fit.checkpoint_activations: it is made of timm's blocks
    quantizers every quantized tensor has a `Quantizer`: cost can be read off the module, and it freezes before calibration
    """

    config: type
    uniform: Callable[[int, int], Any]
    label: Callable[[Any], str]
    quantize: Callable[[nn.Module, Any], nn.Module]
    calibrate: Callable[[nn.Module, Any, Images, int], object]
    freeze: Callable[..., Program] = freeze
    placement: Callable[[nn.Module], list[Placement]] = placement
    guide: Callable[[nn.Module, Any, nn.Module], Guide | None] = _no_guide
    exact: Callable[[nn.Module], nn.Module] = in_float64
    trains: bool = True
    compiles: bool = True
    recomputes: bool = True
    quantizers: bool = True


def spec_label(spec: Spec) -> str:
    """uniform W3A3, or head-wise learned bits, whatever tensors learn them."""
    weights, activations = spec.weights, spec.activations
    hidden = f", {spec.hidden_groups} hidden groups" if spec.hidden_groups > 1 else ""
    if isinstance(weights, FixedBits) and isinstance(activations, FixedBits) and not learns_bits(spec):
        return f"uniform W{weights.bits}A{activations.bits}{' with overrides' if spec.overrides else ''}{hidden}"
    heads = "head-wise" if isinstance(spec.heads, PerHead) else "layer-wise"
    match spec.scale:
        case SharedScale():
            bank = ", shared bank"
        case SingleScale():
            bank = ", single scale"
        case SingleRange():
            bank = ", single range"
        case _:
            bank = ""
    return f"{heads} learned bits{hidden}{bank}"


def learns_bits(config: Config) -> bool:
    """Some bits are learned, so training and a budget are needed."""
    if not isinstance(config, Spec):
        return False
    bits = (config.weights, config.activations, config.edge, *(bits for _, bits in config.overrides))
    return any(isinstance(choice, LearnedBits) for choice in bits)


def _uniform_spec(weight_bits: int, activation_bits: int) -> Spec:
    return Spec(FixedBits(weight_bits), FixedBits(activation_bits))


def _bits(config: IViT | FQViT | TSPTQ) -> str:
    return f"W{config.weight_bits}A{config.activation_bits}"


def _without_budget(freeze_method: Callable[..., Program]) -> Callable[..., Program]:
    """The freeze of a method whose bits are given: there is no budget to check."""
    return lambda model, budget=None, *rest: freeze_method(model, *rest)


_LEARNED_SCALES = Method(
    config=Spec,
    uniform=_uniform_spec,
    label=spec_label,
    quantize=lambda model, spec: quantize(model, spec, quiet=True),
    calibrate=lambda model, _, images, batches: calibrate(model, images, batches),
)

METHODS: dict[str, Method] = {
    "qvit": _LEARNED_SCALES,
    "lsq": _LEARNED_SCALES,
    "qvit-irm": Method(
        config=QViTIRM,
        uniform=QViTIRM,
        label=lambda config: config.label,
        quantize=qvit_irm.quantize,
        calibrate=lambda model, _, images, batches: qvit_irm.calibrate(model, images, batches),
        placement=qvit_irm.placement,
        guide=qvit_irm.guide,
        compiles=False,
    ),
    "ivit": Method(
        config=IViT,
        uniform=IViT,
        label=lambda config: f"I-ViT {_bits(config)}",
        quantize=ivit.quantize,
        calibrate=lambda model, _, images, batches: ivit.calibrate(model, images, batches),
        freeze=_without_budget(ivit.freeze),
        placement=ivit.placement,
        exact=lambda model: model,  # it computes in integers already
        compiles=False,
        recomputes=False,
        quantizers=False,
    ),
    "fqvit": Method(
        config=FQViT,
        uniform=FQViT,
        label=lambda config: (
            f"FQ-ViT {_bits(config)} attention {config.attention_bits}{' log2' if config.log2 else ''}"
        ),
        quantize=lambda model, config: fqvit.quantize(model, config, quiet=True),
        calibrate=lambda model, _, images, batches: fqvit.calibrate(model, images, batches),
        freeze=_without_budget(fqvit.freeze),
        placement=fqvit.placement,
        trains=False,
        quantizers=False,
    ),
    "tsptq": Method(
        config=TSPTQ,
        uniform=TSPTQ,
        label=lambda config: f"TSPTQ {_bits(config)}",
        quantize=lambda model, config: tsptq.quantize(model, config, quiet=True),
        calibrate=lambda model, config, images, batches: tsptq.calibrate(model, images, batches, config),
        freeze=_without_budget(tsptq.freeze),
        placement=tsptq.placement,
        trains=False,
    ),
    "ptq": Method(
        config=PostTraining,
        uniform=PostTraining,
        label=lambda config: config.label,
        quantize=ptq.quantize,
        calibrate=ptq.calibrate,
        trains=False,
    ),
}
