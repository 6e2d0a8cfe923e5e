"""I-ViT end to end on toy models: the module is its program bit for bit, and everything that is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime
from qvit.freezing.emitter import FreezeError
from qvit.methods import ivit
from qvit.methods.ivit import IViT
from qvit.methods.ivit.observation import Observation
from qvit.network.placement import format_placement
from qvit.network.support import UnsupportedModelError
from qvit.quantizers.quantizer import UncalibratedError
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit_runtime import integer_ops as i
from qvit_runtime import interpreter
from qvit_runtime.check import check
from qvit_runtime.integer_only import prove
from toy_models import FAMILIES, images, swin, vit
from toy_training import toy_data


def dead() -> nn.Module:
    """Rows of zeros, as pruning leaves them: k of head 0, one hidden channel, one class."""
    model = vit()
    with torch.no_grad():
        for layer, rows in ((model.blocks[0].attn.qkv, slice(16, 24)), (model.blocks[1].mlp.fc1, 5), (model.head, 2)):  # type: ignore[union-attr, index]
            layer.weight[rows] = 0  # type: ignore[union-attr, index, operator]
            layer.bias[rows] = 0  # type: ignore[union-attr, index, operator]
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: FAMILIES[name] for name in ("deit", "deit_distilled", "deit3", "dinov2_registers", "swin", "swin_padded")},
    "four heads": lambda: vit(num_heads=4, embed_dim=32),
    "mean": lambda: vit(global_pool="avg", init_values=1.0, pre_norm=True),
    "mean of normed": lambda: vit(global_pool="avg", fc_norm=False),
    "no position": lambda: vit(pos_embed="none"),
    "features": lambda: vit(num_classes=0),
    "no final norm": lambda: vit(final_norm=False),  # as vit_intern300m_* and *_radio_v3
    "features of no final norm": lambda: vit(final_norm=False, num_classes=0),
    "oblong": lambda: vit(img_size=(16, 24)),
    "dead rows": dead,
}


def calibrated(model: nn.Module, config: IViT | None = None) -> nn.Module:
    network = ivit.quantize(model, config)
    ivit.calibrate(network, [images(model, 16, seed=7)])
    return network.eval()


@pytest.mark.parametrize("family", MODELS)
def test_the_float_walk_is_timms_forward_pass(family: str) -> None:
    """Head axes, windows, tokens, merging: one wiring serves all meanings, so this pins it to timm's."""
    model = MODELS[family]()
    x = images(model)
    with torch.no_grad():
        assert torch.allclose(ivit.quantize(model).run(Observation(), x), model(x), atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_the_module_is_its_program_bit_for_bit(family: str) -> None:
    model = MODELS[family]()
    network, x = calibrated(model), images(model)
    program = ivit.freeze(network)
    check(program)
    prove(program)
    with torch.no_grad():
        output, exact = network(x), model(x)
    assert np.array_equal(interpreter.run(program, x.numpy()), output.numpy())
    assert torch.equal(network.train()(x), output)
    assert (output - exact).abs().max() < 0.08 * (exact.max() - exact.min())


@pytest.mark.parametrize(("make", "bits"), [*((vit, bits) for bits in range(2, 9)), (swin, 2), (swin, 5)])
def test_all_bits(make: Callable[[], nn.Module], bits: int) -> None:
    network, x = calibrated(make(), IViT(bits, bits)), images(make())
    program = ivit.freeze(network)
    assert np.array_equal(interpreter.run(program, x.numpy()), network(x).detach().numpy())
    weights = {name: set(weight.bits.ravel().tolist()) for name, weight in program.weights.items()}
    edges = {"patch_embed.proj.weight", "head.weight", "head.fc.weight"}
    assert all(found == {8 if name in edges else bits} for name, found in weights.items())


def test_every_head_stays_in_its_own_rows_and_columns() -> None:
    model = vit(num_heads=4, embed_dim=32, depth=1)
    rows = slice(2 * 32 + 2 * 8, 2 * 32 + 3 * 8)  # v of head 2
    attention = model.blocks[0].attn  # type: ignore[union-attr, index]
    with torch.no_grad():
        weight = attention.qkv.weight[rows].clone()
        attention.qkv.weight[64:].zero_()
        attention.qkv.bias[64:].zero_()
        attention.qkv.weight[rows] = weight
    trace = interpreter.trace(ivit.freeze(calibrated(model)), images(model).numpy())
    merged = trace["blocks.0.attn.output"]
    assert np.abs(merged).max(axis=(0, 1)).nonzero()[0].tolist() == list(range(16, 24))


def test_sums_of_a_wide_layer_stay_exact() -> None:
    """Beyond the 2^21 of the fast rescaling."""
    model = vit(embed_dim=64, mlp_ratio=20.0, depth=1)
    with torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            block.mlp.fc2.weight.fill_(0.01)
            block.mlp.fc1.bias.fill_(3.0)
    network, x = calibrated(model), images(model)
    program = ivit.freeze(network)
    sums = interpreter.trace(program, x.numpy())["blocks.0.mlp.fc2.sums"]
    assert np.abs(sums).max() > 2**21
    assert np.array_equal(interpreter.run(program, x.numpy()), network(x).detach().numpy())


def test_float_keys_are_timms_and_the_float_model_is_left_alone() -> None:
    model = swin()
    before = copy.deepcopy(model.state_dict())
    network = calibrated(model)
    added = set(network.state_dict()) - set(before)
    assert set(before) <= set(network.state_dict())
    assert all(name.endswith(".scale") for name in added)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert network.no_weight_decay() == model.no_weight_decay()


def test_artifact_and_state_dict_round_trips(tmp_path: Path) -> None:
    model = vit()
    network, x = calibrated(model), images(model)
    program = ivit.freeze(network, name="toy", metadata={"method": "ivit"})
    qvit_runtime.save(program, tmp_path / "toy.qvit")
    again = qvit_runtime.load(tmp_path / "toy.qvit")
    assert again.ops == program.ops
    assert (again.name, again.metadata) == ("toy", {"method": "ivit"})
    assert np.array_equal(interpreter.run(again, x.numpy()), interpreter.run(program, x.numpy()))
    other = ivit.quantize(model)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))


