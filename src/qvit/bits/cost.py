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
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..network.attention import QuantAttention, QuantWindowAttention
from ..network.layers import QuantConv2d, QuantLinear
from ..quantizers.quantizer import require_quantized
from ..spec import MIN_BITS, LearnedBits

BitTable = dict[str, Tensor]


@dataclass(frozen=True)
class Product:
    """One integer product of the network: `macs` per image between two named tensors.

    right  weights, keys or values: what the engine packs; no other product has it
    left   what streams through: the input of a layer, queries, the attention map
    """

    name: str
    macs: int
    left: str
    right: str


@dataclass(frozen=True)
class Pairs:
    """Groups that meet in a product, as tensors (pairs,).

    product      which product, its place in `Costs.products`
    share        of the product's multiply-accumulates
    left, right  the groups' places in the flat vector of all bits
    """

    product: Tensor
    share: Tensor
    left: Tensor
    right: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The same on a device."""
        return Pairs(*(t.to(device) for t in (self.product, self.share, self.left, self.right)))


@dataclass(frozen=True)
class Costs:
    """Products and element counts of a quantized model; everything a budget can be computed from.

    products     the integer products
    groups       bit groups of each quantized tensor; its order is that of the flat vector of all bits
    weights      elements of each quantized weight
    activations  elements, per image, of each quantized activation
    midrise      quantized weights whose 2-bit groups have no zero level (`midrise`), which matters to `latency`

    Learning asks for the cost thousands of times, so it is computed on one flat vector b of all bits: a list of pairs
    gives BitOPs = sum c_p b[left_p] b[right_p], and sizes are linear in b.
    """

    products: tuple[Product, ...]
    groups: dict[str, int]
    weights: dict[str, int]
    activations: dict[str, int]
    midrise: frozenset[str] = frozenset()

    def product_gbitops(self, product: Product, bits: BitTable) -> Tensor:
        """GBitOPs of one product, a scalar tensor."""
        return product.macs / 1e9 * (bits[product.left] * bits[product.right]).mean()

    def gbitops(self, bits: BitTable) -> Tensor:
        """GBitOPs of the whole model, a scalar tensor."""
        flat = self.flat(bits)
        pairs = self.pairs.to(flat.device)
        return (self._gmacs.to(flat.device) * flat[pairs.left] * flat[pairs.right]).sum()

    def kib(self, bits: BitTable) -> Tensor:
        """KiB of the packed weights."""
        return self._linear(self._shares(self.weights), bits) / 8 / 1024

    def average_weight_bits(self, bits: BitTable) -> Tensor:
        """Mean bits of a quantized weight element."""
        return self._linear(self._shares(self.weights), bits) / sum(self.weights.values())

    def average_activation_bits(self, bits: BitTable) -> Tensor:
        """Mean bits of a quantized activation element."""
        return self._linear(self._shares(self.activations), bits) / sum(self.activations.values())

    def flat(self, bits: BitTable) -> Tensor:
        """The flat vector of all bits that `pairs` counts in."""
        return torch.cat([bits[name] for name in self.groups])

    @cached_property
    def is_midrise(self) -> Tensor:
        """Which entries of the flat vector belong to weights of `midrise`, bool (all groups,)."""
        return torch.cat([torch.full((groups,), name in self.midrise) for name, groups in self.groups.items()])

    def _linear(self, shares: Tensor, bits: BitTable) -> Tensor:
        flat = self.flat(bits)
        return (shares.to(flat.device) * flat).sum()

    def _shares(self, elements: dict[str, int]) -> Tensor:
        """Elements that each entry of the flat vector stands for, (all groups,)."""
        per_group = [
            torch.full((groups,), elements.get(name, 0) / groups, dtype=torch.float64, device="cpu")
            for name, groups in self.groups.items()
        ]
        return torch.cat(per_group)

    @cached_property
    def pairs(self) -> Pairs:
        """Every pair of groups that meet; a single group meets each of the other operand's."""
        first = dict(zip(self.groups, accumulate(self.groups.values(), initial=0), strict=False))
        numbers: list[Tensor] = []
        shares: list[Tensor] = []
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for number, product in enumerate(self.products):
            count = max(self.groups[product.left], self.groups[product.right])
            numbers.append(torch.full((count,), number, device="cpu"))
            shares.append(torch.full((count,), 1 / count, dtype=torch.float64, device="cpu"))
            for name, places in ((product.left, lefts), (product.right, rights)):
                places.append(first[name] + torch.arange(count, device="cpu") % self.groups[name])
        return Pairs(torch.cat(numbers), torch.cat(shares), torch.cat(lefts), torch.cat(rights))

    @cached_property
    def _gmacs(self) -> Tensor:
        """Multiply-accumulates of each pair, in 10^9."""
        macs = torch.tensor([product.macs / 1e9 for product in self.products], dtype=torch.float64, device="cpu")
        return macs[self.pairs.product] * self.pairs.share


def costs(model: nn.Module) -> Costs:
    """Read products and sizes off a quantized model. Raises ValueError when the model has no quantizers."""
    quantizers = require_quantized(model)
    groups = {name: quantizer.bit_groups for name, quantizer in quantizers.items()}
    midrise = frozenset(name for name, quantizer in quantizers.items() if quantizer.rise(MIN_BITS))
    products, weights, activations = [], {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantConv2d)):
            elements = module.weight.numel()
            products.append(Product(name, module.positions * elements, f"{name}.input", f"{name}.weight"))
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
    return Costs(tuple(products), groups, weights, activations, midrise)


def bits_in_force(model: nn.Module) -> BitTable:
    """The whole-number bit-widths, as float64 tensors (bit groups,) in main memory: some accelerators (MPS) have no float64."""
    return {name: quantizer.bit_width.cpu().double() for name, quantizer in require_quantized(model).items()}


def uniform_bits(model: nn.Module, weight_bits: int, activation_bits: int) -> BitTable:
    """The bits of the same model where all that it learns has these widths, what is fixed as it is.

    What is locked was learned: the answer is the same before and after training.
    """
    weights, table = costs(model).weights, bits_in_force(model)
    for name, quantizer in require_quantized(model).items():
        if isinstance(quantizer.bits_spec, LearnedBits):
            table[name] = torch.full_like(table[name], weight_bits if name in weights else activation_bits)
    return table


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
