"""How a step is computed changes time and memory, and not what is learned; where it cannot, it is refused before training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian
from qvit.bits.sensitivity import Sensitivity
from qvit.methods import METHODS, QViTIRM, qvit_irm
from qvit.settings.recipe import Recipe, RecipeError
from qvit.spec import FixedBits, Spec
from qvit.training.compute import activations_recomputed
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from toy_models import calibrated, images, swin, uniform, vit
from toy_training import same_state, toy_data, toy_model, toy_run

RUN: dict[str, Any] = {"epochs": 1.0, "log_every": 1, "lock_at": 0.5, "allocation": Lagrangian(every=2, warm_up=1)}


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch), torch.arange(len(batch)) % 5)


# -- recomputed activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Spec(), uniform(3)], ids=["learned", "uniform"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_recomputed_activations_train_the_same_model(spec: Spec, precision: str) -> None:
    """Bit for bit: dropout draws again what it drew, quantizers are float32 in both passes, probes count once."""
    budget = {} if spec == Spec() else {"budget": None}
    ends = []
    for recompute in (False, True):
        config = FitConfig(**RUN, precision=precision, checkpoint_activations=recompute)  # type: ignore[arg-type]
        ends.append(toy_run(config, model=toy_model(spec), evaluation=None, **budget)[0])
    assert same_state(*ends) == []
    assert not ends[1].grad_checkpointing


@pytest.mark.parametrize("make", [vit, swin])
def test_a_probe_sees_every_value_once_though_blocks_run_twice(make: Any) -> None:
    model = calibrated(make(), Spec(), 16).train()
    twin, batch = copy.deepcopy(model), images(model, 8)
    runs: list[int] = []
    block = twin.get_submodule("blocks.0" if make is vit else "layers.0.blocks.0")
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    plain, again = Sensitivity(model), Sensitivity(twin)
    torch.manual_seed(0)  # Swin has drop path
    with plain.probe(8):
        loss_of(model, batch).backward()
    torch.manual_seed(0)
    with activations_recomputed(twin), again.probe(8):
        loss_of(twin, batch).backward()
    assert len(runs) == 2
    for sensitivity in (plain, again):
        sensitivity.update()
        sensitivity.warm_slots()
    assert all(torch.equal(table, again.tables[name]) for name, table in plain.tables.items())
    assert all(table.max() > 0 for table in again.tables.values())
    assert same_state(model, twin) == []  # warm slots included


def saved_bytes(model: nn.Module, batch: Tensor) -> int:
    """What the forward pass keeps for the backward pass, parameters aside."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model, batch)
    assert loss.requires_grad
    return sum(kept.values())


def test_blocks_keep_their_inputs_alone() -> None:
    model = calibrated(vit(depth=4), Spec(), 16).train()
    batch = images(model, 16)
    plain = saved_bytes(model, batch)
    with activations_recomputed(model):
        assert saved_bytes(model, batch) < plain / 3


def test_recomputation_goes_with_rectified_queries_and_keys() -> None:
    """IRM counts the statistics of a batch once, DGD takes q and k from the first pass."""
    ends, teacher = [], vit(depth=1)
    for recompute in (False, True):
        options = QViTIRM(3, 3)
        model = qvit_irm.quantize(teacher, options)
        qvit_irm.calibrate(model, [x for x, _ in toy_data().eval])
        guide = qvit_irm.guide(model, options, teacher)
        config = FitConfig(**RUN, checkpoint_activations=recompute)
        toy_run(config, model=model, budget=None, guide=guide, evaluation=None, max_steps=3)
        ends.append(model)
    assert same_state(*ends) == []


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spec", [Spec(), uniform(3)], ids=["learned", "uniform"])
def test_compiled_steps_train_the_same_model(spec: Spec) -> None:
    """Up to rounding, with probes that see their hooks and with the lock on the way; dropout, whose draws differ, is off."""
    budget = {} if spec == Spec() else {"budget": None}
    start = toy_model(spec, drop_path_rate=0.0, proj_drop_rate=0.0)
    ends = []
    for compiled in (False, True):
        model = copy.deepcopy(start)
        toy_run(FitConfig(**RUN, compile=compiled), model=model, evaluation=None, **budget)
        ends.append(model.state_dict())
    before = start.state_dict()
    for name, value in ends[0].items():
        if name.endswith("bit_width"):
            assert torch.equal(ends[1][name], value), name
        elif value.is_floating_point() and name.endswith(("weight", "log_scale")):
            moved = (value - before[name]).norm()
            assert (ends[1][name] - value).norm() <= 0.02 * moved, name


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "option", "able"),
    [
        ("qvit-irm", "compile", "'qvit' or 'lsq'"),
        ("ivit", "compile", "'qvit' or 'lsq'"),
        ("ivit", "checkpoint_activations", "'qvit' or 'lsq' or 'qvit-irm'"),
    ],
)
def test_a_recipe_names_method_and_option(method: str, option: str, able: str) -> None:
    text = f"method {method!r} does not go with fit.{option}: leave it out, or use {able}"
    options = METHODS[method].uniform(4, 4)
    with pytest.raises(RecipeError, match=text):
        Recipe(method=method, quantize=options, fit=FitConfig(**{option: True}))
    Recipe(method=method, quantize=options)


@pytest.mark.parametrize("option", ["compile", "checkpoint_activations"])
def test_learned_scales_and_float_rows_go_with_both(option: str) -> None:
    fixed = Spec(FixedBits(3), FixedBits(3))
    Recipe(method="qvit", fit=FitConfig(**{option: True}))
    Recipe(method="lsq", quantize=fixed, fit=FitConfig(**{option: True}))
    Recipe(method="float", fit=FitConfig(**{option: True}))


def test_fit_refuses_to_compile_what_is_watched() -> None:
    text = r"fit.compile does not go with a guide, with fit.features or with .*: compiled code does not see .* fit.compile = false"
    model, teacher = toy_model(uniform(3)), vit(depth=1)
    with pytest.raises(ValueError, match=text):
        toy_run(FitConfig(compile=True, features=FeatureDistillation()), model=model, budget=None, teacher=teacher)


def test_fit_refuses_to_recompute_what_is_no_timm_model() -> None:
    data = toy_data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    with pytest.raises(ValueError, match="is set, but Sequential has no set_grad_checkpointing, as timm's models have"):
        fit(model, data.train, order=data.order, config=FitConfig(checkpoint_activations=True), quiet=True)
