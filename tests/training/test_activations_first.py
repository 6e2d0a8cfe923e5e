"""Weights are float at first, activations quantized; the switch fits what `calibrate` would."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qvit.bits.allocate import Lagrangian
from qvit.bits.sensitivity import Sensitivity
from qvit.calibration.calibrate import calibrate
from qvit.evaluation.evaluate import evaluate
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import SingleRange, SingleScale, Spec
from qvit.system.runs import Run, load_tensors
from qvit.training.activations_first import float_weights
from qvit.training.state import TrainingState
from toy_activations_first import CONFIG, LOCK, SWITCH, banks, fresh, same, weights_of
from toy_models import calibrated, images, swin, uniform, vit
from toy_training import toy_data, toy_run


@pytest.mark.parametrize("make", [vit, swin])
def test_weights_are_float_and_activations_are_not(make) -> None:  # type: ignore[no-untyped-def]
    """The logits of a model without weight quantizers; no hook stays, not even after an exception."""
    model = calibrated(make(), uniform(3), 16)
    without, batch = copy.deepcopy(model), images(model)
    for quantizer in weights_of(without).values():
        quantizer.forward = lambda x: x  # type: ignore[method-assign]
    quantized = model(batch)
    with float_weights(model):
        found = model(batch)
    assert torch.equal(found, without(batch))
    assert not torch.equal(found, quantized)
    assert not torch.equal(found, make()(batch))
    with pytest.raises(RuntimeError, match="stop"), float_weights(model):
        raise RuntimeError("stop")
    assert torch.equal(model(batch), quantized)


@pytest.mark.parametrize(
    "spec",
    [Spec(), Spec(scale=SingleScale()), Spec(scale=SingleRange())],
    ids=["own-banks", "single-scale", "single-range"],
)
def test_a_probe_sees_the_weight_and_its_own_gradient(spec: Spec) -> None:
    """1/2 sum B G^2 (Q_n(w) - w)^2 with G the gradient of the float weight, at every width."""
    model = calibrated(vit(), spec, 16)
    batch = images(model, 16)
    sensitivity = Sensitivity(model)
    with float_weights(model), sensitivity.probe(16):
        F.cross_entropy(model(batch), torch.arange(16) % 5).backward()
    sensitivity.update()
    for name, quantizer in weights_of(model).items():
        if not quantizer.is_learned:
            continue
        weight = model.get_parameter(name)
        assert weight.grad is not None
        assert quantizer.log_scale.grad is None
        for column, bits in enumerate(quantizer.candidates):
            quantizer.set_bits(torch.full_like(quantizer.bits, bits))
            error = 8 * weight.grad.square() * (quantizer(weight) - weight).detach().square()
            total = sensitivity.tables[name][:, column].sum()
            assert float(total) == pytest.approx(float(error.sum()), rel=1e-3), name
            assert total > 0


def test_all_slots_of_a_weight_stay_warm() -> None:
    """None is in force. An activation's slot that is in force is left to its gradient."""
    model = calibrated(vit(), Spec(), 16)
    name = "blocks.0.mlp.fc1.weight"
    before = {**banks(model, batched=False), **banks(model, batched=True)}
    with torch.no_grad():
        model.get_parameter(name).mul_(1.5)
    sensitivity = Sensitivity(model)
    for _ in range(8):
        with float_weights(model), sensitivity.probe(16):
            F.cross_entropy(model(images(model, 16)), torch.arange(16) % 5).backward()
        sensitivity.warm_slots(float_weights=True)
    quantizers = named_quantizers(model)
    assert torch.all((quantizers[name].log_scale - before[name]).exp() > 1.03)
    activation = quantizers["blocks.0.mlp.fc1.input"]
    moved = activation.log_scale != before["blocks.0.mlp.fc1.input"]
    slot = int(activation.slot_of(activation.bit_width))
    assert not moved[0, slot]
    assert moved.any()


@pytest.mark.parametrize("spec", [Spec(), uniform(3)], ids=["learned", "uniform"])
def test_weights_and_activation_scales_train_while_weights_are_float(spec: Spec) -> None:
    """With fixed bits the scales of weights stand still until the switch; with learned ones probes keep their slots warm."""
    budget = {} if spec == Spec() else {"budget": None}
    model = fresh(spec)
    start, weights, activations = copy.deepcopy(model), banks(model, batched=False), banks(model, batched=True)
    toy_run(CONFIG, model=model, evaluation=None, max_steps=SWITCH - 1, **budget)
    names = set(weights)
    moved = {name for name in names if not torch.equal(model.get_parameter(name), start.get_parameter(name))}
    assert moved == names
    assert same(banks(model, batched=True), activations) == set()
    if spec != Spec():
        assert same(banks(model, batched=False), weights) == names


