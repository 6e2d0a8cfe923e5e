"""Where a quantized tensor belongs in the pictures: its layer, its role, its head.

    blocks.3.attn.qkv.weight, group 4 of 9           layer 3     k weight        head 1
    layers.1.blocks.0.attn.v, group 2 of 6           layer 1.0   v               head 2
    blocks.3.mlp.fc1.input                           layer 3     mlp.fc1.input   no head
    blocks.3.mlp.fc2.input, group 2 of 4             layer 3     mlp.fc2.input, part 2   no head
    blocks.3.norm1.input, channel 7 of 96            layer 3     norm1.input     no head
    patch_embed.proj.weight                          patch_embed   weight        no head

A tensor with one group per head has the component of `components` as its role; any other one is called by its own name inside
the layer, since there are two LayerNorm outputs in a block. Groups that share a place are channels (`are_channels`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..analysis.components import ROLES, Site, component_of, head_of

BLOCK = re.compile(r"^(.*?blocks\.\d+)\.")  # with its norms, which `components` leaves out
QKV_CODES = "attn.qkv.codes"  # of I-ViT: its groups are q, k and v

HEAD_ROLES = ("q weight", "k weight", "v weight", "q", "k", "v", "attention map", "attention output", "proj weight")
"""Roles that heads own, in the order of the pictures."""


@dataclass(frozen=True)
class Place:
    """Where one group of one tensor belongs; `head` is None for what no head owns."""

    layer: str
    role: str
    head: int | None

    @property
    def label(self) -> str:
        """Layer and head, short enough for an axis."""
        return self.layer if self.head is None else f"{self.layer} h{self.head}"


def place_of(tensor: str, group: int, groups: int) -> Place:
    """The place of a group in a tensor of so many groups; 0: all its channels together."""
    block = BLOCK.match(tensor)
    if block is None:
        layer, _, part = tensor.rpartition(".")
        return Place(layer.removesuffix(".proj").removesuffix(".reduction"), part, None)
    layer, name = ".".join(re.findall(r"\d+", block[1])), tensor[len(block[1]) + 1 :]
    if groups <= 1:
        return Place(layer, name, None)
    if name == QKV_CODES:
        return Place(layer, f"attn.{'qkv'[3 * group // groups]}", None)
    if name not in ROLES:  # a method's own buffer
        return Place(layer, name, group if name.startswith("attn.") else None)
    if name.startswith("mlp."):  # groups of hidden units, or the two regions of TSPTQ-ViT
        return Place(layer, f"{name}, part {group + 1}", None)
    site = Site(tensor, group)
    return Place(layer, component_of(site, groups), head_of(site, groups))


def are_channels(tensor: str, groups: int) -> bool:
    """Whether neither heads nor roles tell the groups of a tensor apart, such as the input of a LayerNorm in FQ-ViT."""
    return groups > 1 and place_of(tensor, 0, groups) == place_of(tensor, groups - 1, groups)
