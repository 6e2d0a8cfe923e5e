"""FQ-ViT: its choices from their formulas, its module against the interpreter, and what it refuses."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qvit.calibration.observers import Extremes
from qvit.calibration.range_observers import LeastSquares
from qvit.methods import fqvit
from qvit.methods.fqvit.integer import SoftmaxNumbers, log_int_softmax, probabilities
from qvit.methods.fqvit.modules import IntegerLayerNorm, LogIntSoftmax
from qvit.network.support import UnsupportedModelError
from qvit.quantizers.quantizer import UncalibratedError, named_quantizers
from qvit.settings.values import from_values, to_values
from qvit_runtime import interpreter
from qvit_runtime.artifact import load, save
from qvit_runtime.check import check
from qvit_runtime.integer_ops import LogIntSoftmax as LogIntSoftmaxOp
from qvit_runtime.integer_ops import ShiftAttentionValue
from qvit_runtime.program import AttentionValue
from toy_models import FAMILIES, images, swin, vit
from truth import compare

MAKE = {"vit": vit, "swin": swin, "distilled": FAMILIES["deit_distilled"], "average": lambda: vit(global_pool="avg")}


@lru_cache
def _ready(name: str) -> nn.Module:
    float_model = MAKE[name]()
    model = fqvit.quantize(float_model, fqvit.FQViT(), quiet=True)
    fqvit.calibrate(model, images(float_model, 24, seed=7).split(8))
    return model.eval()


def ready(name: str) -> nn.Module:
    """Calibrated at 8/8/4 once per run; a copy of its own for every caller."""
    return copy.deepcopy(_ready(name))


# Power-of-two factors.


def test_every_channel_gets_the_factor_that_its_range_needs() -> None:
    """Channels that fill 1/8, 1/4, 1/2 and all of the range: exponents 0, 1, 2, 3, and each channel's error is that of its step."""
    draw = torch.Generator().manual_seed(0)
    x = (2 * torch.rand(4000, 4, generator=draw) - 1) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    x[0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    x[1] = -x[0]
    extremes = Extremes(1, -1)
    extremes.update(x)
    choice = fqvit.FactorChoice(extremes, 8)
    for part in x.split(1000):
        choice.update(part)
    assert choice.best().tolist() == [0, 1, 2, 3]
    assert float(choice.step) == pytest.approx(16 / 255 / 8)
    values = x.double().numpy()
    for exponent in range(4):
        step = float(choice.step) * 2**exponent
        codes = np.clip(np.rint(values / step) + float(choice.zero), 0, 255)
        error = np.square(values - (codes - float(choice.zero)) * step).sum(0)
        assert np.allclose(choice.errors.numpy()[:, exponent], error)  # type: ignore[union-attr]


def test_the_input_grid_is_powers_of_two_of_one_step_with_one_zero() -> None:
    norm = ready("vit").blocks[0].norm1  # type: ignore[union-attr, index]
    assert isinstance(norm, IntegerLayerNorm)
    quantizer = norm.input_quantizer
    scale, offset = quantizer.scale_at(quantizer.bit_width).double(), quantizer.offset_at(quantizer.bit_width).double()  # type: ignore[union-attr]
    step = scale / torch.exp2(norm.exponent.double())
    assert torch.allclose(step, step[:1].expand_as(step), rtol=1e-6)
    assert torch.allclose(-offset / scale, norm.zero.double().expand_as(scale), atol=1e-4)
    assert len(norm.exponent.unique()) > 1  # the toy has channels of different size


def test_integer_layer_norm_is_layer_norm_to_a_code() -> None:
    """Against float LayerNorm of the very values that the codes stand for: half a code, and a quarter for the mean and the
    root, which are whole numbers of steps (the root of 16 channels is about 1000 of them, so at most 1/1000 is lost)."""
    model = ready("vit")
    norm = model.blocks[1].norm2  # type: ignore[union-attr, index]
    x = torch.randn(3, 17, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = nn.functional.layer_norm(
            norm.input_quantizer(x).double(), (16,), norm.weight.double(), norm.bias.double()
        )
        scale = float(norm.output_quantizer.scale_at(norm.output_quantizer.bit_width))
        steps = (norm(x).double() - exact.clamp(-128 * scale, 127 * scale)).abs() / scale
    assert float(steps.max()) < 0.75


# Log-int-softmax.


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_log2_codes_by_python_integers(bits: int) -> None:
    numbers = SoftmaxNumbers.of_scale(0.07)
    assert numbers == SoftmaxNumbers(10, 38, 569)
    x = torch.randint(-128, 128, (40, 9), generator=torch.Generator().manual_seed(bits))
    for row, codes in zip(x.tolist(), log_int_softmax(x, numbers, bits).tolist(), strict=True):
        e = []
        for score in row:
            d = min(max(row) - score, 30 * numbers.ln2)
            q, r = d // numbers.ln2, -(d % numbers.ln2)
            e.append((r * (r + numbers.linear) + numbers.constant) << (30 - q))
        for mine, code in zip(e, codes, strict=True):
            ratio = (2 * sum(e) + mine) // (2 * mine)
            f = ratio.bit_length() - 1
            assert code == min(f + (2 * ratio >= 3 * 2**f), 2**bits - 1)


@pytest.mark.parametrize(("others", "code"), [(1, 1), (2, 2), (5, 3), (10, 3), (11, 4), (22, 4), (23, 5)])
def test_the_threshold_of_the_module_is_one_and_a_half(others: int, code: int) -> None:
    """N equal scores have sum e / e = N: code f below 1.5 x 2^f, f + 1 from there on."""
    attention = LogIntSoftmax(8)(torch.zeros(1, 1, 1, others + 1), torch.tensor([0.1]), None, None)
    assert (attention == 2.0**-code).all()


def test_the_last_code_is_zero_and_far_codes_are_dropped() -> None:
    assert probabilities(torch.arange(4), 2).tolist() == [1, 0.5, 0.25, 0]
    assert probabilities(torch.tensor([14, 15]), 4).tolist() == [2.0**-14, 0]
    assert probabilities(torch.tensor([20, 21, 255]), 8).tolist() == [2.0**-20, 0, 0]


# The module and its program.


@pytest.mark.parametrize("make", [vit, swin])
def test_without_log2_the_attention_map_has_a_plain_grid(make) -> None:
    """The published 8/8/8: a float softmax on `attention_bits` unsigned bits, everything else as with log2."""
    float_model = make()
    model = fqvit.quantize(float_model, fqvit.FQViT(8, 8, 5, log2=False), quiet=True).eval()
    fqvit.calibrate(model, images(float_model, 24, seed=7).split(8))
    program = fqvit.freeze(model)
    check(program)
    maps = [op for op in program.ops if isinstance(op, AttentionValue)]
    assert maps
    assert not any(isinstance(op, (LogIntSoftmaxOp, ShiftAttentionValue)) for op in program.ops)
    for op in maps:
        grid = program.buffers[op.attention].grid
        assert grid is not None
        assert (grid.bits, grid.signed) == ((5,), False)
    assert all(count.wrong == 0 for count in compare(program, model, images(float_model, 3, seed=5)).values())
    rows = {row.tensor: row for row in fqvit.placement(model)}
    assert any(name.endswith(".softmax") and row.bits is None for name, row in rows.items())


@pytest.mark.parametrize("name", MAKE)
def test_module_and_interpreter_agree(name: str) -> None:
    """Codes equal but for near ties; those of a LayerNorm equal whenever those of its input are, so all of them here."""
    model, x = ready(name), images(ready(name), 3, seed=5)
    program = fqvit.freeze(model)
    check(program)
    counts = compare(program, model, x)
    total = sum(count.codes for count in counts.values())
    assert all(count.wrong == 0 for count in counts.values()), counts
    assert sum(count.different for count in counts.values()) <= 0.0005 * total
    norms = {norm: name for name, norm in model.named_modules() if isinstance(norm, IntegerLayerNorm)}
    assert {f"{name}.input" for name in norms.values()} <= set(counts)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for norm, where in norms.items():
        norm.register_forward_hook(lambda _, args, output, w=where: seen.__setitem__(w, (args[0], output)))
    with torch.no_grad():
        model(x)
    for norm, where in norms.items():
        values, output = seen[where]
        op = next(op for op in program.ops if op.output == f"{where}.output")
        grid = program.buffers[f"{where}.input"].grid
        codes = interpreter.quantize(values.numpy().reshape(len(x), *program.buffers[f"{where}.input"].shape), grid)  # type: ignore[arg-type]
        ours = interpreter.EXECUTE[type(op)](program, op, {op.input: codes})  # type: ignore[union-attr]
        theirs = (output / norm.output_quantizer.scale_at(norm.output_quantizer.bit_width)).round()
        assert np.array_equal(ours.ravel(), theirs.detach().numpy().astype(int).ravel()), where


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_attention_of_the_program_is_that_of_the_module(name: str) -> None:
    """Powers of two from equal scores, position bias and mask included, and the product with v: bit for bit."""
    model = ready(name)
    program, x = fqvit.freeze(model), images(model, 2, seed=5)
    softmax, product = {}, {}
    for where, module in model.named_modules():
        if isinstance(module, LogIntSoftmax):
            module.register_forward_hook(lambda m, args, out, w=where: softmax.__setitem__(w, (m.bits, args, out)))
        elif where.endswith(".product"):
            module.register_forward_hook(lambda m, args, out, w=where: product.__setitem__(w, (args, out)))
    with torch.no_grad():
        model(x)
    for where, (bits, (scores, scale, *_), attention) in softmax.items():
        name = where.removesuffix(".softmax")
        shape = program.buffers[f"{name}.scores"].shape
        op = next(op for op in program.ops if op.output == f"{name}.attention")
        codes = (scores / scale).round().long().numpy().reshape(2, *shape)
        log2 = interpreter.EXECUTE[type(op)](program, op, {f"{name}.scores": codes})
        expected = probabilities(torch.from_numpy(log2).long(), bits)
        assert torch.equal(attention.reshape(expected.shape), expected), where
        (_, v, v_scale), mixed = product[f"{name}.product"]
        op = next(op for op in program.ops if op.output == f"{name}.mixed")
        v_codes = (v / v_scale).round().long().numpy().reshape(2, *program.buffers[f"{name}.v"].shape)
        values = interpreter.EXECUTE[type(op)](program, op, {f"{name}.attention": log2, f"{name}.v": v_codes})
        assert np.array_equal(values.ravel(), mixed.numpy().ravel()), where


def test_stays_near_the_float_network() -> None:
    for name, tolerance in (("vit", 0.12), ("swin", 0.12)):
        float_model, x = MAKE[name](), images(MAKE[name](), 8, seed=5)
        with torch.no_grad():
            exact, ours = float_model(x), ready(name)(x)
        assert (ours - exact).abs().max() <= tolerance * (exact.max() - exact.min()), name


@pytest.mark.parametrize("head", [0, 1])
def test_a_head_moves_its_own_columns_only(head: int) -> None:
    """v of one head is rows 2 C + 8 h of the fused weight and columns 8 h of proj's input (16 channels, 2 heads)."""
    seen: list[Tensor] = []
    for change in (False, True):
        attention = ready("vit").blocks[0].attn  # type: ignore[union-attr, index]
        attention.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        if change:
            with torch.no_grad():
                attention.qkv.weight[32 + 8 * head : 32 + 8 * head + 8] *= 0.5
        with torch.no_grad():
            attention(torch.randn(2, 17, 16, generator=torch.Generator().manual_seed(0)))
    moved = (seen[0] != seen[1]).any(0).any(0)
    assert moved[8 * head : 8 * head + 8].all()
    assert not moved[8 * (1 - head) : 8 * (1 - head) + 8].any()


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_is_finite(bits: int) -> None:
    float_model = vit(depth=1)
    model = fqvit.quantize(float_model, fqvit.FQViT(bits, bits, bits), quiet=True)
    fqvit.calibrate(model, [images(float_model, 8)])
    x = images(float_model, 4, seed=3)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x)).all()
    program = fqvit.freeze(model)
    check(program)
    assert np.isfinite(interpreter.run(program, x.numpy())).all()


