"""evaluate(): the same few numbers for a float model, a quantized module and a frozen Program.

top-1 and top-5 where there are labels; agreement (share of images with the same predicted class) with a reference where
one is given, which also works on images without labels. The outcome of every single image is kept, so that two models can
be compared in pairs: the difference of paired outcomes has a far smaller spread than the difference of two accuracies.
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


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    images       how many
    labelled     how many had a label
    top1, top5   percent of the labelled ones, or None
    agreement    percent of all images on which the reference predicts the same class, or None
    predictions  predicted class of each image, int64 (images,)
    labels       label of each image, -1: none, int64 (images,)
    correct      outcome of each labelled image, bool (labelled,)
    """

    images: int
    labelled: int
    top1: float | None
    top5: float | None
    agreement: float | None
    predictions: np.ndarray
    labels: np.ndarray
    correct: np.ndarray


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


def evaluate(
    model: nn.Module | qvit_runtime.Program,
    batches: Batches,
    reference: nn.Module | qvit_runtime.Program | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run `model` over batches of (images, labels); a label of -1 means none.

    reference  model to compare predictions with
    progress   called with the number of images done

    Raises ValueError when there are no images, FloatingPointError when logits are not finite.
    """
    classify = classifier_of(model)
    compare = None if reference is None else classifier_of(reference)
    top, labels, same, done = [], [], [], 0
    for images, batch_labels in batches:
        logits = classify(images)
        if not torch.isfinite(logits).all():
            raise FloatingPointError(
                f"the model gave NaN or infinite logits within images {done} to {done + len(images)}"
            )
        top.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        labels.append(batch_labels.cpu())
        if compare is not None:
            same.append(compare(images).argmax(1) == logits.argmax(1))
        done += len(images)
        if progress is not None:
            progress(done)
    if not done:
        raise ValueError("there are no images to evaluate on")
    classes, truth = torch.cat(top), torch.cat(labels)
    known = truth >= 0
    hits = (classes == truth[:, None])[known]
    labelled = int(known.sum())
    return Evaluation(
        images=done,
        labelled=labelled,
        top1=float(hits[:, 0].double().mean() * 100) if labelled else None,
        top5=float(hits.any(1).double().mean() * 100) if labelled else None,
        agreement=float(torch.cat(same).double().mean() * 100) if same else None,
        predictions=classes[:, 0].numpy(),
        labels=truth.numpy(),
        correct=hits[:, 0].numpy(),
    )
