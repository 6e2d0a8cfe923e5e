"""Verbs of one method on a model of another: refused by the name of the verb that is right."""

from __future__ import annotations

import pytest
from torch import nn

import qvit
from qvit.methods import METHODS
from qvit.quantizers.quantizer import UncalibratedError, named_quantizers
from toy_models import images, vit

PLAIN = ["qvit", "lsq", "ptq"]
OWN_CALIBRATE = {"qvit-irm": "qvit_irm", "ivit": "ivit", "fqvit": "fqvit", "tsptq": "tsptq"}
OWN_FREEZE = {"ivit": "ivit", "fqvit": "fqvit"}


def quantized(method: str) -> nn.Module:
    return METHODS[method].quantize(vit(depth=1), METHODS[method].uniform(8, 8))


def calibrated(method: str) -> nn.Module:
    model = quantized(method)
    METHODS[method].calibrate(model, METHODS[method].uniform(8, 8), [images(vit(), 4)], 1)
    return model


def test_every_method_is_looked_at() -> None:
    assert sorted([*PLAIN, *OWN_CALIBRATE]) == sorted(METHODS)


@pytest.mark.parametrize("method", OWN_CALIBRATE)
def test_qvit_calibrate_refuses_what_it_does_not_fit(method: str) -> None:
    model = quantized(method)
    text = rf"grids or statistics that qvit\.calibrate does not fit; call qvit\.methods\.{OWN_CALIBRATE[method]}\.calibrate\(model, l"
    with pytest.raises(ValueError, match=text):
        qvit.calibrate(model, [images(vit())])


@pytest.mark.parametrize("method", PLAIN)
def test_qvit_calibrate_takes_the_rest(method: str) -> None:
    model = quantized(method)
    qvit.calibrate(model, [images(model)])
    assert all(quantizer.is_calibrated for quantizer in named_quantizers(model).values())
    assert qvit.freeze(model).ops


def test_without_a_rectifier_nothing_but_scales_is_fitted() -> None:
    config = qvit.QViTIRM(8, 8, rectify=False)
    model = qvit.methods.qvit_irm.quantize(vit(depth=1), config)
    qvit.calibrate(model, [images(model)])
    assert all(quantizer.is_calibrated for quantizer in named_quantizers(model).values())


@pytest.mark.parametrize("method", OWN_FREEZE)
def test_qvit_freeze_refuses_what_it_does_not_know(method: str) -> None:
    text = rf"operations that qvit\.freeze does not know; call qvit\.methods\.{OWN_FREEZE[method]}\.freeze\(model\)"
    with pytest.raises(qvit.FreezeError, match=text):
        qvit.freeze(calibrated(method))


def test_fqvit_freeze_refuses_other_models() -> None:
    with pytest.raises(ValueError, match=r"not an FQ-ViT network; call qvit\.methods\.fqvit\.quantize first"):
        qvit.methods.fqvit.freeze(calibrated("ptq"))


@pytest.mark.parametrize("method", METHODS)
def test_an_uncalibrated_model_is_told_its_own_calibrate(method: str) -> None:
    """By freeze, which sees the whole model."""
    name = rf"methods\.{OWN_CALIBRATE[method]}\.calibrate" if method in OWN_CALIBRATE else "calibrate"
    with pytest.raises(UncalibratedError, match=rf"has no scale yet: run qvit\.{name}\(model, loader\)"):
        METHODS[method].freeze(quantized(method))
