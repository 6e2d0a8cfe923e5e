"""Feature distillation: the student keeps the directions of the teacher's last features that carry its variance.

Logits are few numbers, and the labels speak about them too; the features in front of the classifier are what the network
knows. GPLQ (arXiv 2506.11784, its stage of activations) holds a quantized network to those of the float model while it
trains for one epoch, and keeps its value for other tasks. With f_s, f_t (B, C) the features of student and teacher, m the
mean of the teacher's and P (C, K) its principal components that explain a share of its variance,

    L = mean over B and K of ( (f_s - m) P - (f_t - m) P )^2  =  mean of ( (f_s - f_t) P )^2

so m is needed to find P, and then cancels. What P leaves out is noise that a network of few bits need not copy.

P is computed before the first step, from augmented training images (not yet mixed: mixup and cutmix come after), by the same
batches on a resume.
Features are the input of timm's classifier (after pooling and the last norm); those of a distilled DeiT are both of its
tokens, side by side. Teacher and student have the same architecture.

Differences from the paper: K is the fewest components that reach the share (there: about 60 %, rounded to a multiple of 32),
and other batches of the same training images estimate P.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..system.processes import mean_over_processes


@dataclass(frozen=True)
class FeatureDistillation:
    """Options of the loss; `fit` needs a teacher for it.

    weight    of the loss on features
    variance  share of the variance of the teacher's features that the components must explain, above 0 up to 1
    batches   training batches that the components are computed from: some 5 images per channel are enough
    """

    weight: float = 1.0
    variance: float = 0.6
    batches: int = 16

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"FeatureDistillation.weight is {self.weight}; it must be positive (leave features out for none)"
            )
        if not 0 < self.variance <= 1:
            raise ValueError(f"FeatureDistillation.variance is {self.variance}; it must lie above 0 and up to 1")
        if self.batches < 1:
            raise ValueError(f"FeatureDistillation.batches is {self.batches}; it must be 1 or more")


class Features:
    """The input of a model's classifier, as the last forward pass inside `watched` saw it."""

    def __init__(self, model: nn.Module) -> None:
        found = model.get_classifier()  # type: ignore[operator]
        self.classifiers: tuple[nn.Module, ...] = found if isinstance(found, tuple) else (found,)
        self.seen: list[Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hooks stand inside; what they saw is forgotten at the end."""
        handles = [layer.register_forward_pre_hook(self._keep) for layer in self.classifiers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.seen = []

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(self.seen) == len(self.classifiers):
            self.seen = []
        self.seen.append(args[0])

    def take(self) -> Tensor:
        """(B, C) float32 of the last pass."""
        return torch.cat([values.float() for values in self.seen], dim=1)


@torch.no_grad()
def principal_components(teacher: nn.Module, images: Iterable[Tensor], variance: float) -> Tensor:
    """(C, K) orthonormal, float32: the fewest directions that explain the share `variance` of the teacher's features.

    images  batches (B, 3, H, W) of equal size, this process's; the components are those of all processes' images
    """
    features = Features(teacher)
    first: list[Tensor] = []
    second: list[Tensor] = []
    with features.watched():
        for batch in images:
            teacher(batch)
            values = features.take().double()
            first.append(values.mean(0))
            second.append(values.T @ values / len(values))
    moments = mean_over_processes(torch.cat([torch.stack(first).mean(0)[None], torch.stack(second).mean(0)]))
    mean, products = moments[0], moments[1:]
    values, vectors = torch.linalg.eigh(products - torch.outer(mean, mean))  # from the smallest on
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    explained = values.cumsum(0)
    count = int((explained < variance * explained[-1] * (1 - 1e-9)).sum()) + 1
    return vectors[:, :count].float().contiguous()


def feature_loss(student: Tensor, teacher: Tensor, components: Tensor) -> Tensor:
    """Mean squared difference of features (B, C) along `components` (C, K), a scalar."""
    return ((student - teacher) @ components).square().mean()


class FeatureGuide:
    """A `Guide` that adds the loss on features.

    student     the module that is trained
    teacher     the float model, in eval mode
    components  from `principal_components`
    weight      of the loss
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, components: Tensor, weight: float) -> None:
        self.teacher, self.components, self.weight = teacher, components, weight
        self.student_features, self.teacher_features = Features(student), Features(teacher)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, forward passes of student and teacher leave their features here."""
        with self.student_features.watched(), self.teacher_features.watched():
            yield

    def loss(self, images: Tensor) -> Tensor:
        """weight x L of the pass that was watched; runs the teacher where its logits were not asked for, or came from a cache."""
        if not self.teacher_features.seen:
            with torch.no_grad():
                self.teacher(images)
        student, teacher = self.student_features.take(), self.teacher_features.take()
        return self.weight * feature_loss(student, teacher, self.components)

    def after_step(self) -> None:
        """Nothing here follows the weights."""

    def drop_step(self) -> None:
        """Nothing is left of a step that was not made."""
