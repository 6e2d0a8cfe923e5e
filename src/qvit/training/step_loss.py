"""StepLoss: what one step minimises, a scalar from one batch.

    (1 - d) cross entropy(logits, mixed labels) + d distillation(logits, teacher's logits) + what the guides add

with d = `fit.distillation`. Mixup and label smoothing are those of the data config, drawn from (seed, batch number) alone.
Guides watch the forward pass, where their method needs more than the logits (`guide`, `feature_distill`).

Precision is one torch.autocast around the forward pass: Accelerate's own would stay in force for the whole process and patch
`forward` of the model that the user gets back. The loss itself is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import DataConfig, mixup_batch
from .distill import Teacher, distillation_loss, hard_distillation_loss
from .fit_config import FitConfig
from .guide import Guide

Network = Callable[[Tensor], Tensor]


class StepLoss:
    """The loss of a run.

    config   distillation, precision and seed
    data     mixup, cutmix and label smoothing; None: plain labels
    teacher  of the distillation, or None
    guides   the list may grow before the first step
    """

    def __init__(
        self, config: FitConfig, data: DataConfig | None, teacher: Teacher | None, guides: Sequence[Guide]
    ) -> None:
        self.config, self.data, self.teacher, self.guides = config, data, teacher, guides

    def __call__(self, network: Network, images: Tensor, labels: Tensor, batch_number: int) -> Tensor:
        """Scalar loss of normalised images (B, 3, H, W) and labels (B,); `batch_number` counts from the run's first batch."""
        targets = labels
        if self.data is not None:
            images, targets = mixup_batch(images, labels, self.data, self.config.seed, batch_number)
        with ExitStack() as watching:
            for guide in self.guides:
                watching.enter_context(guide.watch())
            loss = self._of_logits(network, images, targets, batch_number)
            for guide in self.guides:
                further = guide.loss(images)
                loss = loss if further is None else loss + further
        return loss

    def _of_logits(self, network: Network, images: Tensor, targets: Tensor, batch_number: int) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), targets)
        share = self.config.distillation
        if share > 0 and self.teacher is not None:
            wanted = self.teacher.logits(images, batch_number)
            if self.config.hard_distillation:
                taught = hard_distillation_loss(logits, wanted)
            else:
                taught = distillation_loss(logits, wanted, self.config.temperature)
            loss = (1 - share) * loss + share * taught
        return loss
