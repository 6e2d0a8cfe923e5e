"""placement(): what of a quantized model is integer, with which bits, and what stays float.

One row per quantized tensor: bits, sign, groups, and how its scale leaves the integer product. Every scale can, for the
product is done on codes alone and its result multiplied by one number per output afterwards:

    weight per tensor, per output channel, per head of q, k, v      the groups are output rows
    weight of proj per head                                         in as many parts as there are heads: its groups are input
                                                                    columns, so each head has its own partial sum
    q, k, v, attention map per head                                 the products of heads are separate anyway
    input with one scale                                            the same number for all outputs
    input with an offset                                            offset times row sums of W goes into the bias
    weight of fc1, input of fc2 per group of hidden units           output rows; partial sums

One row per kind of float operation follows, so that nothing is float without being said, and one per operation that a
program does not have, because it goes into the numbers of another (FOLDED).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import LayerScale
from torch import nn

from ..quantizers.quantizer import Quantizer, require_quantized
from .attention import QuantAttention, QuantWindowAttention
from .layers import QuantConv2d, QuantLinear

FOLDED: Literal["folded"] = "folded"
Bits = int | list[int]


@dataclass(frozen=True)
class Placement:
    """One line of the table.

    tensor       name of a quantized tensor, or of what stays float
    bits         one width, one per group, None for float, or FOLDED
    sign         "signed", "unsigned", "unsigned + offset", or "" where there are no codes
    granularity  what a group is, in words; where there are no codes what it is
    reason       how the scale leaves the product, or why it is float, or where it went
    """

    tensor: str
    bits: Bits | Literal["folded"] | None
    sign: str
    granularity: str
    reason: str


def placement(model: nn.Module) -> list[Placement]:
    """Rows of all quantized tensors in the order of the model, then of everything that stays float.

    Raises ValueError for a model without quantizers.
    """
    quantized = [_quantized_row(name, quantizer) for name, quantizer in require_quantized(model).items()]
    return [*quantized, *_float_rows(model)]


def _quantized_row(name: str, quantizer: Quantizer) -> Placement:
    widths = quantizer.widths
    sign = "signed" if quantizer.signed else "unsigned + offset" if quantizer.offset is not None else "unsigned"
    kind, reason = _granularity(name, quantizer)
    return Placement(name, widths[0] if len(widths) == 1 else widths, sign, kind, reason)


def _granularity(name: str, quantizer: Quantizer) -> tuple[str, str]:
    """(what a group is, how its scale leaves the integer product)"""
    groups, scales = quantizer.bit_groups, quantizer.scale_groups
    part = name.rpartition(".")[2]
    if part == "weight":
        bits = _weight_groups(name, groups, quantizer.axis)
        if scales > groups:
            per_row = f"scale per output channel, bits {bits}" if groups > 1 else "scale per output channel"
            return per_row, "one factor per output"
        if quantizer.axis == 1 and groups > 1:
            return bits, f"one factor per partial sum, {groups} of them"
        return bits, "one factor per output"
    if part == "input":
        owner = "group of hidden units" if ".fc2." in name else "head"
        kind, reason = "per tensor", "one factor"
        if groups > 1:
            kind, reason = f"per {owner} ({groups})", f"one factor per partial sum, {groups} of them"
        return kind, reason if quantizer.offset is None else f"{reason}; the offset goes into the bias"
    return (
        f"per head ({groups})" if groups > 1 else "per tensor"
    ), "one factor per head" if groups > 1 else "one factor"


def _weight_groups(name: str, groups: int, axis: int) -> str:
    if groups == 1:
        return "per tensor"
    if ".qkv." in f".{name}":
        return f"per head, rows (q, k, v x {groups // 3})" if groups > 3 else "per q, k, v, rows"
    if ".fc1." in name:
        return f"per group of hidden units, rows ({groups})"
    return f"per head, {'columns' if axis else 'rows'} ({groups})"


def _float_rows(model: nn.Module) -> Iterator[Placement]:
    def row(tensor: str, what: str, reason: str) -> Placement:
        return Placement(tensor, None, "", what, reason)

    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not isinstance(module, (QuantLinear, QuantConv2d)):
            yield row(name, "layer", "kept float by the spec: freeze refuses it")
    for name, module in modules.items():
        if isinstance(module, nn.LayerNorm):
            yield row(name, "QK-norm" if name.endswith(("q_norm", "k_norm")) else "LayerNorm", "float op")
        elif isinstance(module, (QuantAttention, QuantWindowAttention)):
            yield row(f"{name}.softmax", "softmax", "float op")
            if isinstance(module, QuantWindowAttention):
                yield row(f"{name}.position_bias", "relative position bias", "added before the softmax")
        elif isinstance(module, nn.GELU):
            yield row(name, "GELU", "float op")
        elif isinstance(module, LayerScale):
            yield row(name, "LayerScale", "float op")
        elif _is_block(module):
            yield row(f"{name}.residual", "residual adds", "the stream between blocks is float")
    biases = [name for name, layer in modules.items() if _has_quantized_bias(layer)]
    if biases:
        yield row("biases", f"of {len(biases)} layers", "added to the rescaled product")
    if not isinstance(model, SwinTransformer) and getattr(model, "pos_embed", None) is not None:
        yield row("pos_embed", "position embedding", "added to the tokens")
    for token in ("cls_token", "dist_token", "reg_token"):
        if getattr(model, token, None) is not None:
            yield row(token, "prefix token", "a constant")


def _is_block(module: nn.Module) -> bool:
    return hasattr(module, "attn") and hasattr(module, "mlp")


def _has_quantized_bias(layer: nn.Module) -> bool:
    return isinstance(layer, (QuantLinear, QuantConv2d)) and layer.bias is not None


# The table.


def format_placement(rows: list[Placement]) -> str:
    """An aligned text table; consecutive blocks that differ in nothing but their number are one line, `blocks.0-11.attn.q`."""
    lines = [("tensor", "bits", "sign", "groups", "why")]
    for row in _summarised(rows):
        lines.append((row.tensor, _bits_text(row.bits), row.sign, row.granularity, row.reason))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(text)


def _bits_text(bits: Bits | str | None) -> str:
    """4, or 3 5 2 per group, one number when all groups are equal; float, folded."""
    if bits is None:
        return "float"
    if isinstance(bits, (int, str)):
        return str(bits)
    return str(bits[0]) if len(set(bits)) == 1 else " ".join(str(b) for b in bits)


NUMBER = re.compile(r"\.(\d+)(?=\.)")


def _summarised(rows: list[Placement]) -> list[Placement]:
    """Rows whose names differ in the last number only, and are equal otherwise, become one at the place of the first.

    Last number: the block of a ViT (`blocks.3.`), the block inside a stage of a Swin (`layers.2.blocks.3.`).
    """
    groups: dict[tuple[tuple[str, str], str], list[tuple[int, Placement]]] = {}
    for row in rows:
        numbers = list(NUMBER.finditer(row.tensor))
        where = numbers[-1].span(1) if numbers else (0, 0)
        number = int(row.tensor[slice(*where)]) if numbers else -1
        pattern = (row.tensor[: where[0]], row.tensor[where[1] :])
        groups.setdefault((pattern, repr(replace(row, tensor=""))), []).append((number, row))
    result = []
    for ((before, after), _), members in groups.items():
        first = members[0][1]
        name = first.tensor if len(members) == 1 else f"{before}{_ranges([number for number, _ in members])}{after}"
        result.append(replace(first, tensor=name))
    return result


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2,5'"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
