"""Weights are float at first, activations quantized; the switch fits what `calibrate` would; a resume notices nothing.

A toy epoch has 6 steps: the stage ends after step 3, the bits are final after step 4.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian, Published
from qvit.bits.sensitivity import Sensitivity
from qvit.calibration.calibrate import calibrate
from qvit.evaluation.evaluate import evaluate
from qvit.methods import METHODS, QViTIRM, qvit_irm
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.settings.recipe import Recipe, RecipeError
from qvit.spec import FixedBits, SingleScale, Spec
from qvit.system.runs import Run, load_tensors
from qvit.training.activations_first import ActivationsFirst, float_weights
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit_config import FitConfig
from qvit.training.state import TrainingState
from toy_models import calibrated, images, swin, uniform, vit
from toy_training import QUICK, same_state, toy_data, toy_model, toy_run

SWITCH, LOCK = 3, 4
CONFIG = FitConfig(epochs=1, activations_first=SWITCH / 6, lock_at=LOCK / 6, log_every=1, allocation=QUICK)


@cache
def _calibrated(spec: Spec) -> nn.Module:
    return toy_model(spec)


def fresh(spec: Spec | None = None) -> nn.Module:
    """A toy model of its own; each kind is calibrated once."""
    return copy.deepcopy(_calibrated(spec or Spec()))


def weights_of(model: nn.Module) -> dict[str, Quantizer]:
    return {name: q for name, q in named_quantizers(model).items() if not q.batched}


def banks(model: nn.Module, batched: bool) -> dict[str, Tensor]:
    found = {name: q.log_scale for name, q in named_quantizers(model).items() if q.batched == batched}
    return {name: bank.detach().clone() for name, bank in found.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    return {name for name, value in left.items() if torch.equal(value, right[name])}


@pytest.fixture
def float_passes(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """One entry for each time that a model's weights became float."""
    entered: list[nn.Module] = []
    monkeypatch.setattr(
        "qvit.training.activations_first.float_weights", lambda model: entered.append(model) or float_weights(model)
    )
    return entered


# -- the network of the stage -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("spec", [Spec(), Spec(scale=SingleScale())], ids=["own-banks", "single-scale"])
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


# -- training ---------------------------------------------------------------------------------------------------------


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


# -- resume and going back --------------------------------------------------------------------------------------------

RESUMED = replace(CONFIG, checkpoint_every=1, ema_decay=0.9, features=FeatureDistillation(batches=2))


def resumable(run: Path, **arguments: object) -> tuple[nn.Module, float | None]:
    model, result = toy_run(RESUMED, run, fresh(), teacher=vit(depth=1, seed=3), **arguments)
    return model, result.top1


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, float | None, Path]:
    run = tmp_path_factory.mktemp("unbroken")
    return (*resumable(run), run)


@pytest.mark.parametrize("step", [1, SWITCH - 1, SWITCH, LOCK], ids=lambda k: f"after-{k}")
def test_resume_is_bit_exact(step: int, unbroken: tuple[nn.Module, float | None, Path], tmp_path: Path) -> None:
    """In the stage, in front of the switch, at it, at the lock behind it."""
    resumable(tmp_path, max_steps=step, evaluation=None)
    model, top1 = resumable(tmp_path, resume=True)
    assert same_state(model, unbroken[0]) == []
    assert top1 == unbroken[1]
    for log in ("metrics.jsonl", "bits.jsonl"):
        assert (tmp_path / log).read_text() == (unbroken[2] / log).read_text()


def test_the_switch_has_a_checkpoint(tmp_path: Path) -> None:
    toy_run(replace(CONFIG, keep_checkpoints=9), tmp_path, fresh(), evaluation=None)
    assert [path.stem for path in Run(tmp_path).checkpoints()] == [f"step-{s:09}" for s in (SWITCH, LOCK, 6)]


def test_going_back_over_the_switch_makes_it_again(float_passes: list[nn.Module]) -> None:
    """Without checkpoints the way back is to the start: three steps with float weights, and once more."""
    model, failed = fresh(), []

    def spoil(module: nn.Module, args: object, output: Tensor) -> Tensor:
        spoilt = (
            module.training and len(float_passes) == 1 + SWITCH and not failed
        )  # one probe, the stage: the switch is past
        in_stage = bool(weights_of(model)["head.weight"]._forward_hooks)
        if spoilt and not in_stage:
            failed.append(1)
            return output * torch.nan
        return output

    model.get_submodule("head").register_forward_hook(spoil)
    _, result = toy_run(CONFIG, None, model, evaluation=None)
    assert result.rollbacks == 1
    assert len(float_passes) == 1 + 2 * SWITCH
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


