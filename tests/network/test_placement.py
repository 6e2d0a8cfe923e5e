"""The placement table: every quantized tensor, every op that stays float, equal blocks on one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvit.network.convert import quantize
from qvit.network.placement import Placement, format_placement, placement
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import PerChannel, PerTensor, Spec
from toy_models import mix_bits, swin, uniform, vit


def table(model: nn.Module) -> dict[str, Placement]:
    return {row.tensor: row for row in placement(model)}


@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_every_quantized_tensor_has_a_row_with_its_bits(make) -> None:  # type: ignore[no-untyped-def]
    model = mix_bits(quantize(make()))
    rows = [row for row in placement(model) if row.bits is not None]
    quantizers = named_quantizers(model)
    assert [row.tensor for row in rows] == list(quantizers)
    for row in rows:
        assert ([row.bits] if isinstance(row.bits, int) else row.bits) == quantizers[row.tensor].widths
        assert row.reason


def test_sign_and_granularity_in_words() -> None:
    rows = table(quantize(vit()))
    expected = {
        "blocks.0.attn.qkv.weight": ("signed", "per head, rows (q, k, v x 2)"),
        "blocks.0.attn.proj.weight": ("signed", "per head, columns (2)"),
        "blocks.0.attn.proj.input": ("signed", "per head (2)"),
        "blocks.0.attn.attention": ("unsigned", "per head (2)"),
        "blocks.0.mlp.fc2.input": ("unsigned + offset", "per tensor"),
        "head.weight": ("signed", "per tensor"),
    }
    for name, words in expected.items():
        assert (rows[name].sign, rows[name].granularity) == words
    assert "partial sum" in rows["blocks.0.attn.proj.weight"].reason
    assert "bias" in rows["blocks.0.mlp.fc2.input"].reason
    layer_wise = table(quantize(vit(), Spec(heads=PerTensor())))
    assert layer_wise["blocks.0.attn.qkv.weight"].granularity == "per q, k, v, rows"
    channel = table(quantize(vit(), Spec(weight_scale=PerChannel())))
    assert channel["head.weight"].granularity == "scale per output channel"
    assert channel["blocks.0.attn.qkv.weight"].granularity.startswith("scale per output channel, bits per head, rows")


def floats(model: nn.Module) -> set[tuple[str, str]]:
    return {(row.tensor, row.granularity) for row in placement(model) if row.bits is None}


def test_everything_that_stays_float_is_listed() -> None:
    model = vit(depth=1, qk_norm=True, init_values=1.0, reg_tokens=2, pre_norm=True)
    block = {
        ("blocks.0.norm1", "LayerNorm"),
        ("blocks.0.norm2", "LayerNorm"),
        ("blocks.0.attn.q_norm", "QK-norm"),
        ("blocks.0.attn.k_norm", "QK-norm"),
        ("blocks.0.attn.softmax", "softmax"),
        ("blocks.0.mlp.act", "GELU"),
        ("blocks.0.ls1", "LayerScale"),
        ("blocks.0.ls2", "LayerScale"),
        ("blocks.0.residual", "residual adds"),
    }
    others = {
        ("norm_pre", "LayerNorm"),
        ("norm", "LayerNorm"),
        ("biases", "of 5 layers"),  # qkv, proj, fc1, fc2, head; the patch embedding of pre_norm has none
        ("pos_embed", "position embedding"),
        ("cls_token", "prefix token"),
        ("reg_token", "prefix token"),
    }
    assert floats(quantize(model)) == block | others
    assert ("head", "layer") in floats(quantize(model, uniform(8, keep_float=("head",))))
    assert ("layers.0.blocks.0.attn.position_bias", "relative position bias") in floats(quantize(swin()))


def test_equal_blocks_are_one_line() -> None:
    model = quantize(vit(depth=4))
    text = format_placement(placement(model))
    assert "blocks.0-3.attn.q " in text
    assert "blocks.1" not in text
    named_quantizers(model)["blocks.2.attn.q"].set_bits(torch.tensor([3.0, 7.0]))
    lines = {line.split()[0]: line for line in format_placement(placement(model)).splitlines()}
    assert " 5 " in lines["blocks.0-1,3.attn.q"]
    assert " 3 7 " in lines["blocks.2.attn.q"]
    assert "blocks.0-3.attn.k" in lines


def test_columns_are_aligned() -> None:
    lines = format_placement(placement(mix_bits(quantize(swin())))).splitlines()
    start = lines[0].index("sign")
    assert all(line[start - 1] == " " for line in lines)
    assert {line[start:].split()[0] for line in lines[1:3]} == {"signed"}
    assert not any(line.endswith(" ") for line in lines)


def test_a_float_model_has_no_placement() -> None:
    with pytest.raises(ValueError, match="has no quantizers"):
        placement(vit())
