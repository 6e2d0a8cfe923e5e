"""evaluate: top-1, top-5 and agreement counted by hand; what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qvit_runtime
from qvit.evaluation.evaluate import evaluate
from qvit.freezing.freeze import freeze
from toy_models import calibrated, images, uniform, vit


class Table(nn.Module):
    """Logits by image number, which is what the image holds; remembers the mode it ran in."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.logits[x[:, 0, 0, 0].long()]


def numbered(labels: list[int], batch: int = 2) -> list[tuple[Tensor, Tensor]]:
    pixels = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return list(zip(pixels.split(batch), torch.tensor(labels).split(batch), strict=True))


def rows(*best: list[int]) -> list[list[float]]:
    """Logits of 7 classes that rank the given classes first."""
    return [[10.0 - order.index(c) if c in order else -float(c) for c in range(7)] for order in best]


MODEL = rows([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 6, 0, 1, 2], [2, 3, 4, 5, 6], [6, 0, 1, 2, 3])


def test_by_hand() -> None:
    """Labels: first place, third place, sixth or worse, none, first place."""
    outcome = evaluate(Table(MODEL), numbered([0, 2, 4, -1, 6]))
    assert (outcome.images, outcome.labelled) == (5, 4)
    assert outcome.top1 == 50.0
    assert outcome.top5 == 75.0
    assert outcome.predictions.tolist() == [0, 1, 5, 2, 6]
    assert outcome.correct.tolist() == [True, False, False, True]


def test_agreement_needs_no_labels() -> None:
    other = evaluate(Table(rows([0], [1], [4], [2], [5])), numbered([-1] * 5))
    outcome = evaluate(Table(MODEL), numbered([-1] * 5))
    assert (outcome.labelled, outcome.top1, outcome.top5) == (0, None, None)
    assert outcome.agreement_with(other) == other.agreement_with(outcome) == pytest.approx(60.0)


def test_fewer_than_five_classes() -> None:
    outcome = evaluate(Table([[0.0, 1.0], [0.0, 1.0]]), numbered([1, 0]))
    assert (outcome.top1, outcome.top5) == (50.0, 100.0)


@pytest.mark.parametrize("training", [True, False])
def test_eval_mode_inside_and_the_old_mode_after(training: bool) -> None:
    model = Table(MODEL).train(training)
    done: list[int] = []
    evaluate(model, numbered([0] * 5), progress=done.append)
    assert model.training is training
    assert model.modes == [False] * 3
    assert done == [2, 4, 5]


def test_no_images() -> None:
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        evaluate(Table(MODEL), [])


def test_nan_logits_are_refused_with_their_place() -> None:
    broken = [*MODEL[:3], [float("nan")] * 7, MODEL[4]]
    with pytest.raises(FloatingPointError, match=r"^the model gave NaN or infinite logits within images 2 to 4$"):
        evaluate(Table(broken), numbered([0] * 5))


def test_a_program_is_evaluated_like_a_module() -> None:
    model = calibrated(vit(), uniform(6), 16)
    program = freeze(model)
    assert isinstance(program, qvit_runtime.Program)
    batches = [(images(model, 24), torch.arange(24) % 5)]
    frozen, fake = evaluate(program, batches), evaluate(model, batches)
    assert frozen.images == 24
    assert frozen.agreement_with(fake) > 95
