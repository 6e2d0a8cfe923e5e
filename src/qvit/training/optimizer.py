"""Optimizer and learning-rate schedule: timm's, over parameter groups that know what quantizers are.

    weights of two or more dimensions    weight decay
    biases, norms, tokens, positions     no decay
    log_scale and offset of quantizers   no decay, their own rate (log-scales move by relative steps)
    bits                                 no decay; only under Published, at their own rate: Lagrangian moves them itself

timm's rule of thumb (one-dimensional means no decay) would decay the two-dimensional scale banks.
"""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from ..quantizers.quantizer import named_quantizers


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, scale_rate: float, bit_rate: float | None
) -> list[dict]:
    """Groups for the optimizer, in a fixed order; bit_rate None leaves the bits out."""
    quantizer_parameters = {id(p) for q in named_quantizers(model).values() for p in q.parameters()}
    bits = [q.bits for q in named_quantizers(model).values() if q.is_learned or len(q.candidates) > 1]
    banks = [p for q in named_quantizers(model).values() for p in (q.log_scale, q.offset) if p is not None]
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in quantizer_parameters and p.requires_grad]
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    decayed = [p for name, p in rest if p.ndim >= 2 and name not in spared]
    plain = [p for name, p in rest if p.ndim < 2 or name in spared]
    groups = [
        {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0},
        {"params": banks, "lr": scale_rate, "weight_decay": 0.0},
        {"params": bits if bit_rate is not None else [], "lr": bit_rate or 0.0, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict], name: str, learning_rate: float) -> torch.optim.Optimizer:
    """A timm optimizer by name ("adamw", "sgd", "lamb", ...) over ready groups."""
    return create_optimizer_v2(groups, opt=name, lr=learning_rate, weight_decay=0.0, filter_bias_and_bn=False)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, floor: float) -> CosineLRScheduler:
    """Cosine from each group's rate down to `floor` times it, after a linear warm-up; counted in steps.

    timm's schedule has one floor for all groups, so it moves a factor from 1 to `floor`, and `lr_scale`, timm's own key,
    holds each group's peak.
    """
    for group in optimizer.param_groups:
        group["lr_scale"] = group["lr"]
        group["initial_lr"] = 1.0
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup_steps),
        lr_min=floor,
        warmup_t=warmup_steps,
        warmup_lr_init=floor,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the peak of every group by `factor`, for the schedules that `make_schedule` makes; saved with the optimizer."""
    for group in optimizer.param_groups:
        group["lr_scale"] *= factor
