"""Subjects of an analysis: which quantized tensors, and which heads of them, are switched together.

The smallest thing that can be quantized or left float is a *site*, one group of one tensor: `("blocks.3.attn.v", 1)` is v of
head 1 in block 3. A subject is a named set of sites:

    component    one role in all layers: "GELU output", "attention map", "k weight", ...
    part         all of attention, all of the MLPs
    layer        everything in one block
    head         everything that belongs to one head of one block

The rows of the fused qkv weight are 3 H groups: the heads of q, then of k, then of v (`convert`); its three thirds are three
components. Patch merging (Swin), patch embedding and classifier belong to no block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from ..quantizers.quantizer import named_quantizers

Kind = Literal["component", "part", "layer", "head"]
Selection = Mapping[str, frozenset[int]]
"""Tensor name -> the groups of it that are meant; tensors that are not named are not meant."""


class Site(NamedTuple):
    """One group of one quantized tensor."""

    tensor: str
    group: int


@dataclass(frozen=True)
class Subject:
    """A named set of sites."""

    kind: Kind
    name: str
    sites: tuple[Site, ...]

    @property
    def key(self) -> str:
        """Kind and name in one string, unique among subjects."""
        return f"{self.kind} {self.name}"

    @property
    def selection(self) -> Selection:
        """Tensor name -> groups."""
        return select(self.sites)


QKV = "attn.qkv.weight"
ROLES: dict[str, tuple[str, ...]] = {  # the end of a tensor's name -> the components that divide its groups equally
    "patch_embed.proj.input": ("image",),
    "patch_embed.proj.weight": ("patch embedding weight",),
    "attn.qkv.input": ("LayerNorm output",),
    QKV: ("q weight", "k weight", "v weight"),
    "attn.q": ("q",),
    "attn.k": ("k",),
    "attn.v": ("v",),
    "attn.attention": ("attention map",),
    "attn.proj.input": ("attention output",),
    "attn.proj.weight": ("proj weight",),
    "mlp.fc1.input": ("LayerNorm output",),
    "mlp.fc1.weight": ("fc1 weight",),
    "mlp.fc2.input": ("GELU output",),
    "mlp.fc2.weight": ("fc2 weight",),
    "downsample.reduction.input": ("patch merging",),
    "downsample.reduction.weight": ("patch merging",),
    "head.input": ("classifier",),
    "head.weight": ("classifier",),
    "head.fc.input": ("classifier",),
    "head.fc.weight": ("classifier",),
    "head_dist.input": ("classifier",),
    "head_dist.weight": ("classifier",),
}
EDGES = ("image", "patch embedding weight", "classifier")
"""Components outside the blocks that qvit keeps at 8 bits unless it is told otherwise."""
PARTS = {"attn": "attention as a whole", "mlp": "MLP as a whole"}
BLOCK = re.compile(r"^(.*?blocks\.\d+)\.(attn|mlp)\.")


def select(sites: Iterable[Site]) -> Selection:
    """Sites by tensor."""
    groups: dict[str, set[int]] = defaultdict(set)
    for site in sites:
        groups[site.tensor].add(site.group)
    return {tensor: frozenset(members) for tensor, members in groups.items()}


def all_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of a quantized model, in the order of the model."""
    return tuple(
        Site(name, group)
        for name, quantizer in named_quantizers(model).items()
        for group in range(quantizer.bit_groups)
    )


def component_of(site: Site, groups: int) -> str:
    """The component of a site in a tensor of so many groups."""
    for ending, components in ROLES.items():
        if f".{site.tensor}".endswith(f".{ending}"):
            return components[site.group * len(components) // groups]
    raise ValueError(f"{site.tensor} has no role in components.ROLES; add it there")


def head_of(site: Site, groups: int) -> int | None:
    """The head that a site belongs to; None for what is shared by all heads."""
    if ".attn." not in f".{site.tensor}" or site.tensor.endswith("attn.qkv.input"):
        return None
    return site.group % (groups // 3) if site.tensor.endswith(QKV) else site.group


def subjects(model: nn.Module) -> list[Subject]:
    """All subjects of a quantized model with head-wise groups: components in the order of the network, parts, layers, heads."""
    groups = {name: quantizer.bit_groups for name, quantizer in named_quantizers(model).items()}
    found: dict[tuple[Kind, str], list[Site]] = {
        ("component", component): [] for components in ROLES.values() for component in components
    }
    for site in all_sites(model):
        count = groups[site.tensor]
        found["component", component_of(site, count)].append(site)
        block = BLOCK.match(site.tensor)
        if block:
            found.setdefault(("part", PARTS[block[2]]), []).append(site)
            found.setdefault(("layer", block[1]), []).append(site)
            head = head_of(site, count)
            if head is not None:
                found.setdefault(("head", f"{block[1]} head {head}"), []).append(site)
    order: tuple[Kind, ...] = ("component", "part", "layer", "head")
    return [
        Subject(kind, name, tuple(sites))
        for wanted in order
        for (kind, name), sites in found.items()
        if kind == wanted and sites
    ]
