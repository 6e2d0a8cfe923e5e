"""What several processes rely on, seen from one: how batches are dealt and shared, what is refused; and recomputed activations.

The real thing, with two and three processes, is slow: `test_processes_training`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from qvit.data import EpochOrder, mixup_batch
from qvit.evaluation import shared_evaluation
from qvit.evaluation.evaluate import Batches
from qvit.evaluation.shared_evaluation import evaluate_together, share_of
from qvit.system import processes
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit.training.step_batches import check_divides
from toy_models import vit
from toy_training import toy_data

# -- training batches -------------------------------------------------------------------------------------------------


def slices(batch: int, number: int) -> tuple[list[int], list[list[int]]]:
    """Images of a batch, and those of each process's slice of the dealt batch."""
    order = EpochOrder(3 * batch, batch, 0, shuffle=True, drop_last=True)
    order.seek(1)
    whole = [key.image for key in next(iter(order))]
    order.deal(number)
    dealt = [key.image for key in next(iter(order))]
    size = batch // number
    return whole, [dealt[process * size : (process + 1) * size] for process in range(number)]


@pytest.mark.parametrize(("batch", "number"), [(48, 2), (48, 3), (16, 4), (24, 1)])
def test_pairs_are_dealt_like_cards(batch: int, number: int) -> None:
    """Every slice starts with the first pairs of the batch, so that together they start with its first images."""
    whole, hands = slices(batch, number)
    pairs = [tuple(whole[start : start + 2]) for start in range(0, batch, 2)]
    for process, hand in enumerate(hands):
        assert [tuple(hand[start : start + 2]) for start in range(0, len(hand), 2)] == pairs[process::number]
    for quarter in range(2, batch // number + 1, 2):
        assert sorted(image for hand in hands for image in hand[:quarter]) == sorted(whole[: quarter * number])


def test_odd_slices_are_dealt_one_by_one() -> None:
    whole, hands = slices(15, 3)
    assert hands == [whole[process::3] for process in range(3)]


def test_a_batch_that_does_not_divide_is_not_dealt() -> None:
    """Only the last batch of an order that keeps it; Accelerate fills it up."""
    order = EpochOrder(10, 4, 0, shuffle=False, drop_last=False)
    order.deal(4)
    assert [[key.image for key in batch] for batch in order][-1] == [8, 9]


@pytest.mark.parametrize("number", [2, 3])
def test_slices_are_mixed_as_the_batch_is(number: int) -> None:
    config = toy_data(mixup=8.0).config  # halves, more or less
    whole, hands = slices(24, number)
    images, labels = torch.rand(72, 3, 8, 8), torch.arange(72) % 5
    expected = dict(zip(whole, mixup_batch(images[whole], labels[whole], config, 0, 5)[0], strict=True))
    for hand in hands:
        mixed, _ = mixup_batch(images[hand], labels[hand], config, 0, 5)
        assert not torch.equal(mixed, images[hand])
        assert all(torch.equal(image, expected[name]) for name, image in zip(hand, mixed, strict=True))


@pytest.mark.parametrize("with_order", [True, False])
def test_a_batch_that_does_not_divide_among_processes_is_refused(with_order: bool) -> None:
    data = toy_data(batch_size=16)
    loader = data.train if with_order else DataLoader(TensorDataset(torch.zeros(32, 1)), batch_size=16)
    order = data.order if with_order else None
    for number in (1, 2, 4, 16):
        check_divides(loader, order, number)
    text = (
        r"a batch of 16 images does not divide among 3 processes, which train on equal parts of it; set data.batch_size "
        r"to 15 or 18, or start another number of processes"
    )
    with pytest.raises(ValueError, match=text):
        check_divides(loader, order, 3)
    with pytest.raises(ValueError, match=r"set data\.batch_size to 20, or"):
        check_divides(loader, order, 20)


# -- evaluation -------------------------------------------------------------------------------------------------------


def fake_process(monkeypatch: pytest.MonkeyPatch, index: int, number: int) -> None:
    state = SimpleNamespace(process_index=index, num_processes=number, device=torch.device("cpu"))
    monkeypatch.setattr(shared_evaluation, "process_state", lambda: state)


def as_loader(images: int, batch: int) -> DataLoader:
    labels = torch.arange(images)
    return DataLoader(TensorDataset(labels.float().view(-1, 1, 1, 1), labels), batch_size=batch)


def as_list(images: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tuple(pair) for pair in as_loader(images, batch)]  # type: ignore[misc]


@pytest.mark.parametrize("make", [as_loader, as_list])
@pytest.mark.parametrize("images", [1, 4, 5, 9, 16])
@pytest.mark.parametrize("number", [2, 3])
def test_shares_are_the_split(
    make: Callable[[int, int], Batches], images: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches whole, each in one share, more processes than batches included; twice, as one share serves many evaluations."""
    batches = [labels.tolist() for _, labels in as_list(images, 4)]
    for process in range(number):
        fake_process(monkeypatch, process, number)
        share = share_of(make(images, 4))
        for _ in range(2):
            assert [labels.tolist() for _, labels in share] == batches[process::number]


@pytest.mark.parametrize("images", [1, 4, 9, 16])
def test_outcomes_come_back_in_the_order_of_the_split(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, one after the other; what each would send is put together as `gather` does."""
    model = vit(depth=1)
    data = [(torch.randn(len(y), 3, 16, 16), y) for _, y in as_list(images, 4)]
    expected = evaluate_together(model, share_of(data))
    assert expected.labels.tolist() == list(range(images))
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(shared_evaluation, "_all_rows", lambda mine: sent.append(mine) or mine)
    for process in range(3):
        fake_process(monkeypatch, process, 3)
        if images > 4 * process:
            evaluate_together(model, share_of(data))
        else:
            with pytest.raises(ValueError, match="there are no images"):
                evaluate_together(model, share_of(data))
    assert sum(map(len, sent)) == images
    monkeypatch.setattr(shared_evaluation, "_all_rows", lambda mine: torch.cat(sent))
    found = evaluate_together(model, [])
    assert (found.images, found.top1, found.top5) == (images, expected.top1, expected.top5)
    for name in ("labels", "predictions", "correct"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()


def test_logits_that_are_not_finite_end_the_evaluation_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes the second has them; the first would wait for its rows."""
    data = [(torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)) for _ in range(2)]
    data[1][0][2] = torch.nan
    told: list[float] = []

    def told_by_both(mine: torch.Tensor) -> torch.Tensor:
        told.append(float(mine))
        return torch.tensor([0.5])

    monkeypatch.setattr(shared_evaluation, "mean_over_processes", told_by_both)
    for process, text in enumerate(["in the images of another process", "within images 0 to 4"]):
        fake_process(monkeypatch, process, 2)
        with pytest.raises(FloatingPointError, match=f"the model gave NaN or infinite logits {text}"):
            evaluate_together(vit(depth=1), share_of(data))
    assert told == [0.0, 1.0]


def test_rows_are_padded_to_be_gathered_and_the_padding_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = torch.arange(18).view(2, 9)
    monkeypatch.setattr(
        shared_evaluation, "pad_across_processes", lambda rows, pad_index: _with_two_more(rows, pad_index)
    )
    assert torch.equal(shared_evaluation._all_rows(mine), mine)


def _with_two_more(rows: torch.Tensor, value: int) -> torch.Tensor:
    return torch.cat([rows, torch.full((2, rows.shape[1]), value)])


# -- agreement, options -----------------------------------------------------------------------------------------------


def test_processes_must_see_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "every machine must see the same run directory"
    processes.require_same("numbers of files in runs/a", 3, wanted)
    monkeypatch.setattr(processes, "gather", lambda number: torch.cat([number, number - 3]))
    with pytest.raises(RuntimeError, match=rf"see different numbers of files in runs/a \(3, 0\); {wanted}"):
        processes.require_same("numbers of files in runs/a", 3, wanted)


def test_the_mean_over_one_process_is_the_tensor() -> None:
    tensor = torch.rand(3)
    assert processes.mean_over_processes(tensor) is tensor


def test_no_images_are_said_in_words() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        evaluate_together(vit(depth=1), [])


def test_fit_checks_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of processes is Accelerate's; here one that does not divide is put in its place."""
    data = toy_data(batch_size=16)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    model = vit(depth=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        fit(model, data.train, order=data.order, config=FitConfig(epochs=1), quiet=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "models"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu"), ("xpu:0", "cpu")])
def test_models_are_calibrated_where_there_is_float64(
    monkeypatch: pytest.MonkeyPatch, device: str, models: str
) -> None:
    monkeypatch.setattr(processes, "process_state", lambda: SimpleNamespace(device=torch.device(device)))
    assert processes.model_device() == torch.device(models)


def test_a_device_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Card {device.index}")
    assert processes.device_name(torch.device("cuda:3")) == "Card 3"
    assert processes.device_name(torch.device("cpu")) == "cpu"