def test_fit_trains_it_as_it_trains_the_float_model_and_leaves_the_scales() -> None:
    data, config = toy_data(), FitConfig(epochs=10, learning_rate=2e-3, ema_decay=0.0)
    model = vit(depth=1)
    network = ivit.quantize(model)
    ivit.calibrate(network, [batch for batch, _ in data.eval])
    before = copy.deepcopy(network.state_dict())
    top1 = []
    for module in (model, network):
        result = fit(module, data.train, config=config, order=data.order, evaluation=data.eval, quiet=True)
        assert result.top1 is not None
        top1.append(result.top1)
    assert min(top1) > 45  # 20 by chance and before training
    assert abs(top1[0] - top1[1]) < 5
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in network.named_parameters()}
    x = data.eval[0][0]
    assert np.array_equal(interpreter.run(ivit.freeze(network), x.numpy()), network(x).detach().numpy())


def test_forward_is_exact_under_autocast() -> None:
    network, x = calibrated(vit()), images(vit())
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), expected)


def test_layer_scale_folds_into_multipliers_of_either_sign() -> None:
    model = vit(init_values=1.0)
    with torch.no_grad():
        model.blocks[0].ls1.gamma[::2] = -0.5  # type: ignore[union-attr, index]
    program = ivit.freeze(calibrated(model))
    signs = np.sign(program.integers["blocks.0.attended.right.multiplier"])
    assert signs.tolist() == [-1, 1] * 8
    assert not any(isinstance(op, qvit_runtime.program.Multiply) for op in program.ops)


def test_placement_has_no_float_row() -> None:
    rows = ivit.placement(calibrated(vit(), IViT(4, 5)))
    assert all(isinstance(row.bits, int) for row in rows)
    bits = {row.tensor: row.bits for row in rows}
    assert (bits["blocks.0.attn.qkv.weight"], bits["blocks.0.attn.q"], bits["blocks.1.mlp.active"]) == (4, 5, 5)
    assert (bits["blocks.0.attn.attention"], bits["head.weight"], bits["blocks.0.output"]) == (8, 8, 16)
    text = format_placement(rows)
    assert "Shiftmax" in text
    assert "float" not in text


def test_grids_of_the_program_are_those_of_the_placement() -> None:
    network = calibrated(swin(), IViT(6, 6))
    program = ivit.freeze(network)
    for row in ivit.placement(network):
        if row.tensor in program.buffers:
            assert program.buffers[row.tensor].grid.bits == (row.bits,), row.tensor  # type: ignore[union-attr]
    assert sum(isinstance(op, i.Shiftmax) for op in program.ops) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "bit-widths go from 2 to 8"), (9, "bit-widths go from 2 to 8"), (4.0, "it must be a whole number")],
)
@pytest.mark.parametrize("field", ["weight_bits", "activation_bits"])
def test_options_are_checked(field: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=rf"IViT\.{field} is {value}; {text}"):
        IViT(**{field: value})  # type: ignore[arg-type]


def test_refusals() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"blocks\.0\.attn has QK-norm, for which I-ViT has no integer form"
    ):
        ivit.quantize(vit(qk_norm=True))
    network = ivit.quantize(vit())
    with pytest.raises(
        UncalibratedError, match=r"patch_embed\.image has no scale yet: run qvit\.methods\.ivit\.calibrate"
    ):
        network(images(vit()))
    with pytest.raises(UncalibratedError, match="has no scale yet"):
        ivit.freeze(network)
    with pytest.raises(ValueError, match="calibration got no images: the loader is empty"):
        ivit.calibrate(network, [])
    with pytest.raises(
        TypeError, match=r"VisionTransformer is not an I-ViT model; make one with methods\.ivit\.quantize"
    ):
        ivit.freeze(vit())
    gray = calibrated(vit(in_chans=1))
    with pytest.raises(FreezeError, match=r"1 channels.*give a Preprocess"):
        ivit.freeze(gray)
    check(ivit.freeze(gray, qvit_runtime.program.Preprocess(size=(16, 16), mean=(0.5,), std=(0.5,))))


def test_a_swin_without_its_last_norm() -> None:
    model = swin()
    model.norm = nn.Identity()  # type: ignore[assignment]
    x, network = images(model, 8), calibrated(model)
    with torch.no_grad():
        exact, found = model(x), network(x)
    assert (found - exact).abs().max() < 0.1 * (exact.max() - exact.min())
    assert np.array_equal(interpreter.run(ivit.freeze(network), x.numpy()), found.numpy())
