"""What fit asks of a guide, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from qvit.system.runs import Run
from qvit.training.fit_config import FitConfig
from toy_models import uniform
from toy_training import SHORT, toy_model, toy_run


class Watching:
    """A guide that writes down what `fit` asks of it, and adds a constant to the loss."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        self.calls.append("watch")
        yield
        self.calls.append("watched")

    def loss(self, images: Tensor) -> Tensor:
        self.calls.append(f"loss of {len(images)}")
        return torch.tensor(100.0)

    def after_step(self) -> None:
        self.calls.append("step")

    def drop_step(self) -> None:
        self.calls.append("dropped")


def test_a_guide_watches_every_pass_and_hears_of_every_step(tmp_path: Path) -> None:
    """Its loss is added while its hooks stand; with accumulation there are several passes to a step."""
    guide = Watching()
    config = FitConfig(epochs=0.5, accumulate=2, log_every=1)
    toy_run(config, tmp_path, toy_model(uniform(3)), budget=None, guide=guide, evaluation=None)
    one_pass = ["watch", "loss of 16", "watched"]
    assert guide.calls == 2 * [*one_pass, *one_pass, "step"]  # 6 batches make 3 steps to an epoch; half of them
    losses = [record["loss"] for record in Run(tmp_path).read("metrics.jsonl")]
    assert all(loss > 100 for loss in losses)


def test_a_guide_forgets_the_passes_of_the_warm_up() -> None:
    guide = Watching()
    toy_run(SHORT, model=toy_model(), guide=guide, evaluation=None, max_steps=1)
    one_pass = ["watch", "loss of 16", "watched"]
    assert guide.calls == [*one_pass, "dropped", *one_pass, "dropped", *one_pass, "step"]
