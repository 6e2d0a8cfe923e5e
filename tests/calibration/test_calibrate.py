"""calibrate(): every slot of every group from the float network's own tensors, and plain words when it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvit.calibration.calibrate import calibrate, float_forward
from qvit.calibration.least_squares import least_squares, points
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import UncalibratedError, named_quantizers
from qvit.spec import Spec
from toy_models import images, swin, uniform, vit


@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_every_slot_is_filled(make) -> None:  # type: ignore[no-untyped-def]
    model = quantize(make())
    calibrate(model, [images(model)])
    for name, quantizer in named_quantizers(model).items():
        assert quantizer.is_calibrated, name
        assert torch.isfinite(quantizer.log_scale).all(), name
        assert (quantizer.log_scale != 0).all(), name
        if quantizer.log_scale.shape[1] == 7:  # fewer bits, wider steps
            assert (quantizer.log_scale.diff(dim=1) < 0).float().mean() > 0.9, name


def test_activations_are_those_of_the_float_network() -> None:
    """The scale of a deep tensor is the least-squares scale of what the float model computes there."""
    float_model = vit()
    seen: list[torch.Tensor] = []
    float_model.blocks[1].mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr, index]
    model, x = quantize(float_model, uniform(3)), images(float_model, 16)
    seen.clear()
    with torch.no_grad():
        float_model(x)
    calibrate(model, [x])
    found = named_quantizers(model)["blocks.1.mlp.fc1.input"].log_scale.exp().item()
    assert found == pytest.approx(least_squares(points(seen[0].reshape(1, -1)), 3, True).item(), rel=0.01)


def test_streaming_in_batches_is_the_same_as_at_once() -> None:
    x = images(vit(), 16)
    banks = []
    for batches in ([x], list(x.split(4)), [(part, torch.zeros(4)) for part in x.split(4)]):
        model = quantize(vit())
        calibrate(model, batches)
        banks.append(torch.cat([q.log_scale.detach().flatten() for q in named_quantizers(model).values()]))
    assert torch.allclose(banks[0], banks[1], atol=0.02)
    assert torch.equal(banks[1], banks[2])


def test_only_so_many_batches_are_read() -> None:
    read = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal read
        while True:
            read += 1
            yield images(vit(), 2, seed=read)

    calibrate(quantize(vit()), endless(), batches=3)
    assert read <= 4


def test_no_images() -> None:
    with pytest.raises(ValueError, match="calibration got no images: the loader is empty"):
        calibrate(quantize(vit()), [])


@pytest.mark.parametrize("batches", [0, -1])
def test_no_batches(batches: int) -> None:
    """Not the loader's fault."""
    with pytest.raises(ValueError, match=rf"^calibration was asked for {batches} batches; it takes 1 or more$"):
        calibrate(quantize(vit()), [images(vit())], batches=batches)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (torch.zeros(2, 3, 16, 16), r"a Tensor of shape \(3, 16, 16\)"),
        ([{"pixel_values": torch.zeros(2, 3, 16, 16)}], "a dict"),
        ([(torch.zeros(2, 16, 16), torch.zeros(2))], r"a tuple that begins with a Tensor of shape \(2, 16, 16\)"),
        ([[]], "a list"),
        (["ab"], "a str"),
    ],
    ids=["one_tensor", "dict", "gray", "empty", "text"],
)
def test_what_is_no_batch_of_images(given: object, what: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^calibration got {what} as a batch; it takes tensors \(B, .* put a single tensor in"
    ):
        calibrate(quantize(vit()), given)  # type: ignore[arg-type]


def test_a_model_without_quantizers() -> None:
    with pytest.raises(ValueError, match="has no quantizers"):
        calibrate(nn.Linear(2, 2), [torch.zeros(1, 2)])


def test_a_dead_head_gets_a_finite_scale_and_a_warning_that_names_it() -> None:
    float_model = vit()
    attention = float_model.blocks[0].attn  # type: ignore[union-attr, index]
    with torch.no_grad():  # k of head 1: rows 16 + 8 .. 16 + 16
        attention.qkv.weight[24:32] = 0
        attention.qkv.bias[24:32] = 0
    model = quantize(float_model)
    with pytest.warns(UserWarning, match="is zero everywhere") as caught:
        calibrate(model, [images(model)])
    texts = [str(warning.message) for warning in caught]
    assert any("blocks.0.attn.qkv.weight is zero everywhere in group [3]" in text for text in texts)
    assert any("blocks.0.attn.k is zero everywhere in group [1]" in text for text in texts)
    assert len(texts) == 2
    assert all(torch.isfinite(q.log_scale).all() for q in named_quantizers(model).values())
    with torch.no_grad():
        assert torch.isfinite(model.eval()(images(model))).all()


def test_modes_and_weights_are_restored() -> None:
    model = quantize(vit().train())
    before = {name: p.clone() for name, p in model.named_parameters() if "quantizer" not in name}
    calibrate(model, [images(model)])
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_float_forward_leaves_an_uncalibrated_model_uncalibrated() -> None:
    model = quantize(vit(), Spec())
    with pytest.raises(ZeroDivisionError), float_forward(model):
        raise ZeroDivisionError
    with pytest.raises(UncalibratedError):
        model(images(model))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_broken_float_model_is_named() -> None:
    model = quantize(vit())
    with pytest.raises(FloatingPointError, match="the float model is not finite"):
        calibrate(model, [images(model) * float("nan")])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_of_the_last_layer_are_named(value: float) -> None:
    """No activation behind it is observed that could show them."""
    model = quantize(vit())
    with torch.no_grad():
        model.head.weight[2, 3] = value  # type: ignore[union-attr, index]
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in head\.weight: check the float weights"):
        calibrate(model, [images(model)])
