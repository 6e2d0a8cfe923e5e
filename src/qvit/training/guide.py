"""Guide: what a method adds to training beyond the loss on logits.

    with guide.watch():              forward hooks, usually
        logits = student(images)     and, where logits are distilled, those of the teacher
        loss = ... + guide.loss(images)
    backward, optimizer step
    guide.after_step()           or, when the loss was not finite, guide.drop_step()

So a method that looks inside the network needs no other training loop.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """One run's guide; it was made for the module that is trained."""

    def watch(self) -> AbstractContextManager[None]:
        """Around the forward pass of a batch and the call of `loss`."""

    def loss(self, images: Tensor) -> Tensor | None:
        """A scalar to add to the loss of the forward pass that was just made on `images`, or None for nothing."""

    def after_step(self) -> None:
        """The optimizer has moved the weights: update what is not learned by gradients, such as running statistics."""

    def drop_step(self) -> None:
        """The step was not made: forget what its passes left behind."""
