"""Memory of training by hand on a toy, and checkpoints against the files that `fit` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from qvit.bits.allocate import Published
from qvit.planning.memory import checkpoint_sizes, saved_activations, size_of, training_memory
from qvit.training.fit_config import FitConfig
from toy_models import uniform, vit
from toy_training import QUICK, toy_model, toy_run

FLOAT = 4


class Toy(nn.Module):
    """Flatten (12 values) -> Linear 8 -> GELU -> Linear 3, and a ReLU whose output is all that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(images.flatten(1)))
        return self.last(hidden).relu()


PER_IMAGE = (12 + 8 + 8 + 3) * FLOAT  # input of first; input of GELU; input of last, GELU's output; ReLU's output
PARAMETERS = (12 * 8 + 8 + 8 * 3 + 3) * FLOAT


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_saved_activations_by_hand(batch: int) -> None:
    """Parameters are saved for the backward pass as well; they are there anyway and do not count."""
    model = Toy().eval()
    assert saved_activations(model, torch.zeros(batch, 3, 2, 2), FitConfig()) == batch * PER_IMAGE
    assert not model.training


def test_memory_by_hand() -> None:
    """AdamW keeps two numbers per parameter and one count per tensor; the average and the teacher are a model each."""
    found = training_memory(Toy(), FitConfig(ema_decay=0.9, distillation=0.5), (3, 2, 2), batch=64, teacher=Toy())
    assert found.parameters == found.gradients == found.average == found.teacher == PARAMETERS
    assert found.optimizer == 2 * PARAMETERS + 4 * FLOAT
    assert found.activations == 64 * PER_IMAGE
    assert found.peak == 6 * PARAMETERS + 4 * FLOAT + 64 * PER_IMAGE
    bare = training_memory(Toy(), FitConfig(optimizer="sgd"), (3, 2, 2), batch=1, teacher=None)
    assert (bare.optimizer, bare.average, bare.teacher) == (PARAMETERS, 0, 0)  # timm's has a momentum


def test_activations_are_linear_in_the_batch() -> None:
    """What two small batches predict is what a large one keeps, weights' own copies included."""
    model = toy_model(uniform(3), drop_path_rate=0.0, proj_drop_rate=0.0)
    predicted = training_memory(model, FitConfig(), (3, 16, 16), batch=7, teacher=None).activations
    assert predicted == saved_activations(model, torch.zeros(7, 3, 16, 16), FitConfig())
    assert predicted > 7 * saved_activations(vit(depth=1), torch.zeros(1, 3, 16, 16), FitConfig())


def test_recomputed_blocks_keep_their_input_alone() -> None:
    """Each further block adds its input, 17 tokens of 16 channels, and nothing else."""
    images, config = torch.zeros(2, 3, 16, 16), FitConfig(checkpoint_activations=True)
    two, three = (saved_activations(vit(depth=depth), images, config) for depth in (2, 3))
    assert three - two == 2 * 17 * 16 * FLOAT
    assert two < saved_activations(vit(depth=2), images, FitConfig())


def test_bf16_keeps_less() -> None:
    model = vit(depth=1)
    images = torch.zeros(2, 3, 16, 16)
    full = saved_activations(model, images, FitConfig())
    assert saved_activations(model, images, FitConfig(precision="bf16")) < 0.9 * full


@pytest.mark.parametrize(
    "change", [{}, {"ema_decay": 0.9}, {"optimizer": "lamb"}, {"allocation": Published()}], ids=str
)
def test_checkpoints_are_as_large_as_predicted(change: dict, tmp_path: Path) -> None:
    """Tensor by tensor, from the file of a real run's last step."""
    config = FitConfig(**{"epochs": 1, "allocation": QUICK, **change})
    model = toy_model()
    predicted = checkpoint_sizes(model, config)
    toy_run(config, tmp_path, model=model, evaluation=None)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    found: dict[str, int] = {}
    with safe_open(str(newest), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            kind = name.partition(".")[0]
            found[kind] = found.get(kind, 0) + size_of([file.get_tensor(name)])
    assert predicted == found
    assert 0 < newest.stat().st_size - sum(found.values()) < 60_000  # names, shapes and JSON


def test_memory_is_that_of_a_model_on_another_device() -> None:
    """Behind a float row that was trained on a GPU; the meta device stands in for one."""
    here, there = (
        training_memory(m, FitConfig(), (3, 16, 16), batch=4, teacher=None) for m in (vit(), vit().to("meta"))
    )
    assert (here.parameters, here.optimizer) == (there.parameters, there.optimizer)
