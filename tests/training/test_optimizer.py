"""Parameter groups and the schedule: what decays, what has its own rate, where the cosine ends."""

from __future__ import annotations

import pytest
from torch import nn

from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import PerChannel, Spec
from qvit.training.optimizer import make_optimizer, make_schedule, parameter_groups
from toy_models import swin, vit


def groups_by_name(model: nn.Module, bit_rate: float | None) -> dict[str, dict]:
    groups = parameter_groups(model, 1e-3, 0.05, 2e-3, bit_rate)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in groups for p in group["params"]}


@pytest.mark.parametrize("bit_rate", [None, 0.03], ids=["lagrangian", "published"])
@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
def test_quantizers_never_decay_whatever_their_dimensions(make, bit_rate: float | None) -> None:  # type: ignore[no-untyped-def]
    model = quantize(make(), Spec(weight_scale=PerChannel()))
    groups = groups_by_name(model, bit_rate)
    quantizers = named_quantizers(model)
    assert any(q.log_scale.ndim == 2 and q.log_scale.numel() > 7 for q in quantizers.values())
    for module_name, module in model.named_modules():
        if module not in quantizers.values():
            continue
        for name, _ in module.named_parameters():
            group = groups.get(f"{module_name}.{name}")
            if name == "bits":
                learned = module.is_learned  # type: ignore[union-attr]
                assert (group is not None) == (bit_rate is not None and learned), module_name
                assert group is None or (group["lr"], group["weight_decay"]) == (0.03, 0.0)
            else:
                assert group is not None, name
                assert (group["lr"], group["weight_decay"]) == (2e-3, 0.0)


def test_float_parameters_follow_timm() -> None:
    model = quantize(vit())
    groups = groups_by_name(model, None)
    assert groups["blocks.0.attn.qkv.weight"]["weight_decay"] == 0.05
    assert groups["patch_embed.proj.weight"]["weight_decay"] == 0.05
    for name in ("blocks.0.norm1.weight", "head.bias", "cls_token", "pos_embed"):
        assert groups[name]["weight_decay"] == 0.0, name
    assert groups["blocks.0.attn.qkv.weight"]["lr"] == groups["cls_token"]["lr"] == 1e-3
    swin_groups = groups_by_name(quantize(swin()), None)
    assert swin_groups["layers.0.blocks.0.attn.relative_position_bias_table"]["weight_decay"] == 0.0
    assert {n for n, p in vit().named_parameters() if p.requires_grad} <= set(groups)


def test_the_schedule_is_relative_in_every_group() -> None:
    groups = parameter_groups(quantize(vit()), 1e-3, 0.05, 2e-3, 0.03)
    optimizer = make_optimizer(groups, "adamw", 1e-3)
    schedule = make_schedule(optimizer, steps=100, warmup_steps=10, floor=0.1)

    def rates(step: int) -> list[float]:
        schedule.step_update(step)
        return [group["lr"] for group in optimizer.param_groups]

    peak = [1e-3, 1e-3, 2e-3, 0.03]
    assert rates(0) == pytest.approx([0.1 * r for r in peak])
    assert rates(5) == pytest.approx([0.55 * r for r in peak])
    assert rates(10) == pytest.approx(peak)
    assert rates(55) == pytest.approx([0.55 * r for r in peak])
    assert rates(100) == pytest.approx([0.1 * r for r in peak])


def test_a_constant_rate() -> None:
    groups = parameter_groups(vit(), 1e-3, 0.05, 2e-3, None)
    optimizer = make_optimizer(groups, "sgd", 1e-3)
    schedule = make_schedule(optimizer, steps=10, warmup_steps=0, floor=1.0)
    for step in (0, 5, 10):
        schedule.step_update(step)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
