"""Feature distillation: components by hand, a loss that sees nothing else, gradients for the student alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.training.feature_distill import (
    FeatureDistillation,
    FeatureGuide,
    Features,
    feature_loss,
    principal_components,
)
from qvit.training.fit_config import FitConfig
from toy_models import FAMILIES, images, uniform, vit
from toy_training import QUICK, same_state, toy_model, toy_run


class Passing(nn.Module):
    """A "network" whose features are its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def stretched(shift: float = 0.0) -> Tensor:
    """(4, 3): variances 8, 2 and 0 along two rotated axes and the third one."""
    along, across = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([-0.8, 0.6, 0.0])
    return torch.stack([4 * along, -4 * along, 2 * across, -2 * across]) + shift


@pytest.mark.parametrize(("share", "count"), [(0.6, 1), (0.8, 1), (0.81, 2), (1.0, 2)])
def test_components_by_hand(share: float, count: int) -> None:
    """Variances 32/4 and 8/4: the first axis explains 80 %. The mean, far from zero, is taken off first."""
    found = principal_components(Passing(), [stretched(5.0)], share)
    assert found.shape == (3, count)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0].abs(), torch.tensor([0.6, 0.8, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T @ found, torch.eye(count), atol=1e-5, rtol=0)


def test_components_are_those_of_all_batches_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(4, 8, 6) @ torch.randn(6, 6) + 3
    whole = principal_components(Passing(), [data.flatten(0, 1)], 0.7)
    in_batches = principal_components(Passing(), list(data), 0.7)
    torch.testing.assert_close(in_batches @ in_batches.T, whole @ whole.T, atol=1e-5, rtol=0)
    others: list[Tensor] = []
    monkeypatch.setattr(
        "qvit.training.feature_distill.mean_over_processes", lambda moments: others.append(moments) or moments
    )
    principal_components(Passing(), list(data[2:]), 0.7)
    monkeypatch.setattr("qvit.training.feature_distill.mean_over_processes", lambda moments: (moments + others[0]) / 2)
    shared = principal_components(Passing(), list(data[:2]), 0.7)
    torch.testing.assert_close(shared @ shared.T, whole @ whole.T, atol=1e-5, rtol=0)


def test_constant_features_have_one_direction() -> None:
    assert principal_components(Passing(), [torch.ones(4, 3)], 0.6).shape == (3, 1)


def test_loss_by_hand() -> None:
    """Only the difference along the components counts."""
    components = torch.eye(4)[:, :2]
    student, teacher = torch.zeros(2, 4), torch.tensor([[1.0, 2.0, 9.0, 9.0], [3.0, 0.0, 9.0, 9.0]])
    assert feature_loss(student, teacher, components) == (1 + 4 + 9) / 4
    student[:, :2] = teacher[:, :2]
    assert feature_loss(student, teacher, components) == 0


@pytest.mark.parametrize("family", ["deit", "deit_distilled", "dinov2", "swin"])
def test_features_are_the_input_of_the_classifier(family: str) -> None:
    """timm's own `forward_head(pre_logits=True)`, and for two heads both tokens; a pass is seen anew each time."""
    model = FAMILIES[family]()
    x = images(model)
    features = Features(model)
    with features.watched(), torch.no_grad():
        model(torch.zeros_like(x))
        model(x)
        seen = features.take()
        tokens = model.forward_features(x)
        if family == "deit_distilled":
            expected = torch.cat([tokens[:, 0], tokens[:, 1]], 1)
        else:
            expected = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(seen, expected)
    assert not features.seen


def watched_loss(student: nn.Module, teacher: nn.Module, teacher_runs: bool) -> Tensor:
    x = images(teacher)
    guide = FeatureGuide(student, teacher, principal_components(teacher, [x], 0.9), weight=2.0)
    with guide.watch():
        student(x)
        if teacher_runs:
            with torch.no_grad():
                teacher(x)
        return guide.loss(x)


def test_zero_for_the_teacher_itself_and_gradients_reach_the_student_alone() -> None:
    teacher = vit()
    assert watched_loss(copy.deepcopy(teacher), teacher, True) == 0
    student = vit(seed=1)
    loss = watched_loss(student, teacher, False)
    assert torch.equal(loss, watched_loss(student, teacher, True))
    loss.backward()
    assert student.get_parameter("blocks.0.mlp.fc1.weight").grad is not None
    assert student.get_parameter("head.weight").grad is None  # behind the features
    assert all(p.grad is None for p in teacher.parameters())


def distance(model: nn.Module, teacher: nn.Module) -> float:
    x = images(teacher, 64, seed=11)
    seen = []
    for each in (model.eval(), teacher):
        features = Features(each)
        with features.watched(), torch.no_grad():
            each(x)
            seen.append(features.take())
    return float((seen[0] - seen[1]).norm())


def test_training_moves_features_towards_the_teachers() -> None:
    """The same run with and without the loss, from the same quantized start."""
    teacher = vit(depth=1)
    ends = []
    for features in (None, FeatureDistillation(weight=20.0, variance=1.0, batches=2)):
        config = FitConfig(epochs=3, features=features, learning_rate=2e-3)
        model, _ = toy_run(config, model=toy_model(uniform(3)), budget=None, teacher=teacher, evaluation=None)
        ends.append(distance(model, teacher))
    assert ends[1] < 0.8 * ends[0]


def test_a_resume_is_exact(tmp_path: Path) -> None:
    config = FitConfig(epochs=1, features=FeatureDistillation(batches=2), checkpoint_every=2, allocation=QUICK)
    teacher = vit(depth=1, seed=3)
    whole, _ = toy_run(config, teacher=teacher, evaluation=None)
    toy_run(config, tmp_path, teacher=teacher, evaluation=None, max_steps=4)
    rest, _ = toy_run(config, tmp_path, teacher=teacher, evaluation=None, resume=True)
    assert not same_state(whole, rest)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weight": 0.0}, r"FeatureDistillation.weight is 0.0; it must be positive \(leave features out for none\)"),
        ({"variance": 1.5}, r"FeatureDistillation.variance is 1.5; it must lie above 0 and up to 1"),
        ({"variance": 0.0}, r"FeatureDistillation.variance is 0.0; it must lie above 0 and up to 1"),
        ({"batches": 0}, r"FeatureDistillation.batches is 0; it must be 1 or more"),
    ],
)
def test_options_are_checked(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FeatureDistillation(**options)


def test_features_need_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"fit.features is set but there is no teacher; pass teacher=float_model"):
        toy_run(FitConfig(features=FeatureDistillation()))
