"""What a quantized model costs: BitOPs, average bits, KiB. A pure function of shapes and bits.

    BitOPs = sum over products of multiply-accumulates * mean over groups (bits of one operand * bits of the other)

per image (arXiv 2201.07703, and its code). A product is a linear layer (weight x input) or one of the two attention
products (both operands are activations, per head). Where only one operand has groups, the other's single width meets each
of them; where both have (proj: weight columns and inputs, per head) the product is taken head by head. The authors' code
multiplies the means there. LayerNorm, softmax, GELU, bias and residual additions are not counted.

Bits come in as a dict of tensors, one per quantized tensor: floats with gradients while learning (the cost is then
differentiable), whole numbers for the exact cost. DeiT-Tiny at 4/4 with 8-bit first and last layers is 21.455 GBitOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import QuantAttention, QuantWindowAttention
from .layers import QuantConv2d, QuantLinear
from .quantizer import require_quantized

BitTable = dict[str, Tensor]


@dataclass(frozen=True)
class Product:
    """One integer product of the network: `macs` per image between two named tensors."""

    name: str
    macs: int
    left: str
    right: str


@dataclass(frozen=True)
class Costs:
    """Products and element counts of a quantized model; everything a budget can be computed from.

    products     the integer products
    weights      elements of each quantized weight
    activations  elements, per image, of each quantized activation
    """

    products: tuple[Product, ...]
    weights: dict[str, int]
    activations: dict[str, int]

    def product_gbitops(self, product: Product, bits: BitTable) -> Tensor:
        """GBitOPs of one product, a scalar tensor."""
        return product.macs / 1e9 * (bits[product.left] * bits[product.right]).mean()

    def gbitops(self, bits: BitTable) -> Tensor:
        """GBitOPs of the whole model, a scalar tensor."""
        return torch.stack([self.product_gbitops(product, bits) for product in self.products]).sum()

    def kib(self, bits: BitTable) -> Tensor:
        """KiB of the packed weights."""
        return torch.stack([bits[name].mean() * elements for name, elements in self.weights.items()]).sum() / 8 / 1024

    def average_weight_bits(self, bits: BitTable) -> Tensor:
        """Mean bits of a quantized weight element."""
        return self._average(self.weights, bits)

    def average_activation_bits(self, bits: BitTable) -> Tensor:
        """Mean bits of a quantized activation element."""
        return self._average(self.activations, bits)

    def _average(self, elements: dict[str, int], bits: BitTable) -> Tensor:
        total = sum(elements.values())
        return torch.stack([bits[name].mean() * count for name, count in elements.items()]).sum() / total


def costs(model: nn.Module) -> Costs:
    """Read products and sizes off a quantized model. Raises ValueError when the model has no quantizers."""
    require_quantized(model)
    products, weights, activations = [], {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantConv2d)):
            elements = module.weight.numel()
            products.append(Product(name, module.positions * elements, f"{name}.weight", f"{name}.input"))
            weights[f"{name}.weight"] = elements
            activations[f"{name}.input"] = module.positions * (elements // module.weight.shape[0])
        elif isinstance(module, (QuantAttention, QuantWindowAttention)):
            width = module.num_heads * module.head_dim
            macs = module.windows * module.tokens**2 * width
            products.append(Product(f"{name}.query_key", macs, f"{name}.q", f"{name}.k"))
            products.append(Product(f"{name}.attention_value", macs, f"{name}.attention", f"{name}.v"))
            for part in ("q", "k", "v"):
                activations[f"{name}.{part}"] = module.windows * module.tokens * width
            activations[f"{name}.attention"] = module.windows * module.tokens**2 * module.num_heads
    return Costs(tuple(products), weights, activations)


def bits_in_force(model: nn.Module) -> BitTable:
    """The whole-number bit-widths, as float64 tensors (bit groups,)."""
    return {name: quantizer.bit_width.double() for name, quantizer in require_quantized(model).items()}


@dataclass(frozen=True)
class CostSummary:
    """The exact cost of a model as it stands."""

    gbitops: float
    average_weight_bits: float
    average_activation_bits: float
    kib: float
    products: dict[str, float]


def cost(model: nn.Module) -> CostSummary:
    """Exact cost of a quantized model with the bits in force; `products` maps each product to its GBitOPs."""
    shape, bits = costs(model), bits_in_force(model)
    return CostSummary(
        gbitops=float(shape.gbitops(bits)),
        average_weight_bits=float(shape.average_weight_bits(bits)),
        average_activation_bits=float(shape.average_activation_bits(bits)),
        kib=float(shape.kib(bits)),
        products={product.name: float(shape.product_gbitops(product, bits)) for product in shape.products},
    )