@pytest.mark.parametrize("make", [lambda: vit(num_classes=0), lambda: vit(init_values=1.0, pre_norm=True)])
def test_other_shapes_of_vit_freeze(make) -> None:  # type: ignore[no-untyped-def]
    """Without a head the features are values; norm_pre and LayerScale have their places."""
    float_model = make()
    model = fqvit.quantize(float_model, quiet=True)
    fqvit.calibrate(model, [images(float_model, 8)])
    program, x = fqvit.freeze(model), images(float_model, 4)
    check(program)
    with torch.no_grad():
        exact = float_model(x).numpy()
    assert np.abs(interpreter.run(program, x.numpy()) - exact).max() < 0.2 * (exact.max() - exact.min())


def test_artifact_round_trip(tmp_path: Path) -> None:
    model = ready("swin")
    program = fqvit.freeze(model, name="toy", metadata={"method": "FQ-ViT"})
    save(program, tmp_path / "model.qvit")
    again, x = load(tmp_path / "model.qvit"), images(model, 2).numpy()
    assert (again.ops, again.name, again.metadata) == (program.ops, "toy", {"method": "FQ-ViT"})
    assert np.array_equal(interpreter.run(again, x), interpreter.run(program, x))


# State, placement, errors.


def test_float_keys_are_those_of_timm_and_calibration_changes_no_weight() -> None:
    float_state = vit().state_dict()
    state = ready("vit").state_dict()
    assert all(torch.equal(state[key], value) for key, value in float_state.items())


