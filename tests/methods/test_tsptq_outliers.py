"""O-2SF: the fold changes nothing in float, finds what was planted, and knows who reads which LayerNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qvit.calibration.calibrate import float_forward
from qvit.methods.tsptq import TSPTQ, quantize
from qvit.methods.tsptq.outliers import Fold, apply_fold, find_fold, folded_sample, norm_readers
from qvit.methods.tsptq.samples import collect
from toy_models import FAMILIES, images, swin, vit


def channels(width: int, *outliers: int) -> Tensor:
    return torch.isin(torch.arange(width), torch.tensor(outliers))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fold_leaves_the_float_function_as_it_is(family: str) -> None:
    """Bit for bit: factors are powers of two. Every LayerNorm is folded, and that did change weights."""
    model = FAMILIES[family]()
    quantized, x = quantize(model, TSPTQ(), quiet=True), images(model, 2)
    with torch.no_grad(), float_forward(quantized):
        before = quantized(x)
    folded = []
    for name, norm, readers in norm_readers(quantized):
        apply_fold(Fold(name, channels(len(norm.weight), 1, 5, 6), 3), norm, readers)
        folded += [f"{name}.weight", *(f"{reader}.weight" for reader in readers)]
    with torch.no_grad(), float_forward(quantized):
        assert torch.equal(quantized(x), before)
    own, theirs = quantized.state_dict(), model.state_dict()
    changed = {name for name in theirs if not torch.equal(own[name], theirs[name])}
    assert set(folded) <= changed <= {*folded, *(name.removesuffix("weight") + "bias" for name in folded)}


def test_who_reads_a_layer_norm() -> None:
    def pairs(model: nn.Module) -> dict[str, list[str]]:
        return {name: list(readers) for name, _, readers in norm_readers(quantize(model, TSPTQ(), quiet=True))}

    block = {"blocks.0.norm1": ["blocks.0.attn.qkv"], "blocks.0.norm2": ["blocks.0.mlp.fc1"]}
    assert pairs(vit(depth=1)) == {**block, "norm": ["head"]}
    assert pairs(vit(depth=1, global_pool="avg")) == {**block, "fc_norm": ["head"]}
    assert pairs(vit(depth=1, num_classes=0)) == block
    assert pairs(vit(depth=1, norm_layer=lambda width, **_: nn.LayerNorm(width, elementwise_affine=False))) == {}
    assert pairs(FAMILIES["deit_distilled"]())["norm"] == ["head", "head_dist"]
    found = pairs(swin())
    assert found["layers.1.downsample.norm"] == ["layers.1.downsample.reduction"]
    assert found["norm"] == ["head.fc"]


def planted(gain: float) -> nn.Module:
    """A ViT whose first LayerNorm reaches `gain` times further in channels 3 and 11; its columns make up for it."""
    model = vit()
    outliers = channels(16, 3, 11)
    with torch.no_grad():
        norm, layer = model.blocks[0].norm1, model.blocks[0].attn.qkv  # type: ignore[union-attr, index]
        norm.weight.copy_(torch.where(outliers, gain * norm.weight, norm.weight))
        norm.bias.copy_(torch.where(outliers, gain * norm.bias, norm.bias))
        layer.weight.copy_(torch.where(outliers, layer.weight / gain, layer.weight))
    return quantize(model, TSPTQ(8, 4), quiet=True)


@pytest.mark.parametrize("gain", [16.0, 32.0])
def test_planted_outlier_channels_are_found_with_their_factor(gain: float) -> None:
    model = planted(gain)
    samples = collect(model, images(model, 16))
    name, norm, readers = next(norm_readers(model))
    fold = find_fold(name, readers, samples.layers)
    assert (fold.norm, torch.nonzero(fold.channels).flatten().tolist()) == ("blocks.0.norm1", [3, 11])
    assert gain / 2 <= 2**fold.shift <= gain * 2
    before = norm.weight[3].item()
    apply_fold(fold, norm, readers)
    assert norm.weight[3].item() == before / 2**fold.shift
    again = collect(model, images(model, 16)).layers["blocks.0.attn.qkv"]  # the same rows: the same seed
    expected = folded_sample(fold, samples.layers["blocks.0.attn.qkv"])
    assert torch.equal(again.inputs, expected.inputs)
    assert torch.allclose(again.importance, expected.importance, rtol=1e-3, atol=1e-12)


def test_nothing_is_folded_where_no_channel_stands_out() -> None:
    """Channels of equal reach: no candidate but the one without a fold."""
    model = vit()
    with torch.no_grad():
        model.blocks[0].norm1.weight.fill_(1.0)  # type: ignore[union-attr, index]
        model.blocks[0].norm1.bias.zero_()  # type: ignore[union-attr, index]
    quantized = quantize(model, TSPTQ(), quiet=True)
    samples = collect(quantized, images(quantized, 8))
    name, _, readers = next(norm_readers(quantized))
    fold = find_fold(name, readers, samples.layers)
    assert fold.shift == 0
    assert not fold.channels.any()
