"""Guide: what a method adds to training beyond the loss on logits.

`fit` asks for nothing but a further loss after each forward pass and gives notice after each optimizer step. How the guide
learned about that forward pass (forward hooks, usually) is its own business, so a method that looks inside the network
needs no other training loop.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """One run's guide; it was made for the module that is trained."""

    def loss(self, images: Tensor) -> Tensor | None:
        """A scalar to add to the loss of the forward pass that was just made on `images`, or None for nothing."""

    def after_step(self) -> None:
        """The optimizer has moved the weights: update what is not learned by gradients, such as running statistics."""