def test_scores_have_a_step_that_i_exp_can_use() -> None:
    """Attention that is far too sharp, and attention that is flat."""
    for factor in (100.0, 1e-4):
        float_model = vit(depth=1)
        with torch.no_grad():
            float_model.blocks[0].attn.qkv.weight[:32] *= factor  # type: ignore[union-attr, index]
            float_model.blocks[0].attn.qkv.bias[:32] *= factor  # type: ignore[union-attr, index]
        model = fqvit.quantize(float_model, quiet=True)
        fqvit.calibrate(model, [images(float_model, 4)])
        step = named_quantizers(model)["blocks.0.attn.scores"].log_scale.exp().item()
        assert step == pytest.approx(0.5 if factor > 1 else 2.0**-8)
        check(fqvit.freeze(model))


def test_placement_says_what_is_integer_and_what_is_float() -> None:
    rows = {row.tensor: row for row in fqvit.placement(ready("swin"))}
    first = "layers.0.blocks.0"
    assert rows[f"{first}.norm1.input"].granularity == "per channel: step x 1, 2, 4 or 8"
    assert (rows[f"{first}.attn.attention"].bits, rows[f"{first}.attn.attention"].sign) == (4, "unsigned log2")
    assert (rows[f"{first}.attn.scores"].bits, rows[f"{first}.attn.q"].sign) == (8, "signed")
    assert rows[f"{first}.attn.proj.input"].sign == "unsigned + offset"
    still_float = {row.tensor.removeprefix(f"{first}.") for row in rows.values() if row.bits is None}
    assert {"residual", "mlp.act", "biases"} <= still_float
    assert not any(part in tensor for tensor in still_float for part in ("norm", "softmax", "position_bias"))
    bias, residual = rows[f"{first}.attn.position_bias"], rows[f"{first}.residual"]
    assert (bias.bits, bias.sign, bias.reason) == (32, "signed", "codes of the scores, added to theirs")
    program = fqvit.freeze(ready("swin"))
    assert program.integers[bias.tensor].dtype == np.int32
    assert bias.tensor not in program.constants
    assert residual.reason == "on dequantized values: the sum is quantized where the next LayerNorm reads it"


