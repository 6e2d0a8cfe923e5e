"""quantize(): what it adds, what it leaves alone, and what its patterns mean."""

from __future__ import annotations

import pytest
import torch

from qvit.calibration.calibrate import calibrate, float_forward
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import Quantizer, named_quantizers, require_quantized
from qvit.spec import FixedBits, LearnedBits, PerChannel, PerTensor, Spec
from toy_models import FAMILIES, images, swin, uniform, vit

QUANTIZER_KEYS = ("bits", "bit_width", "log_scale", "offset", "_extra_state")


@pytest.mark.parametrize("family", FAMILIES)
def test_float_keys_are_unchanged_and_load(family: str) -> None:
    model = FAMILIES[family]()
    quantized = quantize(model)
    state = quantized.state_dict()
    floats = {key for key in state if "_quantizer." not in key}
    assert floats == set(model.state_dict())
    assert {key.rpartition(".")[2] for key in set(state) - floats} <= set(QUANTIZER_KEYS)

    other = {key: torch.randn_like(t) for key, t in model.state_dict().items()}
    result = quantized.load_state_dict(other, strict=False)
    assert not result.unexpected_keys
    assert all("_quantizer." in key for key in result.missing_keys)
    for key, t in other.items():
        assert torch.equal(quantized.state_dict()[key], t), key
    model.load_state_dict(other, strict=True)
    with torch.no_grad(), float_forward(quantized):
        assert torch.allclose(quantized(images(model)), model(images(model)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_quantization_the_network_is_the_float_network(family: str) -> None:
    model = FAMILIES[family]()
    quantized, x = quantize(model).eval(), images(model)
    with torch.no_grad(), float_forward(quantized):
        assert torch.allclose(quantized(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_original_is_untouched() -> None:
    model = vit()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    types = [type(module) for module in model.modules()]
    quantized = quantize(model)
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.add_(1.0)
    assert [type(module) for module in model.modules()] == types
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key]), key


def test_train_mode_and_device_and_requires_grad_are_kept() -> None:
    model = vit().train()
    model.pos_embed.requires_grad_(False)  # type: ignore[union-attr, operator]
    quantized = quantize(model)
    assert all(module.training for module in quantized.modules())
    frozen = {name for name, p in quantized.named_parameters() if not p.requires_grad and "quantizer" not in name}
    assert frozen == {"pos_embed"}


def test_names_of_a_block() -> None:
    names = [name for name in named_quantizers(quantize(vit())) if name.startswith("blocks.1")]
    attention = ["qkv.weight", "qkv.input", "proj.weight", "proj.input", "q", "k", "v", "attention"]
    mlp = ["fc1.weight", "fc1.input", "fc2.weight", "fc2.input"]
    assert names == [f"blocks.1.attn.{part}" for part in attention] + [f"blocks.1.mlp.{part}" for part in mlp]


def test_groups_axes_and_signs_of_a_head_wise_vit() -> None:
    quantizers = named_quantizers(quantize(vit()))
    table = {  # bit groups, axis, signed, offset
        "patch_embed.proj.weight": (1, 0, True, False),
        "patch_embed.proj.input": (1, 0, True, False),
        "blocks.0.attn.qkv.weight": (6, 0, True, False),
        "blocks.0.attn.qkv.input": (1, 2, True, False),
        "blocks.0.attn.q": (2, 1, True, False),
        "blocks.0.attn.k": (2, 1, True, False),
        "blocks.0.attn.v": (2, 1, True, False),
        "blocks.0.attn.attention": (2, 1, False, False),
        "blocks.0.attn.proj.weight": (2, 1, True, False),
        "blocks.0.attn.proj.input": (2, 2, True, False),
        "blocks.0.mlp.fc1.weight": (1, 0, True, False),
        "blocks.0.mlp.fc1.input": (1, 2, True, False),
        "blocks.0.mlp.fc2.weight": (1, 0, True, False),
        "blocks.0.mlp.fc2.input": (1, 2, False, True),
        "head.weight": (1, 0, True, False),
        "head.input": (1, 1, True, False),
    }
    for name, expected in table.items():
        q = quantizers[name]
        assert (q.bit_groups, q.axis, q.signed, q.offset is not None) == expected, name


def test_edges_are_eight_bits_and_fixed() -> None:
    for name, quantizer in named_quantizers(quantize(swin())).items():
        edge = name.startswith(("patch_embed", "head"))
        assert quantizer.is_learned != edge, name
        assert not edge or quantizer.widths == [8]


def test_layer_wise() -> None:
    groups = {name: q.bit_groups for name, q in named_quantizers(quantize(vit(), Spec(heads=PerTensor()))).items()}
    assert {name.rpartition("attn.")[2] for name, count in groups.items() if count != 1} == {"qkv.weight"}
    assert groups["blocks.0.attn.qkv.weight"] == 3  # q, k and v are three tensors, fused or not


def test_per_channel_scales_keep_the_groups_of_bits() -> None:
    quantizers = named_quantizers(quantize(vit(), Spec(weight_scale=PerChannel())))
    assert (quantizers["blocks.0.attn.qkv.weight"].bit_groups, quantizers["blocks.0.attn.qkv.weight"].scale_groups) == (
        6,
        48,
    )
    assert quantizers["blocks.0.mlp.fc1.weight"].scale_groups == 64
    assert quantizers["blocks.0.attn.proj.weight"].scale_groups == 2  # its groups are columns
    assert quantizers["blocks.0.mlp.fc1.input"].scale_groups == 1


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("head", {"head"}),
        ("patch_embed.proj", {"patch_embed.proj"}),
        ("blocks.0.mlp.fc2", {"blocks.0.mlp.fc2"}),
        ("blocks.0.mlp", {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}),
        ("blocks.0.mlp.*", {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}),
        ("blocks.1.attn", {"blocks.1.attn", "blocks.1.attn.qkv", "blocks.1.attn.proj"}),
        ("blocks.*.mlp.fc1", {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}),
    ],
)
def test_keep_float(pattern: str, gone: set[str]) -> None:
    every = {name.rpartition(".")[0] for name in named_quantizers(quantize(vit()))}
    left = {name.rpartition(".")[0] for name in named_quantizers(quantize(vit(), Spec(keep_float=(pattern,))))}
    assert every - left == gone


