"""quantize(): a timm model and a Spec in, a new module with quantizers inside out.

The float model is deep-copied and its layers are swapped by role; the copy's float state_dict keys are those of timm, so
public checkpoints load into it (before `quantize` where hidden units are in groups: they are sorted by their weights). Where
the quantizers sit (arXiv 2201.07703, figure and code; H heads):

    patch_embed.proj     image signed; weight                          edge bits (8, fixed)
    attn.qkv             LayerNorm output signed; weight 3 H row groups: the heads of q, then of k, then of v
    attn q, k, v         signed, per head
    attn attention       softmax output, unsigned, per head
    attn.proj            attention output signed, per head; weight H column groups: the heads are its inputs
    mlp.fc1              LayerNorm output signed; weight, in row groups of hidden units where the spec divides them (`hidden`)
    mlp.fc2              GELU output unsigned with offset, in the same groups; weight
    downsample.reduction LayerNorm output signed; weight               (Swin)
    head, head_dist      final features signed; weight                 edge bits

The authors' code groups the rows and columns of qkv and proj the wrong way round (square matrices hide it); tests here
fail if an axis is swapped. With heads=PerTensor() every tensor has one group, the fused qkv weight three.
"""

from __future__ import annotations

import copy
import sys
from fnmatch import fnmatch

import torch
from timm.layers import ClassifierHead, Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.swin_transformer import PatchMerging, SwinTransformer, WindowAttention
from torch import nn

from ..quantizers.midrise import MidRiseQuantizer
from ..quantizers.quantizer import Quantizer
from ..spec import Bits, MidRise, PassThroughGradient, PerChannel, PerHead, Spec
from .attention import HeadQuantizers, QuantAttention, QuantWindowAttention
from .hidden import sort_hidden
from .layers import QuantConv2d, QuantLinear
from .placement import format_placement, placement
from .support import check_supported

Shapes = dict[str, tuple[int, ...]]


def quantize(model: nn.Module, spec: Spec | None = None, *, quiet: bool = False) -> nn.Module:
    """A quantized copy of `model`, not calibrated yet; prints its placement table on stderr.

    model  a supported timm model (see `support`)
    spec   what to quantize and how; the default is Q-ViT with head-wise learned bits
    quiet  do not print

    Raises UnsupportedModelError naming a module it does not know, and ValueError when a pattern of the spec matches
    nothing or nothing is left to quantize.
    """
    spec = spec or Spec()
    check_supported(model)
    shapes = _layer_shapes(model)
    result = copy.deepcopy(model)
    builder = _Builder(spec, shapes)
    for name, module in list(result.named_modules()):
        match module:
            case Attention() | WindowAttention():
                builder.attention(result, name, module)
            case Mlp():
                builder.mlp(result, name, module)
            case PatchEmbed():
                builder.patch_embed(module, f"{name}.proj")
            case PatchMerging():
                builder.linear(module, f"{name}.reduction", spec.weights, spec.activations)
            case ClassifierHead():
                builder.linear(module, f"{name}.fc", spec.edge, spec.edge)
    if not isinstance(result, SwinTransformer):
        for name in ("head", "head_dist"):
            if hasattr(result, name):
                builder.linear(result, name, spec.edge, spec.edge)
    builder.check_patterns()
    if not any(isinstance(module, Quantizer) for module in result.modules()):
        raise ValueError(f"nothing to quantize is left in the {type(model).__name__}: keep_float is {spec.keep_float}")
    device = next(model.parameters()).device
    if device.type != "meta":  # there, quantizers stay real: costs and budgets ask for bits, not for weights
        result.to(device)
    if not quiet:
        print(format_placement(placement(result)), file=sys.stderr)
    return result


def _layer_shapes(model: nn.Module) -> Shapes:
    """Input shape, for one image, of every layer that may be swapped; runs on the meta device, so it computes nothing."""
    ghost = copy.deepcopy(model).to("meta").eval()
    shapes: Shapes = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            shapes[name] = tuple(output.shape if isinstance(module, nn.Conv2d) else args[0].shape)

        return hook

    for name, module in ghost.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention, WindowAttention)):
            module.register_forward_hook(note(name))  # type: ignore[arg-type]
    embed = ghost.patch_embed
    height, width = embed.img_size  # type: ignore[union-attr, misc]
    channels = embed.proj.in_channels  # type: ignore[union-attr]
    with torch.no_grad():
        ghost(torch.zeros(1, channels, height, width, device="meta"))  # type: ignore[arg-type]
    return shapes