# -- what goes with it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Spec(), uniform(3)], ids=["learned", "uniform"])
def test_recomputed_activations_train_the_same_model(spec: Spec) -> None:
    """The second forward pass of a block is within the step, so its weights are float again."""
    budget = {} if spec == Spec() else {"budget": None}
    ends = []
    for recompute in (False, True):
        config = replace(CONFIG, checkpoint_activations=recompute)
        ends.append(toy_run(config, model=fresh(spec), evaluation=None, **budget)[0])
    assert same_state(*ends) == []


def test_bf16_steps_see_float32_weights() -> None:
    """Autocast makes its own copy of a weight that no quantizer has given its type."""
    model = fresh(uniform(3))
    weight = model.get_parameter("blocks.0.mlp.fc1.weight")
    before, outputs = weight.detach().clone(), []
    layer = model.get_submodule("blocks.0.mlp.fc1")
    layer.register_forward_hook(lambda _, args, output: outputs.append(output.dtype))
    toy_run(replace(CONFIG, precision="bf16"), model=model, budget=None, evaluation=None, max_steps=SWITCH + 1)
    assert outputs == [torch.bfloat16] * (SWITCH + 1)
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, before)
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


def test_irm_trains_with_it() -> None:
    options, teacher = QViTIRM(3, 3), vit(depth=1)
    model = qvit_irm.quantize(teacher, options)
    qvit_irm.calibrate(model, [x for x, _ in toy_data().eval])
    fitted = banks(model, batched=False)
    guide = qvit_irm.guide(model, options, teacher)
    toy_run(CONFIG, model=model, budget=None, guide=guide, evaluation=None, max_steps=SWITCH - 1)
    assert same(banks(model, batched=False), fitted) == set(fitted)
    toy_run(CONFIG, model=model, budget=None, guide=guide, evaluation=None)
    assert same(banks(model, batched=False), fitted) == set()
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.001, 1), (0.25, 25), (1.0, 100)])
def test_a_stage_has_at_least_one_step(share: float, steps: int) -> None:
    config = FitConfig(activations_first=share, lock_at=1.0)
    assert config.float_weight_steps(100) == steps
    stage = ActivationsFirst(fresh(uniform(3)), steps)
    assert [stage.lasts(step) for step in range(101)] == [True] * steps + [False] * (101 - steps)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activations_first": 1.5, "lock_at": 1.0}, r"fit.activations_first is 1.5; it must lie between 0 and 1"),
        (
            {"activations_first": 0.7},
            r"fit.activations_first is 0.7 and fit.lock_at 0.6: the bits of weights would be final before a weight is "
            r"quantized; give a lock_at of at least 0.7, or a shorter first stage",
        ),
        (
            {"activations_first": 0.3, "allocation": Published()},
            r"does not go with the allocation Published: .* use Lagrangian, or leave activations_first out",
        ),
    ],
)
def test_configs_that_are_refused(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FitConfig(**change)


def test_recipes_that_are_refused() -> None:
    first = FitConfig(activations_first=0.3)
    with pytest.raises(
        RecipeError, match=r"fit.activations_first is 0.3, but a float model has no activations to quan"
    ):
        Recipe(method="float", fit=first)
    with pytest.raises(RecipeError, match=r"train_float.activations_first is 0.3, but a float model .* leave it out"):
        Recipe(train_float=first)
    text = r"method 'ivit' does not go with fit.activations_first: leave it out, or use 'qvit' or 'lsq' or 'qvit-irm'"
    with pytest.raises(RecipeError, match=text):
        Recipe(method="ivit", quantize=METHODS["ivit"].uniform(8, 8), fit=first)
    Recipe(method="lsq", quantize=Spec(FixedBits(3), FixedBits(3)), fit=first)


def test_a_float_model_and_compilation_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"VisionTransformer has no quantizers; call qvit.quantize"):
        toy_run(CONFIG, model=vit(depth=1), budget=None)
    with pytest.raises(ValueError, match=r"fit.compile does not go with .* with fit.activations_first: compiled code"):
        toy_run(replace(CONFIG, compile=True), model=fresh())
