"""I-ViT where a tensor in front of an exponential reaches further than 8 bits of whole units: the grid is not cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvit.methods import ivit
from qvit.methods.ivit.layers import SIGMOID
from qvit_runtime import interpreter
from toy_models import images, vit


def worst(model: nn.Module, network: nn.Module) -> float:
    """Largest difference of logits, as a share of their range; the program says what the module says."""
    x = images(model, 32)
    with torch.no_grad():
        exact, found = model(x), network(x)
    assert torch.equal(torch.from_numpy(interpreter.run(ivit.freeze(network), x.numpy())), found)
    return float((found - exact).abs().max() / (exact.max() - exact.min()))


def calibrated(model: nn.Module) -> nn.Module:
    network = ivit.quantize(model)
    ivit.calibrate(network, [images(model, 32, seed=7)])
    return network


@pytest.mark.parametrize("factor", [1, 20, 30, 60, 120])
def test_wide_gelu_inputs_keep_their_range(factor: float) -> None:
    """fc1 times a factor, fc2 divided by it; 60 reaches 237, a unit of 1 would end at 75. No warning: nothing is lost."""
    model = vit(depth=1)
    mlp = model.blocks[0].mlp  # type: ignore[union-attr, index]
    with torch.no_grad():
        mlp.fc1.weight.mul_(factor)
        mlp.fc2.weight.div_(factor)
    network = calibrated(model)
    grid = network.blocks[0].mlp.hidden  # type: ignore[union-attr, index]
    assert grid.unit == max(1, round(1 / (SIGMOID * float(grid.scale))))
    assert float(grid.scale) * 127 > 3 * factor
    assert worst(model, network) < 0.04


@pytest.mark.parametrize("factor", [100, 200])
def test_far_scores_are_warned_about_and_not_cut(factor: float) -> None:
    """Cut at 128 they lose 24 and 34 percent of the range."""
    model = vit(depth=1)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:32].mul_(factor**0.5)  # type: ignore[union-attr, index]
    text = r"^blocks\.0\.attn\.scores reaches so far that a code stands for [3-7]\.\d+ powers of e, .* or use another method$"
    with pytest.warns(UserWarning, match=text):
        network = calibrated(model)
    assert worst(model, network) < 0.2
