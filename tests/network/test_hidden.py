"""Groups of hidden units: the order changes nothing, the important units come first, and every group has its own bits and scale."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import qvit_runtime
from qvit.bits.cost import cost
from qvit.freezing.freeze import freeze
from qvit.freezing.integer_layers import folded_bias, integer_weight
from qvit.methods import METHODS
from qvit.network.convert import quantize
from qvit.network.hidden import importance, sort_hidden
from qvit.network.placement import placement
from qvit.onnx_export import export_onnx
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, LearnedBits, MidRise, PerChannel, Spec
from qvit_runtime.engine import kernel_paths
from toy_models import calibrated, images, lively, mix_bits, swin, uniform, vit

GROUPS = 4
MODELS = {"vit": vit, "swin": swin, "no_biases": lambda: vit(proj_bias=False, init_values=1.0)}


class Toy(nn.Module):
    """LayerNorm, fc1, GELU, fc2 with random weights."""

    def __init__(self, width: int, hidden: int, bias: bool, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


@given(st.integers(2, 12), st.integers(1, 24), st.booleans(), st.booleans(), st.integers(0, 99))
def test_the_order_of_hidden_units_changes_nothing(
    width: int, hidden: int, bias: bool, affine: bool, seed: int
) -> None:
    toy = lively(Toy(width, hidden, bias, affine), seed).double()
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before, weights = toy(x), toy.fc1.weight.clone()
    sort_hidden(toy.fc1, toy.fc2, toy.norm)
    assert torch.allclose(toy(x), before, rtol=0, atol=1e-12)
    assert torch.equal(toy.fc1.weight.sort(0).values, weights.sort(0).values)
    found = importance(toy.fc1, toy.fc2, toy.norm)
    assert (found[:-1] >= found[1:]).all()


def test_importance_is_the_variance_that_a_unit_adds() -> None:
    """Against 200,000 draws of what LayerNorm is taken to hand on."""
    toy = lively(Toy(16, 8, True, True), 3)
    z = torch.randn(200_000, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        active = nn.functional.gelu(toy.fc1(z * toy.norm.weight + toy.norm.bias))
    drawn = active.double().var(0) * toy.fc2.weight.double().square().sum(0)
    assert torch.allclose(importance(toy.fc1, toy.fc2, toy.norm), drawn, rtol=0.03)


def test_the_units_of_a_group_share_its_bits_and_nobody_elses() -> None:
    """Rows of fc1 and channels in front of fc2, from the most important on: with an axis swapped other levels would appear."""
    spec = Spec(hidden_groups=GROUPS, weight_scale=PerChannel())
    model = calibrated(vit(), spec)
    mlp = model.blocks[1].mlp  # type: ignore[union-attr, index]
    widths = torch.tensor([5.0, 4.0, 3.0, 2.0])
    mlp.fc1.weight_quantizer.set_bits(widths)
    mlp.fc2.input_quantizer.set_bits(widths)
    x = torch.randn(400, 17, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = mlp.fc1.weight_quantizer(mlp.fc1.weight).chunk(GROUPS)
        columns = mlp.fc2.input_quantizer(x).chunk(GROUPS, dim=-1)
    for bits, weight, activation in zip((5, 4, 3, 2), rows, columns, strict=True):
        assert max(len(row.unique()) for row in weight) <= 2**bits
        assert len(activation.unique()) == 2**bits
    assert len(rows[0][0].unique()) > 4
    found = importance(mlp.fc1, mlp.fc2, model.blocks[1].norm2)  # type: ignore[union-attr, index]
    assert (found[:-1] >= found[1:]).all()


def test_a_bit_of_one_group_costs_its_share() -> None:
    """17 tokens, 16 channels, 64 hidden units: 4 products of a bit each by hand."""
    model = calibrated(vit(depth=1), Spec(LearnedBits(2, 8, 2.0), LearnedBits(2, 8, 2.0), hidden_groups=GROUPS))
    quantizers = named_quantizers(model)
    before = cost(model).gbitops
    quantizers["blocks.0.mlp.fc2.input"].set_bits(torch.tensor([3.0, 2.0, 2.0, 2.0]))
    assert cost(model).gbitops - before == pytest.approx(17 * 16 * 16 * 2 / 1e9, rel=1e-9)
    before = cost(model).gbitops
    quantizers["blocks.0.mlp.fc1.weight"].set_bits(torch.tensor([2.0, 2.0, 4.0, 2.0]))
    assert cost(model).gbitops - before == pytest.approx(17 * 16 * 16 * 2 * 2 / 1e9, rel=1e-9)


@pytest.mark.parametrize(
    "weight_grid", [{}, {"weight_scale": PerChannel(), "weight_grid": MidRise()}], ids=["", "2bit"]
)
@pytest.mark.parametrize("name", MODELS)
def test_module_interpreter_and_engine_agree(name: str, weight_grid: dict, tmp_path: Path) -> None:
    model = mix_bits(calibrated(MODELS[name](), Spec(hidden_groups=GROUPS, **weight_grid)))
    program = freeze(model)
    qvit_runtime.check(program)
    x = images(model, 8)
    with torch.no_grad():
        module = METHODS["qvit"].exact(model)(x.double()).numpy()
    integers = qvit_runtime.run(program, x.numpy())
    spread = np.ptp(module)
    close = (np.abs(integers - module) < 1e-5 * spread).all(1)  # near ties may fall either way
    assert close.mean() >= 0.75
    for path, (built, supported) in kernel_paths().items():
        if built and supported:
            logits = qvit_runtime.Engine(program, path=path)(x.numpy())
            assert (np.abs(logits - integers) < 1e-5 * spread).all(1).mean() >= 0.75
    if name == "vit":
        assert export_onnx(program, tmp_path / "m.onnx").value_error < 1e-6


def test_offsets_of_all_groups_fold_into_the_bias() -> None:
    model = calibrated(vit(), uniform(4, hidden_groups=GROUPS))
    layer = model.blocks[0].mlp.fc2  # type: ignore[union-attr, index]
    with torch.no_grad():
        weight = layer.weight_quantizer(layer.weight).double()
        offset = layer.input_quantizer.offset_at(layer.input_quantizer.bit_width).double()
        expected = layer.bias.double() + weight @ offset.repeat_interleave(weight.shape[1] // GROUPS)
    assert len(offset.unique()) == GROUPS
    assert np.allclose(folded_bias(layer, integer_weight(layer)), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_eight_bits_stay_close_to_float_and_the_float_model_as_it_was() -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    x = images(model, 8)
    with torch.no_grad():
        exact, fake = model(x), calibrated(model, uniform(8, hidden_groups=8))(x)
    assert (fake - exact).abs().max() <= 0.04 * (exact.max() - exact.min())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_placement_table_names_the_groups() -> None:
    rows = {row.tensor: row for row in placement(quantize(vit(), Spec(hidden_groups=GROUPS), quiet=True))}
    assert rows["blocks.0.mlp.fc1.weight"].granularity == "per group of hidden units, rows (4)"
    assert rows["blocks.0.mlp.fc2.input"].granularity == "per group of hidden units (4)"
    assert (
        rows["blocks.0.mlp.fc2.input"].reason == "one factor per partial sum, 4 of them; the offset goes into the bias"
    )
    assert rows["blocks.0.attn.proj.input"].granularity == "per head (2)"


def test_a_layer_that_is_kept_float_and_a_ghost() -> None:
    kept = quantize(vit(), Spec(FixedBits(4), FixedBits(4), hidden_groups=GROUPS, keep_float=("blocks.0.mlp.fc1",)))
    assert type(kept.blocks[0].mlp.fc1) is nn.Linear  # type: ignore[union-attr, index]
    ghost = quantize(vit().to("meta"), Spec(hidden_groups=GROUPS), quiet=True)
    assert named_quantizers(ghost)["blocks.1.mlp.fc2.input"].bit_groups == GROUPS


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (0, r"Spec.hidden_groups is 0; it must be a whole number of at least 1"),
        (2.0, r"Spec.hidden_groups is 2.0; it must be a whole number"),
        (5, r"blocks.0.mlp has 64 hidden units, which do not divide into 5 groups; give Spec.hidden_groups a divisor"),
    ],
)
def test_impossible_numbers_of_groups(groups: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        quantize(vit(), Spec(hidden_groups=groups))
