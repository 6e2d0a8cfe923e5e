"""Gates: what is chosen is quantized, everything else is passed through bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from qvit.analysis.components import Site, select
from qvit.analysis.gates import Gate, gates_of, install_gates, open_gates
from qvit.quantizers.quantizer import named_quantizers
from toy_models import calibrated, images, uniform, vit

HEADS, DIM = 2, 16


def test_a_gate_acts_on_its_groups_alone() -> None:
    """For every tensor and every group: chunks of the quantizer's axis are Q(x) where chosen and x elsewhere."""
    model = calibrated(vit(), uniform(3), count=8)
    seen: dict[str, Tensor] = {}
    handles = [
        quantizer.register_forward_pre_hook(lambda _, args, n=name: seen.setdefault(n, args[0]))
        for name, quantizer in named_quantizers(model).items()
    ]
    with torch.no_grad():
        model(images(model))
    for handle in handles:
        handle.remove()
    checked = 0
    for name, gate in install_gates(model).items():
        x, quantizer = seen[name], gate.quantizer
        assert gate(x) is x
        open_gates({name: gate}, {name: frozenset(range(quantizer.bit_groups))})
        assert torch.equal(gate(x), quantizer(x))
        for group in range(quantizer.bit_groups) if quantizer.bit_groups > 1 else ():
            open_gates({name: gate}, {name: frozenset({group})})
            found = gate(x).chunk(quantizer.bit_groups, quantizer.axis)
            quantized, plain = (t.chunk(quantizer.bit_groups, quantizer.axis) for t in (quantizer(x), x))
            for other, chunk in enumerate(found):
                assert torch.equal(chunk, (quantized if other == group else plain)[other])
                assert not torch.equal(quantized[other], plain[other])
            checked += 1
    assert checked == 2 * (6 + 6 * 2)  # two blocks: the six groups of qkv, and two heads of six other tensors


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_rows_of_the_fused_weight(part: str, head: int) -> None:
    """The site of a head is what one gets by quantizing the head's own rows in the float model by hand."""
    float_model = vit()
    model = calibrated(float_model, uniform(2), count=8)
    quantizer = named_quantizers(model)["blocks.1.attn.qkv.weight"]
    size, group = DIM // HEADS, "qkv".index(part) * HEADS + head
    rows = slice("qkv".index(part) * DIM + head * size, "qkv".index(part) * DIM + (head + 1) * size)
    by_hand = copy.deepcopy(float_model)
    weight = by_hand.blocks[1].attn.qkv.weight  # type: ignore[union-attr, index]
    with torch.no_grad():
        scale = quantizer.scale_at(quantizer.bit_width)[group]
        weight[rows] = (weight[rows] / scale).clamp(-2, 1).round() * scale
    open_gates(install_gates(model), select([Site("blocks.1.attn.qkv.weight", group)]))
    pixels = images(model)
    with torch.no_grad():
        expected, found, plain = by_hand(pixels), model(pixels), float_model(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2


def test_gates_are_found_again_and_all_closed_is_float() -> None:
    float_model = vit()
    model = calibrated(float_model, uniform(2), count=8)
    names = list(named_quantizers(model))
    gates = install_gates(model)
    assert list(gates) == names == list(gates_of(model))
    assert all(isinstance(gate, Gate) and not gate.groups for gate in gates.values())
    with torch.no_grad():
        torch.testing.assert_close(model(images(model)), float_model(images(model)), rtol=1e-4, atol=1e-4)
