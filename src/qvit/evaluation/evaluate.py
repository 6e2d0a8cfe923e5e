"""evaluate(): the same few numbers for a float model, a quantized module and a frozen Program.

top-1 and top-5 where there are labels; agreement (share of images with the same predicted class) of two evaluations of the same
images, which also works without labels. The outcome of every single image is kept, so that two models can
be compared in pairs: the difference of paired outcomes has a far smaller spread than the difference of two accuracies.

What is kept of an image is a row of integers, so that rows found by several processes can be put together
(`shared_evaluation`):

    label | the five best classes, best first (-1: the model has fewer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import qvit_runtime

Batches = Iterable[tuple[Tensor, Tensor]]
Classifier = Callable[[Tensor], Tensor]
BEST = 5
NO_ROWS = torch.empty(0, 1 + BEST, dtype=torch.int64)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    images       how many
    labelled     how many had a label
    top1, top5   percent of the labelled ones, or None
    predictions  predicted class of each image, int64 (images,)
    labels       label of each image, -1: none, int64 (images,)
    correct      outcome of each labelled image, bool (labelled,)
    """

    images: int
    labelled: int
    top1: float | None
    top5: float | None
    predictions: np.ndarray
    labels: np.ndarray
    correct: np.ndarray

    def agreement_with(self, other: Evaluation) -> float:
        """Percent of the images of which `other`, an evaluation on the same images in the same order, predicts the same class."""
        return float((self.predictions == other.predictions).mean() * 100)


def classifier_of(model: nn.Module | qvit_runtime.Program) -> Classifier:
    """Normalised images (B, 3, H, W) -> logits (B, classes), without gradients and in eval mode."""
    if isinstance(model, qvit_runtime.Program):
        program = model
        return lambda images: torch.from_numpy(qvit_runtime.run(program, images.cpu().numpy()))
    module, first = model, next(model.parameters())

    @torch.no_grad()
    def classify(images: Tensor) -> Tensor:
        was_training = module.training
        module.eval()
        try:
            return module(images.to(first.device, first.dtype)).float().cpu()
        finally:
            module.train(was_training)

    return classify


def outcome_rows(
    model: nn.Module | qvit_runtime.Program,
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """The rows of each batch, int64 (B, 6); arguments and errors as in `evaluate`."""
    classify = classifier_of(model)
    found, done = [], 0
    for images, labels in batches:
        logits = classify(images)
        if not torch.isfinite(logits).all():
            raise FloatingPointError(
                f"the model gave NaN or infinite logits within images {done} to {done + len(images)}"
            )
        rows = torch.full((len(images), 1 + BEST), -1)
        rows[:, 0] = labels
        best = logits.topk(min(BEST, logits.shape[1]), dim=1).indices
        rows[:, 1 : 1 + best.shape[1]] = best
        found.append(rows)
        done += len(images)
        if progress is not None:
            progress(done)
    return found


def summary(rows: Tensor) -> Evaluation:
    """The numbers of all rows (images, 6) together. Raises ValueError when there are none."""
    if not len(rows):
        raise ValueError("there are no images to evaluate on")
    labels, best = rows[:, 0], rows[:, 1:]
    known = labels >= 0
    hits = (best == labels[:, None])[known]
    labelled = int(known.sum())
    return Evaluation(
        images=len(rows),
        labelled=labelled,
        top1=float(hits[:, 0].double().mean() * 100) if labelled else None,
        top5=float(hits.any(1).double().mean() * 100) if labelled else None,
        predictions=best[:, 0].numpy(),
        labels=labels.numpy(),
        correct=hits[:, 0].numpy(),
    )


def evaluate(
    model: nn.Module | qvit_runtime.Program,
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run `model` over batches of (images, labels), in this process; a label of -1 means none.

    progress  called with the number of images done

    Raises ValueError when there are no images, FloatingPointError when logits are not finite.
    """
    return summary(torch.cat([NO_ROWS, *outcome_rows(model, batches, progress)]))
