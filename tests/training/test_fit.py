"""fit: which loaders it takes, what it leaves alone, what it writes, and that the same loop trains a float model."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from qvit.bits.allocate import Lagrangian, Published
from qvit.bits.cost import cost
from qvit.data import DataError, EpochOrder
from qvit.quantizers.quantizer import named_quantizers
from qvit.system.runs import Run
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit.training.log import SCALES_EVERY
from toy_models import uniform, vit
from toy_training import BATCH, QUICK, SHORT, same_state, three_bits, toy_data, toy_model, toy_run


def plain_loader(count: int = 40, batch: int = 16, shuffle: bool = True) -> DataLoader:
    images = torch.cat([x for x, _ in toy_data().eval])[:count]
    labels = torch.cat([y for _, y in toy_data().eval])[:count]
    return DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=shuffle)


def test_a_plain_loader_works_and_its_shuffling_is_seeded() -> None:
    """No order, a short last batch, random sampler: two runs are equal whatever the state outside."""
    ends = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        model = toy_model()
        torch.manual_seed(outside)
        result = fit(model, plain_loader(), budget=three_bits(), config=SHORT, quiet=True)
        assert (result.steps, result.top1) == (2, None)
        ends.append(model)
    assert same_state(*ends) == []


def test_a_loader_without_length_is_refused() -> None:
    class Endless(IterableDataset):
        def __iter__(self):  # type: ignore[no-untyped-def]
            while True:
                yield torch.zeros(3, 16, 16), 0

    with pytest.raises(ValueError, match="has no length, so an epoch has no end"):
        fit(vit(depth=1), DataLoader(Endless(), batch_size=4), quiet=True)


def test_an_epoch_shorter_than_promised_ends_the_run() -> None:
    class Short(EpochOrder):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from list(super().__iter__())[:2]

    data = toy_data()
    order = Short(96, BATCH, 0, shuffle=True, drop_last=True)
    loader = DataLoader(data.train.dataset, batch_sampler=order)
    with pytest.raises(DataError, match="epoch 0 ended before its 6 batches"):
        fit(vit(depth=1), loader, order=order, config=FitConfig(epochs=1), quiet=True)


def test_train_mode_is_on_and_forward_writes_nothing() -> None:
    """Dropout and drop path draw in every forward pass of training; no forward pass changes the state."""
    model = toy_model()
    modes: list[bool] = []
    written: list[str] = []

    def before(module: nn.Module, args: object) -> None:
        module.kept = copy.deepcopy(module.state_dict())  # type: ignore[assignment]

    def after(module: nn.Module, args: object, output: Tensor) -> None:
        active = [m.training for m in module.modules() if type(m).__name__ in ("Dropout", "DropPath")]
        modes.append(module.training and all(active) and len(active) > 2)
        kept = module.kept
        written.extend(n for n, v in module.state_dict().items() if not torch.equal(v, kept[n]))  # type: ignore[index, operator]

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    toy_run(SHORT, model=model, evaluation=None)
    for handle in handles:
        handle.remove()
    assert modes == [True] * 5  # 2 of the warm-up, 3 steps
    assert written == []


@pytest.mark.parametrize("allocation", [Lagrangian(every=2, warm_up=2), Published()], ids=["lagrangian", "published"])
def test_the_lock_meets_the_budget_and_weights_train_on(allocation: Lagrangian | Published, tmp_path: Path) -> None:
    config = FitConfig(epochs=1, lock_at=0.5, log_every=1, allocation=allocation)
    model, result = toy_run(config, tmp_path)
    assert cost(model).gbitops <= three_bits().limit * (1 + 1e-9)
    assert not any(q.is_learned for q in named_quantizers(model).values())
    assert result.steps == 6
    history = Run(tmp_path).read("bits.jsonl")
    assert [r["locked"] for r in history] == [False] * (len(history) - 1) + [True]
    assert history[0]["step"] == 0
    assert history[-1]["step"] == 3
    in_force = {name: q.widths for name, q in named_quantizers(model).items()}
    assert history[-1]["bits"] == in_force
    assert all(a["bits"] != b["bits"] for a, b in pairwise(history[:-1]))


def test_the_warm_up_alone_spreads_the_bits() -> None:
    """The first allocation is solved before step 0, from sensitivities."""
    model, _ = toy_run(FitConfig(epochs=1, allocation=Lagrangian(warm_up=2)), max_steps=0, evaluation=None)
    bits = torch.cat([q.bits.detach() for q in named_quantizers(model).values() if q.is_learned])
    assert bits.std() > 0.3


def test_metrics(tmp_path: Path) -> None:
    _, result = toy_run(SHORT, tmp_path)
    records = Run(tmp_path).read("metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 3]
    steps, evaluation = records[:3], records[3]
    assert evaluation == {"step": 3, "epoch": 0.5, "top1": result.top1}
    for record in steps:
        assert record.keys() == {
            *("step", "epoch", "loss", "gradient_norm", "learning_rate"),
            *("gbitops", "weight_bits", "activation_bits"),
        }
        assert 0 < record["loss"] < 20
    assert steps[2]["epoch"] == 0.5
    assert steps[2]["gbitops"] <= three_bits().limit


def test_scales_are_logged_now_and_then(tmp_path: Path) -> None:
    model, result = toy_run(FitConfig(epochs=5 / 6, log_every=1, allocation=Lagrangian(every=1, warm_up=2)), tmp_path)
    records = Run(tmp_path).read("scales.jsonl")
    assert result.steps == SCALES_EVERY
    assert [r["step"] for r in records] == [SCALES_EVERY]
    for name, quantizer in named_quantizers(model).items():
        expected = quantizer.scale_at(quantizer.bit_width).log2().tolist()
        assert records[0]["log2_scale"][name] == pytest.approx(expected, abs=1e-3)


def test_a_view_hears_of_every_line(tmp_path: Path) -> None:
    lines: list[int] = []
    toy_run(SHORT, tmp_path, on_log=lambda: lines.append(len(Run(tmp_path).read("metrics.jsonl"))))
    assert lines == [1, 2, 3, 4]


def test_max_steps_keeps_the_schedule(tmp_path: Path) -> None:
    _, result = toy_run(FitConfig(epochs=2, log_every=1, allocation=QUICK), tmp_path, max_steps=2, evaluation=None)
    assert result.steps == 12
    rates = [r["learning_rate"] for r in Run(tmp_path).read("metrics.jsonl")]
    assert len(rates) == 2
    assert min(rates) > 4.5e-4  # a cosine over two steps would be half way down


def test_the_same_loop_trains_a_float_model(tmp_path: Path) -> None:
    model = vit(depth=1)
    data = toy_data(mixup=0.0)
    config = FitConfig(epochs=10, learning_rate=3e-3, log_every=10)
    result = fit(
        model,
        data.train,
        order=data.order,
        data=data.config,
        config=config,
        evaluation=data.eval,
        run=tmp_path,
        quiet=True,
    )
    assert result.top1 is not None
    assert result.top1 > 60  # chance is 20
    assert "gbitops" not in Run(tmp_path).read("metrics.jsonl")[0]
    assert not (tmp_path / "bits.jsonl").exists()


def test_fixed_bits_need_no_budget_and_stay(tmp_path: Path) -> None:
    model, _ = toy_run(SHORT, tmp_path, toy_model(uniform(3)), budget=None, evaluation=None)
    assert {w for n, q in named_quantizers(model).items() if "blocks" in n for w in q.widths} == {3}
    assert not (tmp_path / "bits.jsonl").exists()


def test_accumulation_equals_one_big_batch() -> None:
    """Two batches of 8 make the step that one batch of 16 makes; dropout and mixup off."""
    ends = []
    for batch, accumulate in ((16, 1), (8, 2)):
        model = toy_model(uniform(4), drop_path_rate=0.0, proj_drop_rate=0.0)
        data = toy_data(batch_size=batch, mixup=0.0)
        order = EpochOrder(96, batch, 0, shuffle=True, drop_last=True)
        loader = DataLoader(data.train.dataset, batch_sampler=order)
        config = FitConfig(epochs=0.5, accumulate=accumulate, optimizer="sgd")
        fit(model, loader, order=order, data=data.config, config=config, max_steps=1, quiet=True)
        ends.append(dict(model.named_parameters()))
    big, small = ends
    start = dict(toy_model(uniform(4)).named_parameters())
    for name in (
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
        "head.bias",
        "blocks.0.mlp.fc1.input_quantizer.log_scale",
    ):
        moved = (big[name] - start[name]).norm()
        assert moved > 0
        assert (big[name] - small[name]).norm() < 0.02 * moved, name


def test_ema_starts_at_the_lock_and_is_returned() -> None:
    """With decay near 1 the result is the mean since the lock, with warm-up: not the last weights; bits are the lock's."""
    plain, _ = toy_run(FitConfig(epochs=1, lock_at=0.5, allocation=QUICK), evaluation=None)
    averaged, _ = toy_run(FitConfig(epochs=1, lock_at=0.5, allocation=QUICK, ema_decay=0.9), evaluation=None)
    locked, _ = toy_run(FitConfig(epochs=1, lock_at=0.5, allocation=QUICK, ema_decay=0.9), evaluation=None, max_steps=3)
    name = "blocks.0.mlp.fc1.weight"
    last, mean, first = (m.state_dict()[name] for m in (plain, averaged, locked))
    assert 0 < (mean - first).norm() < (last - first).norm()
    for key, quantizer in named_quantizers(averaged).items():
        assert quantizer.widths == named_quantizers(plain)[key].widths


