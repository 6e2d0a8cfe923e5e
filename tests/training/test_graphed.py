"""A network whose passes are recorded and replayed trains the same model, and is refused where it could not."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qvit import calibrate, quantize
from qvit.bits.allocate import Lagrangian
from qvit.methods import IViT
from qvit.settings.recipe import Recipe, RecipeError
from qvit.spec import Spec
from qvit.training.compute import check_graph
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
    start, ends = vit(depth=1, drop_path_rate=0.1, proj_drop_rate=0.1), []
    for graph in (False, True):
        model = copy.deepcopy(start)
        toy_run(FitConfig(epochs=1.0, cuda_graph=graph), model=model, budget=None, evaluation=None)
        ends.append(model)
    assert same_state(*ends) == []
    assert len(replays) == 6


# -- which passes are replayed, with a recorder that records nothing ---------------------------------------------------


class Recorder:
    """Stands for make_graphed_callables, which gives a module another forward: here one that counts, and runs the old one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modules: list[weakref.ref[nn.Module]] = []
        self.replays: list[int] = []
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", self.record)
        monkeypatch.setattr("qvit.training.fit.check_graph", lambda *_: None)

    def record(self, module: nn.Module, samples: tuple[Tensor], **_: object) -> None:
        """Runs the module as the real one does, to warm up."""
        assert all(child.training for child in module.modules())
        run = module.forward
        for _ in range(3):
            run(*samples)

        def replay(images: Tensor) -> Tensor:
            self.replays.append(len(images))
            return run(images)

        module.forward = replay
        self.modules.append(weakref.ref(module))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.mark.parametrize(("spec", "replays"), [(Spec(), 4), (uniform(3), 6)], ids=["learned", "uniform"])
def test_passes_are_recorded_once_when_bits_are_final(spec: Spec, replays: int, recorder: Recorder) -> None:
    """Evaluations in between run the network itself. What was recorded is freed at the end, without a garbage collection."""
    budget = {} if spec == Spec() else {"budget": None}
    start, ends = toy_model(spec), []
    gc.disable()
    try:
        for graph in (False, True):
            model = copy.deepcopy(start)
            toy_run(FitConfig(**RUN, ema_decay=0.5, cuda_graph=graph), model=model, **budget)
            ends.append(model)
        assert same_state(*ends) == []
        assert recorder.replays == [16] * replays
        assert [module() for module in recorder.modules] == [None]
    finally:
        gc.enable()


def test_a_recording_is_of_the_largest_batch(recorder: Recorder) -> None:
    """The one that is left over at the end of an epoch is not what the other steps look like."""
    graphed, batch = GraphedNetwork(nn.Linear(3, 2), "no"), torch.ones(4, 3)
    graphed(batch)
    assert recorder.replays == []
    graphed.record(batch[:2])
    graphed(batch[:2])
    graphed.record(batch)
    graphed.record(batch[:2])
    graphed(batch)
    graphed(batch[:2])
    assert recorder.replays == [2, 4]
    graphed.close()
    graphed(batch)
    assert recorder.replays == [2, 4]
    graphed.record(batch[:2])
    graphed(batch[:2])
    assert recorder.replays == [2, 4, 2]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_it_is_recorded_within_the_precision_of_the_run(precision: str, dtype: torch.dtype, recorder: Recorder) -> None:
    graphed, batch = GraphedNetwork(nn.Linear(3, 2).eval(), precision), torch.ones(4, 3)
    graphed.record(batch)
    assert graphed(batch).dtype == dtype
    assert recorder.replays == [4]


def test_recording_leaves_buffers_as_they_were(recorder: Recorder) -> None:
    network, batch = nn.BatchNorm1d(3), torch.arange(12.0).view(4, 3)
    graphed = GraphedNetwork(network, "no")
    graphed.record(batch)
    assert network.running_mean is not None
    assert network.running_mean.tolist() == [0, 0, 0]
    graphed(batch)
    torch.testing.assert_close(network.running_mean, 0.1 * batch.mean(0))
    assert recorder.replays == [4]


def test_a_network_that_cannot_be_recorded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch fails: the end of the recording complains that it was broken off, its context says by what."""

    def fail(*_: object, **__: object) -> None:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    text = r"fit.cuda_graph: .* cannot be recorded \(.*not permitted .*\); set fit.cuda_graph = false, and go on"
    with pytest.raises(RuntimeError, match=text):
        GraphedNetwork(nn.Linear(3, 2), "no").record(torch.ones(4, 3))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"compile": True}, "fit.compile"),
        ({"checkpoint_activations": True}, "fit.checkpoint_activations"),
        ({"accumulate": 2, "activations_first": 0.1}, "fit.accumulate, fit.activations_first"),
        ({"features": FeatureDistillation()}, "fit.features"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^fit.cuda_graph does not go with {named}; set fit.cuda_graph = false"):
        FitConfig(**RUN, **changes, cuda_graph=True)


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ({"device": "cpu"}, "launched on an NVIDIA GPU, and this run is on cpu; set fit.cuda_graph = false"),
        ({"hip": "6.4"}, "launched on an NVIDIA GPU, and this run is on an AMD GPU; set fit.cuda_graph = false"),
        ({"processes": 2}, "does not go with 2 processes, which wait for each other"),
        ({"guided": True}, "does not go with a guide, whose hooks inside the network would run once"),
        ({"pinned": True}, "does not go with a loader that pins memory: .* give the loader pin_memory=False"),
    ],
)
def test_a_machine_or_loader_that_does_not_go_with_it_is_refused(
    machine: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", machine.get("hip"))
    device = torch.device(machine.get("device", "cuda"))
    loader = DataLoader([1, 2], pin_memory=machine.get("pinned", False))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=text):
        check_graph(loader, machine.get("guided", False), device, machine.get("processes", 1))


def test_one_process_with_an_nvidia_gpu_goes_with_it() -> None:
    check_graph(DataLoader([1, 2]), False, torch.device("cuda"), 1)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fit_asks_before_training() -> None:
    with pytest.raises(ValueError, match="this run is on cpu"):
        fit(vit(depth=1), toy_data().train, config=FitConfig(epochs=1.0, cuda_graph=True), quiet=True)


def test_a_recipe_whose_method_computes_in_integers_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"method 'ivit' does not go with fit.cuda_graph: leave it out, or use 'qvit' or"
    ):
        Recipe(method="ivit", quantize=IViT(), fit=FitConfig(cuda_graph=True))