def test_keep_float_of_a_swin_head_is_called_like_that_of_a_vit() -> None:
    assert "head.fc.weight" not in named_quantizers(quantize(swin(), Spec(keep_float=("head",))))


def test_a_kept_layer_computes_in_float() -> None:
    model = vit()
    kept = quantize(model, uniform(2, keep_float=("blocks.*", "patch_embed")))
    assert list(named_quantizers(kept)) == ["head.weight", "head.input"]
    features: list[torch.Tensor] = []
    for network in (model, kept):
        network.norm.register_forward_hook(lambda _, args, output: features.append(output))  # type: ignore[union-attr]
    calibrate(kept, [images(model)])
    with torch.no_grad():
        model(images(model))
        kept.eval()(images(model))
    assert torch.allclose(features[0], features[-1], atol=1e-6)


def test_overrides_the_last_match_wins() -> None:
    spec = Spec(
        overrides=(("blocks.*", FixedBits(6)), ("blocks.1.attn.*", LearnedBits(3, 4, 3.5)), ("head.*", FixedBits(5)))
    )
    widths = {name: (q.widths[0], q.is_learned) for name, q in named_quantizers(quantize(vit(), spec)).items()}
    assert widths["blocks.0.attn.q"] == (6, False)
    assert widths["blocks.1.attn.q"] == (4, True)
    assert widths["blocks.1.mlp.fc1.weight"] == (6, False)
    assert widths["head.weight"] == (5, False)
    assert widths["patch_embed.proj.weight"] == (8, False)


@pytest.mark.parametrize(
    "spec",
    [
        Spec(overrides=(("blocks.0.attn.qkv.wieght", FixedBits(8)),)),
        Spec(keep_float=("block.0.mlp",)),
        Spec(keep_float=("blocks.0.attn.qkv",)),  # attention is kept as a whole
        Spec(keep_float=("head",), overrides=(("head.weight", FixedBits(4)),)),  # no such tensor any more
    ],
    ids=["override", "keep_float", "inside_attention", "override_of_a_kept_layer"],
)
def test_a_pattern_that_matches_nothing_is_refused(spec: Spec) -> None:
    with pytest.raises(ValueError, match=r"nothing matches \['(block|head).*patch_embed\.proj.*attention as a whole"):
        quantize(vit(), spec)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"nothing to quantize is left in the VisionTransformer: keep_float is \('\*',\)"
    ):
        quantize(vit(), Spec(keep_float=("*",)))


def test_a_float_model_is_not_quantized() -> None:
    with pytest.raises(ValueError, match=r"has no quantizers; call qvit\.quantize\(model, spec\) first"):
        require_quantized(vit())


def test_masks_are_refused() -> None:
    quantized = quantize(vit())
    attention = quantized.blocks[0].attn  # type: ignore[union-attr, index]
    with pytest.raises(NotImplementedError, match="takes no attn_mask and is not causal"):
        attention(torch.zeros(1, 17, 16), is_causal=True)


def test_every_layer_that_multiplies_has_quantizers() -> None:
    for model in (vit(), swin()):
        for name, module in quantize(model).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                assert isinstance(module.weight_quantizer, Quantizer), name


def test_quantize_prints_its_placement_table_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    quantize(vit())
    shown = capsys.readouterr()
    assert "blocks.0-1.attn.qkv.weight" in shown.err
    assert shown.out == ""
    quantize(vit(), quiet=True)
    assert capsys.readouterr().err == ""
