"""Steps of a network, so that a variant is computed from the first step that it changes.

Quantizing block 8 of 12 leaves the inputs of blocks 0 to 8 as they were, bit for bit. So a batch goes once through the
network with its input to every step kept (`inputs`), and each variant starts at the step of its first change (`finish`):

    ViT     embedding | blocks.0 | ... | norm, pooling, classifier
    Swin    patch embedding | layers.0.blocks.0 | ... | layers.1.downsample | layers.1.blocks.0 | ... | norm, pooling, classifier

The steps call timm's own modules in timm's own order, with the same shapes as an unbroken forward pass, so the cached result
is not close to it but equal (there is a test for every family). Memory: the inputs of all steps for one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """A stretch of the network: `run` maps its input to that of the next step; `owners` name the modules in it."""

    owners: tuple[str, ...]
    run: Callable[[Tensor], Tensor]

    def holds(self, tensor: str) -> bool:
        """The quantizer of this tensor acts in this step."""
        return any(tensor.startswith(f"{owner}.") for owner in self.owners)


def steps(model: nn.Module) -> list[Step]:
    """The steps of a supported model (see `support`), from images (B, 3, H, W) to logits (B, classes)."""
    if isinstance(model, SwinTransformer):
        return _swin_steps(model)
    assert isinstance(model, VisionTransformer)
    return [Step(("patch_embed",), _vit_embedding(model)), *_each("blocks", model.blocks), _last_step(model)]


def _each(name: str, blocks: nn.Sequential) -> list[Step]:
    return [Step((f"{name}.{number}",), block) for number, block in enumerate(blocks)]


def _vit_embedding(model: VisionTransformer) -> Callable[[Tensor], Tensor]:
    return lambda images: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _swin_steps(model: SwinTransformer) -> list[Step]:
    found = [Step(("patch_embed",), model.patch_embed)]
    for stage, layer in enumerate(model.layers):
        assert isinstance(layer, SwinTransformerStage)
        if not isinstance(layer.downsample, nn.Identity):
            found.append(Step((f"layers.{stage}.downsample",), layer.downsample))
        found += _each(f"layers.{stage}.blocks", layer.blocks)
    return [*found, _last_step(model)]


def _last_step(model: VisionTransformer | SwinTransformer) -> Step:
    return Step(("head", "head_dist"), lambda x: model.forward_head(model.norm(x)))


def first_step(chain: list[Step], tensors: Iterable[str]) -> int:
    """Index of the first step that holds one of the tensors; the number of steps when there are none."""
    names = list(tensors)
    holding = (index for index, step in enumerate(chain) if any(step.holds(name) for name in names))
    return next(holding, len(chain))


@torch.no_grad()
def inputs(chain: list[Step], images: Tensor) -> list[Tensor]:
    """What goes into every step, and last the logits: one more than there are steps."""
    found = [images]
    for step in chain:
        found.append(step.run(found[-1]))
    return found


@torch.no_grad()
def finish(chain: list[Step], cached: list[Tensor], start: int) -> Tensor:
    """Logits (B, classes) when everything before step `start` is as in `cached`."""
    x = cached[start]
    for step in chain[start:]:
        x = step.run(x)
    return x
