"""A stage of float weights beside everything else that a run may ask for, and what does not go with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvit.bits.allocate import Published
from qvit.methods import METHODS, QViTIRM, qvit_irm
from qvit.settings.recipe import Recipe, RecipeError
from qvit.spec import FixedBits, Spec
from qvit.training.activations_first import ActivationsFirst
from qvit.training.fit_config import FitConfig
from toy_activations_first import CONFIG, SWITCH, banks, fresh, same
from toy_models import uniform, vit
from toy_training import same_state, toy_data, toy_run


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
