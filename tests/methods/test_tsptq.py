"""TSPTQ as a whole: what sits where, all widths, the program under the truth rule, files, placement, refusals."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime.interpreter as interpreter
from qvit.methods.tsptq import TSPTQ, calibrate, freeze, placement, quantize
from qvit.network.convert import quantize as quantize_uniform
from qvit.network.support import UnsupportedModelError
from qvit.quantizers.quantizer import UncalibratedError, named_quantizers
from qvit.quantizers.region_quantizer import GELU_DEPTH, RegionQuantizer
from qvit_runtime.artifact import load, save
from qvit_runtime.check import check
from qvit_runtime.integer_ops import QuantizeRegions
from toy_models import FAMILIES, images, swin, uniform, vit
from truth import compare

QUICK = {"rounds": 1, "candidates": 8}
MODELS = {**FAMILIES, "vit": vit, "swin": swin}  # the toys, which are smaller than the families of their names


@lru_cache
def _calibrated(name: str, weight_bits: int, activation_bits: int) -> nn.Module:
    config = TSPTQ(weight_bits, activation_bits, **QUICK)
    model = MODELS[name]()
    quantized = quantize(model, config, quiet=True)
    calibrate(quantized, [images(model, 16, seed=7)], config=config)
    return quantized.eval()


def calibrated(name: str, weight_bits: int, activation_bits: int) -> nn.Module:
    """Calibrated once per run; a copy of its own for every caller."""
    return copy.deepcopy(_calibrated(name, weight_bits, activation_bits))


def test_quantizers_are_where_the_method_has_them() -> None:
    model = quantize(vit(), TSPTQ(5, 6), quiet=True)
    for name, quantizer in named_quantizers(model).items():
        part = name.rpartition(".")[2]
        edge = name.startswith(("head", "patch_embed"))
        assert quantizer.widths == [8 if edge else 5 if part == "weight" else 6] * quantizer.bit_groups, name
        assert quantizer.scale_groups == (model.get_parameter(name).shape[0] if part == "weight" else 1), name
        two_scaled = name.endswith(("mlp.fc2.input", "attn.attention"))
        assert isinstance(quantizer, RegionQuantizer) == two_scaled, name
        if isinstance(quantizer, RegionQuantizer):
            assert quantizer.depth == (GELU_DEPTH if name.endswith("fc2.input") else 0.0)


@pytest.mark.parametrize(("name", "bits"), [*(("vit", bits) for bits in range(2, 9)), ("swin", 2), ("swin", 8)])
def test_all_widths_are_finite_and_more_bits_are_closer(name: str, bits: int) -> None:
    model = MODELS[name]()
    x = images(model, 16, seed=3)
    quantized = calibrated(name, bits, bits)
    with torch.no_grad():
        exact, values = model(x), quantized(x)
    assert torch.isfinite(values).all()
    assert (values - exact).square().mean() < {8: 2e-3, 7: 6e-3, 6: 0.02, 5: 0.1, 4: 0.3}.get(bits, 2.0) * exact.var()


def test_calibration_never_ends_worse_and_its_report_is_what_is_in_force() -> None:
    config = TSPTQ(4, 4, **QUICK)
    model = quantize(vit(), config, quiet=True)
    report = calibrate(model, [images(model, 24, seed=7)], config=config)
    quantizers = named_quantizers(model)
    layers = [name for name in quantizers if name.endswith(".weight")]
    assert len(report.products) == len(layers) + 2 * 2  # and two products per attention
    assert [fold.norm for fold in report.folds] == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.norm2",
        "norm",
    ]
    for name, found in report.products.items():
        assert found.end <= found.start, name
    assert sum(found.end for found in report.products.values()) < 0.9 * sum(f.start for f in report.products.values())
    mixed = report.products["blocks.1.attn.mixed"].left
    quantizer = quantizers["blocks.1.attn.attention"]
    assert isinstance(quantizer, RegionQuantizer)
    assert int(quantizer.shift) == mixed.shift
    assert torch.allclose(quantizer.scale_at(quantizer.bit_width), mixed.scale)


def test_calibration_is_repeatable_and_reads_no_labels() -> None:
    config = TSPTQ(4, 4, **QUICK)
    model = quantize(vit(), config, quiet=True)
    x, labels = images(model, 24, seed=7), torch.full((24,), -1)
    states = []
    for batches in ([x], [(x, labels)], iter([(x[:12], labels), (x[12:], labels), "is not read"])):
        copied = copy.deepcopy(model)
        calibrate(copied, batches, batches=2 if not isinstance(batches, list) else 1, config=config)
        states.append(copied.state_dict())
    for other in states[1:]:
        assert all(torch.equal(t, other[name]) for name, t in states[0].items() if not name.endswith("_extra_state"))


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"), [("vit", 8, 8), ("vit", 4, 4), ("swin", 8, 8), ("swin", 3, 5)]
)
def test_codes_are_equal_except_near_ties(name: str, weight_bits: int, activation_bits: int) -> None:
    model = calibrated(name, weight_bits, activation_bits)
    program, x = freeze(model), images(model, 6, seed=5)
    check(program)
    counts = compare(program, model, x)
    assert set(counts) == {name for name, q in named_quantizers(model).items() if q.batched}
    for name, count in counts.items():
        assert count.wrong == 0, (name, count)
        assert count.different <= max(1, 0.0005 * count.codes), (name, count)


def test_the_truth_rule_sees_a_wrong_region() -> None:
    """The comparison must be able to fail: half the distance between the regions is found where it was planted."""
    model = calibrated("vit", 6, 6)
    program = freeze(model)
    grid = program.buffers["blocks.1.mlp.fc2.input"].grid
    assert grid is not None
    grid.scale[1] /= 2
    wrong = {name for name, count in compare(program, model, images(model, 4)).items() if count.wrong}
    assert "blocks.1.mlp.fc2.input" not in wrong  # the very grid that its codes are compared on
    assert wrong == {"head.input"}


QUICK_FAMILIES = ("vit_qk_norm_avg", "deit_distilled", "swin_padded")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in QUICK_FAMILIES else pytest.mark.slow) for f in FAMILIES]
)
def test_program_is_well_formed_and_survives_a_file(family: str, tmp_path: Path) -> None:
    config = TSPTQ(6, 6, rounds=1, candidates=4)
    model = quantize(FAMILIES[family](), config, quiet=True).eval()
    calibrate(model, [images(model, 8, seed=7)], config=config)
    program = freeze(model, name=family, metadata={"made by": "a test"})
    check(program)
    assert program.metadata == {"method": "TSPTQ (reconstruction)", "made by": "a test"}
    regions = [op for op in program.ops if isinstance(op, QuantizeRegions)]
    assert len(regions) == sum(isinstance(module, RegionQuantizer) for module in model.modules())
    save(program, tmp_path / "model.qvit")
    again, x = load(tmp_path / "model.qvit"), images(model, 2).numpy()
    assert again.ops == program.ops
    logits = interpreter.run(program, x)
    assert np.array_equal(interpreter.run(again, x), logits)
    with torch.no_grad():
        fake = model(torch.from_numpy(x)).numpy()
    assert np.abs(logits - fake).max() < 0.1 * fake.std()  # a few ties may have fallen the other way


def test_two_bits_become_a_program_of_one_magnitude_bit() -> None:
    model = calibrated("vit", 2, 2)
    program = freeze(model)
    check(program)
    assert all(program.buffers[op.output].grid.bits == (1, 1) for op in program.ops if isinstance(op, QuantizeRegions))  # type: ignore[union-attr]
    counts = compare(program, model, images(model, 6, seed=5))
    assert sum(count.wrong for count in counts.values()) == 0


def test_placement_names_regions_offsets_and_folds() -> None:
    model = quantize(vit(), TSPTQ(6, 6), quiet=True)
    rows = {row.tensor: row for row in placement(model)}
    assert rows["blocks.0.attn.attention"].granularity == "per tensor, two scales a power of two apart"
    calibrate(model, [images(model, 8)], config=TSPTQ(**QUICK))
    rows = {row.tensor: row for row in placement(model)}
    shift = int(model.blocks[0].mlp.fc2.input_quantizer.shift)  # type: ignore[union-attr, index]
    gelu, softmax = rows["blocks.0.mlp.fc2.input"], rows["blocks.0.attn.attention"]
    assert (gelu.bits, gelu.sign) == (6, "unsigned + offset")
    assert gelu.granularity == f"per tensor, two scales 1 : {2**shift}"
    assert gelu.reason == "one factor and a shift; the offset goes into the bias"
    assert (softmax.sign, softmax.reason) == ("unsigned", "one factor and a shift")
    assert rows["blocks.0.mlp.fc1.input"].reason == "one factor; that of outlier channels is in LayerNorm and weight"
    assert rows["blocks.0.attn.proj.input"].reason == "one factor"
    assert rows["blocks.0.norm1"].bits is None


def test_quantize_prints_its_placement(capsys: pytest.CaptureFixture[str]) -> None:
    quantize(vit(), TSPTQ())
    assert "two scales a power of two apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, r"TSPTQ\.weight_bits is 1; bit-widths go from 2 to 8"),
        ({"activation_bits": 9}, r"TSPTQ\.activation_bits is 9; bit-widths go from 2 to 8"),
        ({"activation_bits": 4.0}, r"TSPTQ\.activation_bits is 4\.0; it must be a whole number"),
        ({"rounds": 0}, r"TSPTQ\.rounds is 0; it must be a whole number in 1\.\.100"),
        ({"candidates": 1001}, r"TSPTQ\.candidates is 1001; it must be a whole number in 1\.\.1000"),
    ],
)
def test_options_are_validated(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TSPTQ(**options)


def test_refusals() -> None:
    model = quantize(vit(), TSPTQ(), quiet=True)
    with pytest.raises(ValueError, match=r"calibration got no images: the loader is empty"):
        calibrate(model, [])
    with pytest.raises(UncalibratedError, match=r"has no scale yet"):
        freeze(model)
    other = quantize_uniform(vit(), uniform(4), quiet=True)
    said = r"this VisionTransformer has no two-scaled quantizers; call qvit\.methods\.tsptq\.quantize\(model, config\) first"
    with pytest.raises(ValueError, match=said):
        calibrate(other, [images(other, 2)])
    with pytest.raises(ValueError, match=said):
        freeze(other)
    with pytest.raises(UnsupportedModelError, match=r"Linear is not supported"):
        quantize(nn.Linear(3, 3), TSPTQ())