class _Builder:
    """Makes quantizers from a spec and swaps layers; remembers which patterns matched."""

    def __init__(self, spec: Spec, shapes: Shapes) -> None:
        self.spec, self.shapes = spec, shapes
        self.unmatched = {pattern for pattern, _ in spec.overrides} | set(spec.keep_float)
        self.tensors: list[str] = []

    def check_patterns(self) -> None:
        """Refuse patterns that named nothing: a typo there would silently change nothing."""
        if self.unmatched:
            layers = dict.fromkeys(name.rpartition(".")[0] for name in self.tensors)
            raise ValueError(
                f"nothing matches {sorted(self.unmatched)}; tensors (for overrides) are named like "
                f"{', '.join(self.tensors[:6])}; layers (for keep_float, attention as a whole) like "
                f"{', '.join(list(layers)[:6])}"
            )

    def _kept(self, name: str) -> bool:
        """The layer or something that contains it matches a keep_float pattern."""
        parts = name.split(".")
        containers = [".".join(parts[: end + 1]) for end in range(len(parts))]
        hits = {pattern for pattern in self.spec.keep_float if any(fnmatch(part, pattern) for part in containers)}
        self.unmatched -= hits
        return bool(hits)

    def _quantizer(
        self, name: str, bits: Bits, groups: int, axis: int, *, rows: int = 0, signed: bool = True, offset: bool = False
    ) -> Quantizer:
        """rows > 0 marks a weight with that many output channels."""
        self.tensors.append(name)
        for pattern, override in self.spec.overrides:
            if fnmatch(name, pattern):
                bits = override
                self.unmatched.discard(pattern)
        if rows:
            return self._weight_quantizer(bits, groups, axis, rows)
        return Quantizer(
            bits,
            bit_groups=groups,
            scale_groups=groups,
            axis=axis,
            signed=signed,
            offset=offset,
            bank=self.spec.scale,
            batched=True,
        )

    def _weight_quantizer(self, bits: Bits, groups: int, axis: int, rows: int) -> Quantizer:
        spec = self.spec
        per_channel = axis == 0 and isinstance(spec.weight_scale, PerChannel)
        scale_groups = rows if per_channel else groups
        passes = isinstance(spec.weight_gradient, PassThroughGradient)
        if isinstance(spec.weight_grid, MidRise):
            return MidRiseQuantizer(
                bits, bit_groups=groups, scale_groups=scale_groups, axis=axis, bank=spec.scale, pass_through=passes
            )
        return Quantizer(
            bits,
            bit_groups=groups,
            scale_groups=scale_groups,
            axis=axis,
            signed=True,
            offset=False,
            bank=spec.scale,
            batched=False,
            pass_through=passes,
        )

    def linear(self, parent: nn.Module, name: str, weights: Bits, inputs: Bits) -> None:
        """Swap parent's Linear called like the last part of `name`; Identity (no head) is left."""
        attribute = name.rpartition(".")[2]
        layer = getattr(parent, attribute)
        if isinstance(layer, nn.Identity) or self._kept(name):
            return
        setattr(parent, attribute, self._quant_linear(layer, name, weights, inputs, 1, 0, 1))

    def mlp(self, model: nn.Module, name: str, module: Mlp) -> None:
        """Swap the two layers of an MLP, hidden units in groups."""
        groups, (fc1, fc2) = self.spec.hidden_groups, (f"{name}.fc1", f"{name}.fc2")
        assert isinstance(module.fc1, nn.Linear)  # `support`
        assert isinstance(module.fc2, nn.Linear)
        if module.fc2.in_features % groups:
            raise ValueError(
                f"{name} has {module.fc2.in_features} hidden units, which do not divide into {groups} groups; give "
                "Spec.hidden_groups a divisor of that"
            )
        if groups > 1:
            sort_hidden(module.fc1, module.fc2, model.get_submodule(f"{name.rpartition('.')[0]}.norm2"))
        weights, activations = self.spec.weights, self.spec.activations
        if not self._kept(fc1):
            module.fc1 = self._quant_linear(module.fc1, fc1, weights, activations, groups, 0, 1)
        if not self._kept(fc2):
            module.fc2 = self._quant_linear(module.fc2, fc2, weights, activations, 1, 0, groups, after_gelu=True)

    def _quant_linear(
        self,
        layer: nn.Linear,
        name: str,
        weights: Bits,
        inputs: Bits,
        weight_groups: int,
        weight_axis: int,
        input_groups: int,
        *,
        after_gelu: bool = False,
    ) -> QuantLinear:
        shape = self.shapes[name]
        positions = int(torch.Size(shape[:-1]).numel())
        weight = self._quantizer(f"{name}.weight", weights, weight_groups, weight_axis, rows=layer.out_features)
        signed = not after_gelu
        axis = len(shape) - 1
        inputs_quantizer = self._quantizer(
            f"{name}.input", inputs, input_groups, axis, signed=signed, offset=after_gelu
        )
        return QuantLinear(layer, weight, inputs_quantizer, positions)

    def patch_embed(self, parent: nn.Module, name: str) -> None:
        """Swap the patch embedding's convolution."""
        if self._kept(name):
            return
        conv = parent.proj
        assert isinstance(conv, nn.Conv2d)
        _, _, rows, cols = self.shapes[name]
        weight = self._quantizer(f"{name}.weight", self.spec.edge, 1, 0, rows=conv.out_channels)
        image = self._quantizer(f"{name}.input", self.spec.edge, 1, 0)
        parent.proj = QuantConv2d(conv, weight, image, rows * cols)

    def attention(self, model: nn.Module, name: str, module: Attention | WindowAttention) -> None:
        """Swap a whole attention module."""
        if self._kept(name):
            return
        heads = module.num_heads
        groups = heads if isinstance(self.spec.heads, PerHead) else 1
        weights, activations = self.spec.weights, self.spec.activations
        qkv = self._quant_linear(module.qkv, f"{name}.qkv", weights, activations, 3 * groups, 0, 1)
        columns = 1 if groups > 1 else 0  # one group is the same either way; axis 0 also allows per-channel scales
        proj = self._quant_linear(module.proj, f"{name}.proj", weights, activations, groups, columns, groups)
        quantizers = HeadQuantizers(
            q=self._quantizer(f"{name}.q", activations, groups, 1),
            k=self._quantizer(f"{name}.k", activations, groups, 1),
            v=self._quantizer(f"{name}.v", activations, groups, 1),
            attention=self._quantizer(f"{name}.attention", activations, groups, 1, signed=False),
        )
        windows, tokens, _ = self.shapes[name]
        swapped: nn.Module
        if isinstance(module, WindowAttention):
            swapped = QuantWindowAttention(module, qkv, proj, quantizers, tokens, windows)
        else:
            swapped = QuantAttention(module, qkv, proj, quantizers, tokens)
        model.set_submodule(name, swapped)
