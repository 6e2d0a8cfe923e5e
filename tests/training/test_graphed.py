"""A network whose passes are recorded and replayed trains the same model, and is refused where it could not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvit import calibrate, quantize
from qvit.bits.allocate import Lagrangian
from qvit.methods import IViT
from qvit.settings.recipe import Recipe, RecipeError
from qvit.spec import Spec
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit.training.graphed import GraphedNetwork
from toy_models import uniform, vit
from toy_training import same_state, toy_data, toy_model, toy_run

RUN: dict[str, Any] = {"epochs": 1.0, "log_every": 1, "lock_at": 0.34, "allocation": Lagrangian(every=2, warm_up=1)}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@gpu
@pytest.mark.parametrize("dropped", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("spec", [Spec(), uniform(3)], ids=["learned", "uniform"])
def test_replayed_steps_train_the_same_model(spec: Spec, precision: str, dropped: float) -> None:
    """Bit for bit: bits locked on the way, and dropout draws what it drew."""
    budget = {} if spec == Spec() else {"budget": None}
    start = quantize(vit(depth=1, drop_path_rate=dropped, proj_drop_rate=dropped).cuda(), spec, quiet=True)
    calibrate(start, [images for images, _ in toy_data().eval])
    ends = []
    for graph in (False, True):
        model = copy.deepcopy(start)
        config = FitConfig(**RUN, precision=precision, cuda_graph=graph)  # type: ignore[arg-type]
        toy_run(config, model=model, evaluation=None, **budget)
        ends.append(model)
    assert same_state(*ends) == []
    assert same_state(start, ends[0]) != []


@gpu
def test_a_float_model_is_recorded_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[torch.Size] = []
    call = GraphedNetwork.__call__

    def counted(self: GraphedNetwork, images: Tensor) -> Tensor:
        assert self.replayed is not None
        replays.append(images.shape)
        return call(self, images)

    monkeypatch.setattr(GraphedNetwork, "__call__", counted)
    start, ends = vit(depth=1), []
    for graph in (False, True):
        model = copy.deepcopy(start)
        toy_run(FitConfig(epochs=1.0, cuda_graph=graph), model=model, budget=None, evaluation=None)
        ends.append(model)
    assert same_state(*ends) == []
    assert len(replays) == 6


# -- which passes are replayed, with a recorder that records nothing ---------------------------------------------------


class Doubled(nn.Module):
    """2 x, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images * 2


def recorder(module: nn.Module, samples: tuple[Tensor], **_: object) -> None:
    """Stands for make_graphed_callables, which gives the module another forward: here what it gave, less one."""
    assert module.training
    run = module.forward
    module.forward = lambda images: run(images) - 1


def test_only_batches_like_the_recorded_one_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    graphed, batch = GraphedNetwork(Doubled(), "no"), torch.ones(4, 3)
    assert graphed(batch).unique().tolist() == [2]  # nothing is recorded yet
    graphed.record(batch)
    assert graphed(batch).unique().tolist() == [1]
    assert graphed(batch[:2]).unique().tolist() == [2]
    graphed.record(batch[:2])  # the first one stays
    assert graphed(batch).unique().tolist() == [1]
    graphed.forget()
    assert graphed(batch).unique().tolist() == [2]
    graphed.record(batch[:2])
    assert graphed(batch[:2]).unique().tolist() == [1]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_it_is_recorded_within_the_precision_of_the_run(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    graphed, batch = GraphedNetwork(nn.Linear(3, 2), precision), torch.ones(4, 3)
    graphed.record(batch)
    assert graphed(batch).dtype == dtype


def test_a_network_that_cannot_be_recorded_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    network = Doubled()
    graphed, batch = GraphedNetwork(network, "no"), torch.ones(4, 3)
    with pytest.warns(UserWarning, match="fit.cuda_graph: this network cannot be recorded.*stream is capturing"):
        graphed.record(batch)
    graphed.record(batch)  # said once
    assert graphed(batch).unique().tolist() == [2]
    assert network.calls == 1


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"compile": True}, "fit.compile"),
        ({"checkpoint_activations": True}, "fit.checkpoint_activations"),
        ({"accumulate": 2}, "fit.accumulate"),
        ({"activations_first": 0.1}, "a guide, fit.features or fit.activations_first"),
        ({"features": FeatureDistillation()}, "a guide, fit.features or fit.activations_first"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: dict[str, Any], named: str) -> None:
    config = FitConfig(**RUN, **changes, cuda_graph=True)
    with pytest.raises(ValueError, match=f"fit.cuda_graph does not go with {named}; set fit.cuda_graph = false"):
        fit(toy_model(uniform(3)), toy_data().train, teacher=vit(depth=1), config=config, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_on_a_cpu_is_refused() -> None:
    config = FitConfig(epochs=1.0, cuda_graph=True)
    with pytest.raises(ValueError, match="launched on an NVIDIA GPU, and this run is on cpu; set it to false"):
        fit(vit(depth=1), toy_data().train, config=config, quiet=True)


def test_a_recipe_whose_method_computes_in_integers_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"method 'ivit' does not go with fit.cuda_graph: leave it out, or use 'qvit' or"
    ):
        Recipe(method="ivit", quantize=IViT(), fit=FitConfig(cuda_graph=True))
