"""Distribution-guided distillation (DGD) of Q-ViT, Li et al., arXiv 2210.06707, and the running statistics of IRM.

The attention of a low-bit network drifts from that of the float one even where the logits agree. DGD compares, in every
layer and head, how similar each patch is to each other one, for queries and for keys:

    G = x x^T / ||x x^T||_F                      x (N, d): rectified q or k of one image and head; G (N, N)
    L = sum over layers and heads ( ||G_q teacher - G_q student||_F + ||G_k teacher - G_k student||_F ),  mean over images

The paper writes ||.||_2; it is read as the Frobenius norm, the one that a sum over patches is. It is not squared. For Swin an
"image" is a window. ||G_t - G_s||_F^2 = 2 - 2 CKA, the centred-kernel similarity without its centring, so each term lies in
[0, sqrt 2]; G ignores the scale of x, hence gamma and sigma of IRM, but not beta and mu.

The teacher is the float model of the same architecture; its q and k are rectified without an affine map, by the means of
the batch at hand (their variance would cancel). Where the student does not rectify, the teacher does not either.

What is seen, and when: forward hooks stand for the length of `watch`, in which `fit` runs the student and, when logits are
distilled too, the teacher; if the teacher did not run (its logits came from a cache), `loss` runs it. The public code of the
authors contains neither G nor any loss on features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...network.attention import QuantAttention, QuantWindowAttention, split_heads
from ...network.rectify import RectifiedLinear, Rectifier
from ...system.processes import mean_over_processes


def patch_similarity(x: Tensor) -> Tensor:
    """(..., N, d) -> (..., N, N) of Frobenius norm 1 (0 for x = 0)."""
    products = x @ x.transpose(-2, -1)
    return products / torch.linalg.matrix_norm(products, keepdim=True).clamp(min=1e-12)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(B, H, N, d) twice -> scalar: distances of the patch similarities, summed over heads, mean over B."""
    apart = patch_similarity(student.float()) - patch_similarity(teacher.float())
    return torch.linalg.vector_norm(apart, dim=(-2, -1)).sum(-1).mean()  # its gradient at 0 is 0


def head_statistics(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(B, N, 3 H d) -> mean and variance of q and k, (2 H,) each, over images, tokens and channels of a head."""
    flat = torch.stack(split_heads(qkv, heads)[:2]).float().transpose(1, 2).flatten(2)  # (2, H, B N d)
    return flat.mean(-1).flatten(), flat.var(-1, correction=0).flatten()


class IRMGuide:
    """A `Guide`: the loss of DGD, and the update of IRM's running statistics after each step.

    student   from qvit_irm.quantize
    teacher   the float model
    weight    of DGD in the loss; 0: none, the teacher is not run
    momentum  of the running statistics
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weight: float, momentum: float) -> None:
        self.weight, self.momentum = weight, momentum
        self.teacher = teacher.eval()
        self.attention = {
            name: module
            for name, module in student.named_modules()
            if isinstance(module, (QuantAttention, QuantWindowAttention))
        }
        self._student: dict[str, tuple[Tensor, Tensor]] = {}
        self._teacher: dict[str, tuple[Tensor, Tensor]] = {}
        self._statistics: dict[Rectifier, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, forward passes of student and teacher leave their q and k here."""
        handles = []
        for name, module in self.attention.items():
            handles.append(module.qkv.register_forward_hook(self._keeps(self._student, name, module.num_heads)))
            if isinstance(module.qkv, RectifiedLinear):
                handles.append(module.qkv.rectifier.register_forward_pre_hook(self._counts))
            if self.weight:
                original = self.teacher.get_submodule(f"{name}.qkv")
                handles.append(original.register_forward_hook(self._keeps(self._teacher, name, module.num_heads)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._student.clear()
            self._teacher.clear()

    def _keeps(self, store: dict[str, tuple[Tensor, Tensor]], name: str, heads: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            store[name] = split_heads(output, heads)[:2]

        return hook

    def _counts(self, rectifier: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(rectifier, Rectifier)
        with torch.no_grad():
            self._statistics.setdefault(rectifier, []).append(head_statistics(args[0], rectifier.heads))

    def loss(self, images: Tensor) -> Tensor | None:
        """weight x L_DGD of the pass that was watched, or None when there is no distillation."""
        if not self.weight:
            return None
        if not self._teacher:
            with torch.no_grad():
                self.teacher.to(images.device)(images)
        total = images.new_zeros(())
        for name, module in self.attention.items():
            for student, teacher in zip(self._student[name], self._teacher[name], strict=True):
                if isinstance(module.qkv, RectifiedLinear):
                    teacher = teacher - teacher.mean((0, 2, 3), keepdim=True)
                total = total + similarity_distance(student, teacher)
        return self.weight * total

    def after_step(self) -> None:
        """Fold the statistics of the step's batches, those of all processes, into the running ones."""
        for rectifier, batches in self._statistics.items():
            moments = torch.stack([torch.stack(values).mean(0) for values in zip(*batches, strict=True)])
            mean, variance = mean_over_processes(moments)
            rectifier.update(mean, variance, self.momentum)
        self._statistics.clear()

    def drop_step(self) -> None:
        """Forget the statistics of a step that was not made."""
        self._statistics.clear()