def test_bf16_is_in_the_products_alone_and_leaves_the_model_as_it_was() -> None:
    model = toy_model()
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            seen.setdefault(name, output.dtype)

        return hook

    watched = {"blocks.0.mlp.fc1": model.get_submodule("blocks.0.mlp.fc1"), "head": model.get_submodule("head")}
    watched |= {f"Q {name}": q for name, q in named_quantizers(model).items()}
    handles = [m.register_forward_hook(note(name)) for name, m in watched.items()]  # type: ignore[arg-type]
    toy_run(FitConfig(epochs=0.5, precision="bf16", allocation=QUICK), model=model, evaluation=None, max_steps=1)
    for handle in handles:
        handle.remove()
    assert seen["blocks.0.mlp.fc1"] is torch.bfloat16
    quantizers = {dtype for name, dtype in seen.items() if name.startswith("Q ")}
    assert quantizers == {torch.bfloat16}  # the operands of products, rounded from float32
    assert "forward" not in vars(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
        hook = model.get_submodule("blocks.0.mlp.fc1").register_forward_hook(
            note("after")  # type: ignore[arg-type]
        )
        model(torch.zeros(1, 3, 16, 16))
        hook.remove()
    assert seen["after"] is torch.float32
    toy_run(SHORT, evaluation=None, max_steps=1)  # float32 after bf16 in one process


def test_a_model_is_trained_twice(tmp_path: Path) -> None:
    """Locked bits stay locked in a second fit, with or without the budget."""
    model, _ = toy_run(SHORT, evaluation=None)
    before = {name: q.widths for name, q in named_quantizers(model).items()}
    toy_run(SHORT, tmp_path, model, budget=None, evaluation=None)
    assert {name: q.widths for name, q in named_quantizers(model).items()} == before
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
