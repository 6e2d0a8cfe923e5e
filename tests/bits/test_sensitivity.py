"""Sensitivity tables against brute force, warm slots, and a probe that nobody notices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvit.bits.allocate import Lagrangian
from qvit.bits.sensitivity import Sensitivity
from qvit.data.order import dealt, leading
from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.spec import MidRise, PerChannel, SharedScale, SingleRange, SingleScale, Spec
from qvit.training.fit_config import FitConfig
from toy_models import calibrated, images, swin, vit
from toy_training import toy_run

B = 16


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    labels = torch.arange(len(batch)) % 5
    return F.cross_entropy(model(batch), labels)


def probed(model: nn.Module, batch: Tensor, **kwargs: float) -> Sensitivity:
    sensitivity = Sensitivity(model, **kwargs)
    with sensitivity.probe(len(batch)):
        loss_of(model, batch).backward()
    model.zero_grad()
    sensitivity.update()
    return sensitivity


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of every quantizer, outputs with their gradients."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, quantizer: Quantizer) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return quantizer.register_forward_hook(hook)

    handles = [watch(name, q) for name, q in named_quantizers(model).items() if q.is_learned]
    yield seen
    for handle in handles:
        handle.remove()


def brute_force(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """1/2 sum F (Q_n(v) - v)^2, group by group, through the quantizers' own forward at every width."""
    with watched(model) as seen:
        loss_of(model, batch).backward()
    tables = {}
    for name, quantizer in named_quantizers(model).items():
        if not quantizer.is_learned:
            continue
        values, output = seen[name]
        gradient = output.grad
        assert gradient is not None
        fisher = (len(batch) ** 2 / len(batch) if quantizer.batched else len(batch)) * gradient.square()
        before, columns = quantizer.bits.detach().clone(), []
        for bits in quantizer.candidates:
            quantizer.set_bits(torch.full_like(before, bits))
            with torch.no_grad():
                error = fisher * (quantizer(values) - values).square() / 2
            blocks = error.chunk(quantizer.bit_groups, dim=quantizer.axis)
            columns.append(torch.stack([block.sum() for block in blocks]))
        quantizer.set_bits(before)
        tables[name] = torch.stack(columns, 1).double()
    model.zero_grad()
    return tables


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        pytest.param(vit, Spec(), id="vit"),
        pytest.param(swin, Spec(), id="swin"),
        pytest.param(vit, Spec(weight_scale=PerChannel()), id="per-channel"),
        pytest.param(vit, Spec(weight_grid=MidRise()), id="no-zero"),
        pytest.param(vit, Spec(scale=SharedScale()), id="shared-bank"),
        pytest.param(vit, Spec(scale=SingleScale()), id="single-scale"),
        pytest.param(vit, Spec(scale=SingleRange()), id="single-range"),
    ],
)
def test_table_equals_brute_force(make, spec: Spec) -> None:  # type: ignore[no-untyped-def]
    """Weights and activations, per head, with an offset (fc2's input), as mean over images."""
    model = calibrated(make(), spec, 16)
    batch = images(model, B)
    expected = brute_force(model, batch)
    tables = probed(model, batch).tables
    assert tables.keys() == expected.keys()
    for name, table in tables.items():
        torch.testing.assert_close(
            table, expected[name], rtol=1e-3, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert table.max() > 0


def test_a_part_of_the_batch_estimates_the_whole() -> None:
    """Activations look at `images` of the batch: the mean over any part is the same number, up to noise."""
    model = calibrated(vit(), Spec(), 16)
    batch = images(model, 64)
    whole, part = probed(model, batch, images=64), probed(model, batch, images=24)
    ratios = []
    for name, quantizer in whole.quantizers.items():
        if quantizer.batched:
            ratios.append((part.tables[name] / whole.tables[name])[:, :4].flatten())
        else:
            assert torch.equal(part.tables[name], whole.tables[name]), name
    mean = torch.cat(ratios).log().mean().exp()
    assert 0.75 < mean < 1.33, mean  # forgetting the share would give 24/64 or its square


@pytest.mark.parametrize("make", [vit, swin], ids=["vit", "swin"])
@pytest.mark.parametrize(
    ("size", "processes", "looks"),
    [(24, 2, [4, 2]), (24, 4, [2, 2, 2, 0]), (18, 2, [2, 2]), (32, 16, [2] * 4 + [0] * 12), (96, 2, [8, 8])],
)
def test_processes_look_at_the_images_of_one(make, size: int, processes: int, looks: list[int]) -> None:  # type: ignore[no-untyped-def]
    """A quarter of the batch and at most 16 images of it, dealt as the batch is; some processes may have none."""
    model = calibrated(make(depths=(1, 1)) if make is swin else make(depth=1), Spec(), 16)
    order = dealt(list(range(size)), processes)
    batch, part = images(model, size), size // processes
    expected = sums_of(model, batch, 0, 1)
    found = [sums_of(model, batch[order[p * part : (p + 1) * part]], p, processes) for p in range(processes)]
    first = next(iter(expected))
    assert [bool(sums[first].any()) for sums in found] == [look > 0 for look in looks]
    assert [leading(min(size // 4, 16), size, processes, p) for p in range(processes)] == looks
    for name, whole in expected.items():
        mean = torch.stack([sums[name] for sums in found]).mean(0)
        torch.testing.assert_close(mean[..., 0], whole[..., 0], rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(mean[..., 1:] * processes, whole[..., 1:], rtol=1e-4, atol=1e-2)


def sums_of(model: nn.Module, batch: Tensor, process: int, processes: int) -> dict[str, Tensor]:
    """What a probe of one of several processes sums up of activations, before the mean over processes."""
    state = SimpleNamespace(process_index=process, num_processes=processes)
    sensitivity = Sensitivity(model, share=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qvit.bits.sensitivity.process_state", lambda: state)
        patch.setattr("qvit.bits.sensitivity.mean_over_processes", lambda tensor: tensor)
        with sensitivity.probe(len(batch)):
            model(batch).square().sum(1).mean().backward()
    model.zero_grad()
    return {name: sums for name, sums in sensitivity._sums.items() if sensitivity.quantizers[name].batched}


def test_accumulation_does_not_change_the_table() -> None:
    """With the loss divided by `parts`, the gradients are smaller and the table is not."""
    model = calibrated(vit(), Spec(), 16)
    batch = images(model, B)
    whole = probed(model, batch)
    parts = Sensitivity(model)
    with parts.probe(B, parts=4):
        (loss_of(model, batch) / 4).backward()
    parts.update()
    for name, table in whole.tables.items():
        torch.testing.assert_close(parts.tables[name], table, rtol=1e-4, atol=1e-12)


def test_probes_are_averaged_and_remembered() -> None:
    """A plain mean at first; the state goes through a checkpoint."""
    model = calibrated(vit(), Spec(), 16)
    first, second = probed(model, images(model, B)), probed(model, images(model, B, seed=3))
    both = Sensitivity(model)
    for seed in (1, 3):
        with both.probe(B):
            loss_of(model, images(model, B, seed=seed)).backward()
        both.update()
    name = "blocks.0.attn.v"
    torch.testing.assert_close(both.tables[name], (first.tables[name] + second.tables[name]) / 2)
    again = Sensitivity(model)
    again.load_state_dict(both.state_dict())
    assert again.probes == 2
    assert all(torch.equal(again.tables[n], t) for n, t in both.tables.items())


def test_a_probe_leaves_no_trace() -> None:
    """Same logits, same gradients, no hooks left, not even after an exception."""
    model = calibrated(vit(), Spec(), 16)
    twin = copy.deepcopy(model)
    batch = images(model, B)
    sensitivity = Sensitivity(model)
    with sensitivity.probe(B):
        loss = loss_of(model, batch)
        loss.backward()
    plain = loss_of(twin, batch)
    plain.backward()
    assert torch.equal(loss, plain)
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        assert mine.grad is None or torch.equal(mine.grad, other.grad), name  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="stop"), sensitivity.probe(B):
        raise RuntimeError("stop")
    assert not any(q._forward_hooks for q in named_quantizers(model).values())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "blocks.0.attn.v", "blocks.0.mlp.fc2.input"])
def test_unused_slots_follow_the_data(name: str) -> None:
    """The tensor grows by half; the slots that are not in force follow, the one in force is left to its gradient."""
    model = calibrated(vit(), Spec(), 16)
    quantizer = named_quantizers(model)[name]
    before = quantizer.log_scale.detach().clone()
    grow = quantizer.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    sensitivity = Sensitivity(model)
    for _ in range(8):
        with sensitivity.probe(B):
            loss_of(model, images(model, B, seed=7)).backward()
        sensitivity.warm_slots()
    grow.remove()
    moved = (quantizer.log_scale - before).exp()
    slots = quantizer.slot_of(quantizer.bit_width)
    in_force = torch.arange(moved.shape[1]) == slots[:, None]
    assert torch.all(moved[in_force] == 1)
    assert torch.all((moved[:, :2] > 1.25) & (moved[:, :2] < 1.6)), moved  # few bits follow at once
    assert torch.all(moved[~in_force] > 1.03), moved  # many bits only by what they clip


def test_a_slot_makes_one_least_squares_step() -> None:
    """s <- <v, q> / <q, q>, and with an offset the line through (q, v)."""
    model = calibrated(vit(), Spec(), 16)
    batch = images(model, B)
    with watched(model) as seen:
        loss_of(model, batch).backward()
    model.zero_grad()
    sensitivity = probed(model, batch)
    banks = {n: (q.log_scale.exp().detach(), q.offset) for n, q in sensitivity.quantizers.items()}
    banks = {n: (s.clone(), None if o is None else o.detach().clone()) for n, (s, o) in banks.items()}
    sensitivity.warm_slots()
    weight = sensitivity.quantizers["blocks.0.attn.qkv.weight"]
    scale = banks["blocks.0.attn.qkv.weight"][0][4, 1]  # group 4 at 3 bits
    v = seen["blocks.0.attn.qkv.weight"][0].chunk(6)[4]
    q = (v / scale).clamp(-4, 3).round()
    torch.testing.assert_close(weight.log_scale[4, 1].exp(), (v * q).sum() / (q * q).sum())
    gelu = sensitivity.quantizers["blocks.0.mlp.fc2.input"]
    scales, offsets = banks["blocks.0.mlp.fc2.input"]
    assert offsets is not None
    assert gelu.offset is not None
    v = seen["blocks.0.mlp.fc2.input"][0].flatten()
    q = ((v - offsets[0, 1]) / scales[0, 1]).clamp(0, 7).round()
    slope = ((v - v.mean()) * (q - q.mean())).sum() / (q - q.mean()).square().sum()
    torch.testing.assert_close(gelu.log_scale[0, 1].exp(), slope)
    torch.testing.assert_close(gelu.offset[0, 1], v.mean() - slope * q.mean())


def test_a_slot_without_zero_makes_the_same_step() -> None:
    """s <- <v, q + 1/2> / <q + 1/2, q + 1/2> at two bits"""
    model = calibrated(vit(), Spec(weight_grid=MidRise()), 16)
    sensitivity = probed(model, images(model, B))
    quantizer = sensitivity.quantizers["blocks.0.attn.qkv.weight"]
    scale = quantizer.log_scale[4, 0].detach().exp()
    sensitivity.warm_slots()
    v = model.get_parameter("blocks.0.attn.qkv.weight").detach().chunk(6)[4]
    level = (v / scale - 0.5).clamp(-2, 1).round() + 0.5
    torch.testing.assert_close(quantizer.log_scale[4, 0].exp().detach(), (v * level).sum() / (level * level).sum())


@pytest.mark.parametrize("scale", [SharedScale(), SingleScale(), SingleRange()], ids=["shared", "single", "range"])
def test_banks_without_slots_of_their_own_stay(scale: SharedScale | SingleScale | SingleRange) -> None:
    model = calibrated(vit(), Spec(scale=scale), 16)
    batch = images(model, B)
    before = {n: q.log_scale.detach().clone() for n, q in named_quantizers(model).items() if q.bit_groups > 1}
    probed(model, batch).warm_slots()
    assert all(torch.equal(named_quantizers(model)[n].log_scale, value) for n, value in before.items())


def test_errors_of_weights_may_count_less() -> None:
    """Weights train; what their rounding costs in the end is less than what it costs today."""
    model = calibrated(vit(), Spec())
    whole, part = probed(model, images(model, B)), probed(model, images(model, B), weight_factor=0.25)
    for name, quantizer in whole.quantizers.items():
        factor = 1.0 if quantizer.batched else 0.25
        torch.testing.assert_close(part.tables[name], factor * whole.tables[name])


def test_fewer_bits_for_weights_where_they_count_less() -> None:
    def mean_bits(factor: float) -> tuple[float, float]:
        model, _ = toy_run(
            FitConfig(epochs=1, allocation=Lagrangian(weight_factor=factor)), max_steps=0, evaluation=None
        )
        learned = [q for q in named_quantizers(model).values() if q.is_learned]
        means = [torch.cat([q.bits.detach() for q in learned if q.batched == side]).mean() for side in (False, True)]
        return float(means[0]), float(means[1])

    (weights, activations), (fewer, more) = mean_bits(1.0), mean_bits(0.05)
    assert fewer < weights - 0.1
    assert more > activations + 0.1