def test_config_is_checked_and_round_trips() -> None:
    config = fqvit.FQViT(6, 7, 8, observer=LeastSquares())
    assert from_values(fqvit.FQViT, to_values(config), "quantize") == config
    with pytest.raises(ValueError, match=r"FQViT\.attention_bits is 9; bit-widths go from 2 to 8"):
        fqvit.FQViT(attention_bits=9)
    with pytest.raises(ValueError, match=r"FQViT\.observer is 'ema'; allowed: LeastSquares\(\), MinMax\(\)"):
        fqvit.FQViT(observer="ema")  # type: ignore[arg-type]


def test_refusals() -> None:
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.attn\.q_norm normalises heads.*use qvit\.quantize"):
        fqvit.quantize(vit(qk_norm=True), quiet=True)
    with pytest.raises(UncalibratedError, match=r"patch_embed\.proj\.weight has no scale yet.*fqvit\.calibrate"):
        fqvit.freeze(fqvit.quantize(vit(), quiet=True))
    with pytest.raises(ValueError, match=r"not an FQ-ViT network; call qvit\.methods\.fqvit\.quantize first"):
        fqvit.calibrate(vit(), [])
    with pytest.raises(ValueError, match="calibration got no images"):
        fqvit.calibrate(fqvit.quantize(vit(), quiet=True), [])


def test_i_exp_is_the_exponential() -> None:
    """The parabola on (-ln 2, 0] is within 0.4 % of e^r; what is left at a step of 0.01 is the floor of its integers."""
    numbers = SoftmaxNumbers.of_scale(0.01)
    r = -np.arange(numbers.ln2)
    e = (r * (r + numbers.linear) + numbers.constant) / numbers.constant
    assert np.abs(e - np.exp(0.01 * r)).max() < 0.01
    assert numbers.ln2 == math.ceil(math.log(2) / 0.01)