@pytest.mark.parametrize(
    ("spec", "lock"),
    [
        pytest.param(Spec(), LOCK, id="learned"),
        pytest.param(Spec(scale=SingleScale()), SWITCH, id="single-scale-at-the-lock"),
        pytest.param(uniform(3), LOCK, id="uniform"),
    ],
)
def test_the_switch_fits_weights_as_calibrate_does(spec: Spec, lock: int) -> None:
    """At the widths in force then, which a lock in the same step may have changed; activations are left alone."""
    budget = {"budget": None} if spec == uniform(3) else {}
    model, _ = toy_run(
        replace(CONFIG, lock_at=lock / 6), model=fresh(spec), evaluation=None, max_steps=SWITCH, **budget
    )
    assert any(q.is_learned for q in named_quantizers(model).values()) == (lock > SWITCH and not budget)
    expected = copy.deepcopy(model)
    calibrate(expected, [x for x, _ in toy_data().eval])
    assert same(banks(model, batched=False), banks(expected, batched=False)) == set(weights_of(model))
    assert same(banks(model, batched=True), banks(expected, batched=True)) == set()


def test_afterwards_scales_of_weights_train() -> None:
    model, _ = toy_run(CONFIG, model=fresh(uniform(3)), budget=None, evaluation=None, max_steps=SWITCH)
    fitted = banks(model, batched=False)
    model, _ = toy_run(CONFIG, model=fresh(uniform(3)), budget=None, evaluation=None, max_steps=SWITCH + 1)
    assert same(banks(model, batched=False), fitted) == set()


def test_the_first_probes_are_of_float_weights_too(float_passes: list[nn.Module]) -> None:
    """Two probes before the first step, three steps, and the evaluation after none: an epoch ends later."""
    model, _ = toy_run(replace(CONFIG, allocation=Lagrangian(every=2, warm_up=2)), model=fresh())
    assert float_passes == [model] * (2 + SWITCH)


def test_without_a_stage_weights_are_never_float(float_passes: list[nn.Module]) -> None:
    toy_run(replace(CONFIG, activations_first=0.0), model=fresh())
    assert float_passes == []


def test_an_evaluation_in_the_stage_is_of_float_weights_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 steps, 7 in the stage: the evaluation after 6 is in it, the last one is not."""
    config = replace(CONFIG, epochs=2, activations_first=7 / 12, lock_at=0.8)
    data = toy_data()
    model, result = toy_run(config, tmp_path, fresh(uniform(3)), budget=None, max_steps=6)
    with float_weights(model):
        assert evaluate(model, data.eval).top1 == result.top1
    toy_run(config, tmp_path, fresh(uniform(3)), budget=None, resume=True, quiet=False)
    found = [record for record in Run(tmp_path).read("metrics.jsonl") if "top1" in record]
    assert [(record["step"], record.get("float_weights")) for record in found] == [(6, 1), (12, None)]
    assert found[0]["top1"] == result.top1
    said = capsys.readouterr().err
    assert "step 7: weights are quantized from here on, their scales fitted to them" in said
    assert "step 6: top-1" not in said  # it was made before the resume
    assert f"step 12: top-1 {found[1]['top1']:.2f} %\n" in said


def test_the_line_for_people_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    _, result = toy_run(CONFIG, model=fresh(uniform(3)), budget=None, max_steps=1, quiet=False)
    assert f"step 1: top-1 {result.top1:.2f} % with float weights\n" in capsys.readouterr().err


def test_a_stage_of_all_steps_ends_with_the_switch(tmp_path: Path) -> None:
    """The order of GPLQ: the weights are quantized last, and what is evaluated is quantized."""
    config = replace(CONFIG, activations_first=1.0, lock_at=1.0)
    data = toy_data()
    model, result = toy_run(config, tmp_path, fresh())
    expected = copy.deepcopy(model)
    calibrate(expected, [x for x, _ in data.eval])
    assert same(banks(model, batched=False), banks(expected, batched=False)) == set(weights_of(model))
    assert Run(tmp_path).read("metrics.jsonl")[-1].keys() == {"step", "epoch", "top1"}
    assert evaluate(model, data.eval).top1 == result.top1


def test_the_moving_average_starts_behind_the_switch(tmp_path: Path) -> None:
    """Where the lock is in the same step, it does not average scales that were never in force."""
    config = replace(CONFIG, lock_at=SWITCH / 6, ema_decay=0.9)
    toy_run(config, tmp_path, fresh(), evaluation=None, max_steps=SWITCH)
    tensors, _ = load_tensors(Run(tmp_path).checkpoints()[-1])
    names = [name for name in tensors if name.startswith("average.") and name.endswith("log_scale")]
    assert names
    for name in names:
        torch.testing.assert_close(tensors[name], tensors[name.replace("average.", "model.")])


def test_the_moving_average_quantizes_its_weights(tmp_path: Path) -> None:
    """Where the lock is in the step of the switch, what is evaluated is what is returned."""
    batch, found = toy_data().eval[0][0], []
    finish = TrainingState.finish

    def compared(state: TrainingState) -> None:
        found.append(state.averaged_model().eval()(batch))
        finish(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "finish", compared)
        model, _ = toy_run(replace(CONFIG, lock_at=SWITCH / 6, ema_decay=0.5), tmp_path, fresh(), evaluation=None)
    assert torch.equal(found[0], model.eval()(batch))
