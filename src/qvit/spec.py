"""What to quantize and how, as frozen values (`values` turns them into tables of recipes and back).

    Spec(weights=LearnedBits(2, 8), activations=LearnedBits(2, 8), heads=PerHead())      Q-ViT: head-wise learned bits
    Spec(weights=LearnedBits(2, 8), activations=LearnedBits(2, 8), heads=PerTensor())    layer-wise learned bits
    Spec(weights=FixedBits(3), activations=FixedBits(3))                                 uniform LSQ
    Spec(..., hidden_groups=4)                                                           bits for parts of an MLP, too
    Spec(..., scale=SingleScale())                                                       ablation: no switchable scale
    Spec(..., scale=SharedScale())                                                       the bank of the authors' code

A value says one thing and is validated where it is made. Which tensor gets which value is decided in `convert`, by role,
and can be overridden by name.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_BITS, MAX_BITS = 2, 8


def check_bits(what: str, bits: float) -> None:
    """Raise ValueError, naming `what`, unless bits is a whole number from MIN_BITS to MAX_BITS."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{what} is {bits}; bit-widths go from {MIN_BITS} to {MAX_BITS}")
    if not isinstance(bits, int):
        raise ValueError(f"{what} is {bits}; it must be a whole number")


@dataclass(frozen=True)
class FixedBits:
    """One bit-width, never changed: plain learned-step-size quantization."""

    bits: int

    def __post_init__(self) -> None:
        check_bits("FixedBits.bits", self.bits)


@dataclass(frozen=True)
class LearnedBits:
    """A bit-width learned in [low, high], starting at `start` (a real number: bits are continuous until the lock)."""

    low: int = 2
    high: int = 8
    start: float = 5.0

    def __post_init__(self) -> None:
        check_bits("LearnedBits.low", self.low)
        check_bits("LearnedBits.high", self.high)
        if self.low >= self.high:
            raise ValueError(
                f"LearnedBits({self.low}, {self.high}): low must be below high; use FixedBits for one width"
            )
        if not self.low <= self.start <= self.high:
            raise ValueError(f"LearnedBits.start is {self.start}; it must lie in [{self.low}, {self.high}]")


@dataclass(frozen=True)
class PerTensor:
    """One group for the whole tensor."""


@dataclass(frozen=True)
class PerHead:
    """One group per attention head: rows of the fused qkv weight, columns of proj, the head axis of q, k, v and so on."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per output channel of a weight (its bits keep the coarser groups of the spec)."""


@dataclass(frozen=True)
class MidTread:
    """Weights on the usual grid, which has a zero level: {-2, -1, 0, 1} s at 2 bits."""


@dataclass(frozen=True)
class MidRise:
    """2-bit weights on a grid without a zero level, {-3, -1, 1, 3} s / 2; wider ones as in MidTread (`midrise`)."""


@dataclass(frozen=True)
class ClippedGradient:
    """Weights outside the range of their grid get no gradient (LSQ, Q-ViT): a clipped weight stays until the scale grows."""


@dataclass(frozen=True)
class PassThroughGradient:
    """Every weight gets the gradient of its quantized self (OFQ, arXiv 2302.02210): a clipped weight can come back."""


@dataclass(frozen=True)
class SwitchableScale:
    """A bank of one learned scale per candidate bit-width and group, shape (groups, 7) for bits 2..8."""


@dataclass(frozen=True)
class SharedScale:
    """One bank of 7 shared by all groups of a tensor, as in the authors' code; a group reads the slot of its bits."""


@dataclass(frozen=True)
class SingleScale:
    """One scale per group, whatever the bits: the ablation without the switchable scale."""


@dataclass(frozen=True)
class SingleRange:
    """One learned range per group: its scale at n bits is half of that at n - 1 bits. Between the two others: one parameter, and
    still a scale that fits when a width is taken up."""


Bits = FixedBits | LearnedBits
Heads = PerTensor | PerHead
WeightScale = PerTensor | PerChannel
WeightGrid = MidTread | MidRise
WeightGradient = ClippedGradient | PassThroughGradient
ScaleBank = SwitchableScale | SharedScale | SingleScale | SingleRange


@dataclass(frozen=True)
class Spec:
    """How to quantize a model.

    weights          bits of the weights of attention and MLP layers
    activations      bits of their inputs, of q, k, v and of the attention map
    heads            groups of everything that has heads
    weight_scale     PerTensor: one scale per group of bits; PerChannel: one per output channel inside each group
    scale            how many scales a group owns
    edge             bits of the patch embedding, of the classifier and of their inputs
    overrides        (pattern, bits) pairs on tensor names as the placement table prints them; the last match wins
    keep_float       patterns on layer names that stay float, such as "head" or "blocks.0.mlp"; a whole attention module at
                     a time, since its two products have no float form inside an integer one
    weight_grid      whether 2-bit weights have a zero level
    weight_gradient  whether weights outside the range of their grid learn
    hidden_groups    into how many groups of equal size the hidden units of an MLP are divided, those that matter most first
                     (`network.hidden`); a group has bits of its own. 1: they all share them, as published
    """

    weights: Bits = LearnedBits()
    activations: Bits = LearnedBits()
    heads: Heads = PerHead()
    weight_scale: WeightScale = PerTensor()
    scale: ScaleBank = SwitchableScale()
    edge: Bits = FixedBits(8)
    overrides: tuple[tuple[str, Bits], ...] = ()
    keep_float: tuple[str, ...] = ()
    weight_grid: WeightGrid = MidTread()
    weight_gradient: WeightGradient = ClippedGradient()
    hidden_groups: int = 1

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            given = getattr(self, name)
            if not isinstance(given, allowed):
                raise ValueError(f"Spec.{name} is {given}; allowed: {', '.join(cls.__name__ for cls in allowed)}")
        if not isinstance(self.hidden_groups, int) or self.hidden_groups < 1:
            raise ValueError(f"Spec.hidden_groups is {self.hidden_groups}; it must be a whole number of at least 1")
        if not isinstance(self.keep_float, tuple) or not all(isinstance(item, str) for item in self.keep_float):
            raise ValueError(
                f"Spec.keep_float is {self.keep_float!r}; it must be a tuple of patterns, such as ('head',)"
            )
        for item in self.overrides:
            if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], CHOICES["weights"])):
                raise ValueError(f"Spec.overrides has {item}; each must be (pattern, FixedBits or LearnedBits)")


CHOICES: dict[str, tuple[type, ...]] = {
    "weights": (FixedBits, LearnedBits),
    "activations": (FixedBits, LearnedBits),
    "heads": (PerTensor, PerHead),
    "weight_scale": (PerTensor, PerChannel),
    "scale": (SwitchableScale, SharedScale, SingleScale, SingleRange),
    "edge": (FixedBits, LearnedBits),
    "weight_grid": (MidTread, MidRise),
    "weight_gradient": (ClippedGradient, PassThroughGradient),
}
