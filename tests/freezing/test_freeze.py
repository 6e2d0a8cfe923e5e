"""freeze(): refusals, offset folding, a well-formed program for every family, and the artifact round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qvit_runtime.interpreter as interpreter
from qvit.bits.budget import Budget
from qvit.bits.cost import cost
from qvit.data import DataConfig, preprocess_of, resolve_data
from qvit.freezing.emitter import FreezeError
from qvit.freezing.freeze import freeze
from qvit.freezing.integer_layers import folded_bias, integer_weight
from qvit.methods import METHODS
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import UncalibratedError, named_quantizers
from qvit.spec import Spec
from qvit_runtime import program as p
from qvit_runtime.artifact import load, save
from qvit_runtime.check import check
from toy_models import FAMILIES, calibrated, images, learned, mix_bits, swin, uniform, vit


@pytest.mark.parametrize("family", FAMILIES)
def test_program_is_well_formed_and_survives_a_file(family: str, tmp_path: Path) -> None:
    model = mix_bits(learned(family))
    program = freeze(model, name=family, metadata={"made by": "a test"})
    check(program)
    assert (program.name, program.metadata) == (family, {"made by": "a test"})
    save(program, tmp_path / "model.qvit")
    x = images(model, 2).numpy()
    again = load(tmp_path / "model.qvit")
    assert again.ops == program.ops
    assert np.array_equal(interpreter.run(again, x), interpreter.run(program, x))
    packed = cost(model).kib * 1024
    constants = sum(constant.nbytes for constant in program.constants.values())
    assert (tmp_path / "model.qvit").stat().st_size < packed + constants + 120_000  # the rest is names


def test_bits_of_the_program_are_those_of_the_module() -> None:
    model = mix_bits(calibrated(vit(), Spec()))
    program = freeze(model)
    for name, quantizer in named_quantizers(model).items():
        bits = (
            program.weights[name].bits.ravel().tolist() if name in program.weights else program.buffers[name].grid.bits
        )  # type: ignore[union-attr]
        assert list(bits) == quantizer.widths, name


def test_freeze_changes_nothing() -> None:
    model = mix_bits(calibrated(swin(), Spec())).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    freeze(model)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_program_shares_no_memory_with_the_module() -> None:
    model = calibrated(vit(), uniform(8))
    program, x = freeze(model), images(model, 2).numpy()
    before = interpreter.run(program, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert np.array_equal(interpreter.run(program, x), before)


def test_offsets_fold_into_the_bias() -> None:
    """W (s c + o) + b = s W c + (b + o W 1): computed here from the fake-quantized weight."""
    model = calibrated(vit(), uniform(4))
    layer = model.blocks[0].mlp.fc2  # type: ignore[union-attr, index]
    with torch.no_grad():
        weight = layer.weight_quantizer(layer.weight).double()
        offset = layer.input_quantizer.offset_at(layer.input_quantizer.bit_width).double()
        expected = layer.bias.double() + offset * weight.sum(1)
    assert float(offset) < -0.05  # GELU goes below zero
    assert np.allclose(folded_bias(layer, integer_weight(layer)), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_uncalibrated_is_refused() -> None:
    with pytest.raises(UncalibratedError, match=r"patch_embed\.proj\.weight has no scale yet: run qvit\.calibrate"):
        freeze(quantize(vit()))


def test_over_budget_is_refused_and_at_budget_is_not() -> None:
    model = mix_bits(calibrated(vit(), Spec()))
    exact = cost(model)
    for unit in ("gbitops", "kib", "average_weight_bits"):
        freeze(model, Budget(**{unit: getattr(exact, unit)}))
        with pytest.raises(
            FreezeError, match=rf"the model costs [0-9.]+ {unit}, over the budget of .*never changes a bit"
        ):
            freeze(model, Budget(**{unit: getattr(exact, unit) * 0.999}))


def test_a_budget_of_uniform_bits_is_checked_after_the_lock_as_before_it() -> None:
    model = calibrated(vit(), Spec())
    for name, quantizer in named_quantizers(model).items():
        if quantizer.is_learned:
            quantizer.set_bits(torch.full_like(quantizer.bits, 4 if name.endswith(".weight") else 3))
            quantizer.lock()
    freeze(model, Budget(uniform=(4, 3)))
    with pytest.raises(FreezeError, match=r"the model costs [0-9.]+ gbitops, over the budget of"):
        freeze(model, Budget(uniform=3))


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (vit, "patch_embed.proj"),
        (vit, "head"),
        (vit, "blocks.1.attn"),
        (vit, "blocks.0.mlp.fc2"),
        (swin, "layers.0.blocks.1.attn"),
        (swin, "layers.1.downsample.reduction"),
        (swin, "head.fc"),
    ],
)
def test_kept_float_is_refused_by_name(make, layer: str) -> None:  # type: ignore[no-untyped-def]
    model = calibrated(make(), uniform(8, keep_float=(layer,)))
    with pytest.raises(FreezeError, match=rf"{layer} was kept float; a Program has integer products only"):
        freeze(model)


def test_the_default_preprocess_is_that_of_the_model() -> None:
    """Mean, std and crop that timm keeps beside a model, and the size that it was built for: as the data of a recipe has them."""
    for family, crop, mean in (("vit", 0.9, 0.5), ("deit", 0.9, 0.485), ("dinov2", 1.0, 0.485), ("swin", 0.9, 0.485)):
        model = calibrated(FAMILIES[family](), uniform(8))
        found = freeze(model).preprocess
        assert found == preprocess_of(resolve_data(DataConfig(dataset="digits"), model)), family
        assert (found.crop, found.mean[0], found.labels) == (crop, mean, ()), family
    assert freeze(learned("vit")).preprocess.size == (64, 64)  # timm's weights are for 224


@pytest.mark.parametrize("method", ["ivit", "fqvit"])
def test_the_default_of_a_method_is_that_of_its_float_model(method: str) -> None:
    verbs, source = METHODS[method], FAMILIES["vit"]()
    model = verbs.quantize(source, verbs.uniform(8, 8))
    verbs.calibrate(model, verbs.uniform(8, 8), [(images(source, 8), torch.zeros(8))], 1)
    found = verbs.freeze(model).preprocess
    assert (found.size, found.crop, found.mean) == ((64, 64), 0.9, (0.5, 0.5, 0.5))


def test_a_model_of_no_known_origin_has_imagenets_statistics() -> None:
    model = calibrated(vit(img_size=(16, 24)), uniform(8))
    assert freeze(model).preprocess == p.Preprocess(size=(16, 24))


def test_a_preprocess_that_is_given_is_taken() -> None:
    given = p.Preprocess(size=(64, 64), crop=0.8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    assert freeze(learned("vit"), preprocess=given).preprocess == given


def test_other_channels_need_their_own_statistics() -> None:
    """One channel: timm's three means would be wrong, so they are not made up."""
    model = calibrated(vit(in_chans=1), uniform(8))
    gray = p.Preprocess(size=(16, 16), mean=(0.5,), std=(0.5,))
    check(freeze(model, preprocess=gray))
    text = r"^the model takes 1 channels, and the mean and std that come with it are of 3: give a Preprocess with those"
    with pytest.raises(FreezeError, match=text):
        freeze(model)
    model.pretrained_cfg = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,), "crop_pct": 0.9}
    assert freeze(model).preprocess == p.Preprocess(size=(16, 16), crop=0.9, mean=(0.5,), std=(0.25,))
