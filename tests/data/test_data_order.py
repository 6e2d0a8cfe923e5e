"""The promise of design decision 11: workers, processes and the point of a resume change nothing."""

import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration

from qvit.data import DataConfig, DataError, EpochOrder, SampleKey, Splits, epoch_batches, open_data

CONFIG = DataConfig(
    dataset="digits",
    image_size=28,
    mean=(0.1, 0.1, 0.1),
    std=(0.3, 0.3, 0.3),
    crop=1.0,
    crop_mode="center",
    interpolation="bicubic",
    num_classes=10,
    train_crop="pad",
    auto_augment="rand-m5-n1",  # draws from Python's and numpy's states, the crop from torch's
    random_erasing=0.3,
    batch_size=16,
    eval_batch_size=32,
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a one-core machine
]


def open_small(seed: int = 0, images: int = 96, **changes: object) -> Splits:
    return open_data(replace(CONFIG, **changes), seed, max_train_images=images, max_eval_images=40)  # type: ignore[arg-type]


def epoch_of(splits: Splits, epoch: int, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(epoch_batches(splits.train, splits.order, epoch, start))


def assert_same(left: Iterable, right: Iterable) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right) > 0
    for (left_images, left_labels), (right_images, right_labels) in zip(left, right, strict=True):
        assert torch.equal(left_images, right_images)
        assert torch.equal(left_labels, right_labels)


@pytest.fixture(scope="module")
def two_epochs() -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    splits = open_small()
    return [epoch_of(splits, 0), epoch_of(splits, 1)]


def test_workers_change_nothing(two_epochs: list) -> None:
    splits = open_small(workers=2)
    assert_same(epoch_of(splits, 0), two_epochs[0])
    assert_same(epoch_of(splits, 1), two_epochs[1])  # by the same, persistent workers
    assert_same(epoch_of(splits, 0, start=4), two_epochs[0][4:])
    assert_same(splits.calibration, open_small().calibration)
    assert_same(splits.eval, open_small().eval)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_resume_continues(two_epochs: list, start: int) -> None:
    fresh = open_small()
    assert_same(epoch_of(fresh, 1, start), two_epochs[1][start:])
    assert fresh.train_batches == len(fresh.train) == 6, "a whole epoch's batches, whatever the start"


def test_a_resume_at_the_end_gives_nothing() -> None:
    assert epoch_of(open_small(), 0, start=6) == []


@pytest.mark.parametrize("split_batches", [True, False])
def test_two_processes_together_see_what_one_sees(two_epochs: list, split_batches: bool) -> None:
    shards = []
    for process in range(2):
        splits = open_small()
        loader = prepare_data_loader(
            splits.train, num_processes=2, process_index=process, split_batches=split_batches, put_on_device=False
        )
        shards.append(list(epoch_batches(loader, splits.order, 1)))
    if split_batches:  # how fit runs: every step's batch is the same batch
        pairs = zip(*shards, strict=True)
        joined = [tuple(torch.cat(parts) for parts in zip(*pair, strict=True)) for pair in pairs]
    else:
        joined = [batch for pair in zip(*shards, strict=True) for batch in pair]
    assert_same(joined, two_epochs[1])


def test_accelerates_own_epoch_count_does_not_interfere(two_epochs: list) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    splits = open_small()
    loader = accelerator.prepare(splits.train)
    assert_same(epoch_batches(loader, splits.order, 1, start=3), two_epochs[1][3:])
    assert_same(epoch_batches(loader, splits.order, 0), two_epochs[0])


def test_epochs_and_seeds_differ_and_augment(two_epochs: list) -> None:
    def images(epoch: list) -> torch.Tensor:
        return torch.cat([batch for batch, _ in epoch])

    assert not torch.equal(images(two_epochs[0]), images(two_epochs[1]))
    assert not torch.equal(images(two_epochs[0]), images(epoch_of(open_small(seed=1), 0)))
    plain = {image.numpy().tobytes() for batch, _ in open_small().calibration for image in batch}
    changed = sum(image.numpy().tobytes() not in plain for image in images(two_epochs[0]))
    assert changed > 80, "most of the 96 training images are augmented"


def test_each_epoch_visits_every_image_once() -> None:
    order = EpochOrder(50, 10, seed=0, shuffle=True, drop_last=True)
    order.seek(3)
    keys = [key for batch in order for key in batch]
    assert sorted(key.image for key in keys) == list(range(50))
    assert {key.epoch for key in keys} == {3}


@pytest.mark.parametrize(("drop_last", "batches"), [(True, 3), (False, 4)])
def test_drop_last(drop_last: bool, batches: int) -> None:
    order = EpochOrder(35, 10, seed=0, shuffle=False, drop_last=drop_last)
    sizes = [len(batch) for batch in order]
    assert len(order) == len(sizes) == batches
    assert sizes[-1] == (10 if drop_last else 5)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 6)])
def test_seek_outside_an_epoch(epoch: int, start: int) -> None:
    order = EpochOrder(50, 10, seed=0, shuffle=True, drop_last=True)
    with pytest.raises(DataError, match=rf"epoch {epoch}, batch {start} does not exist: .* have 5 batches"):
        order.seek(epoch, start)


def test_repeated_augmentation_puts_copies_in_one_batch_never_side_by_side() -> None:
    order = EpochOrder(64, 16, seed=0, shuffle=True, drop_last=True, copies=3)
    batches = list(order)
    assert [len(batch) for batch in batches] == [16] * 4, "an epoch keeps its number of batches"
    for batch in batches:
        assert len(set(batch)) == 16, "no sample twice"
        assert len({key.image for key in batch}) == 6
        assert all(batch[i].image != batch[i + 1].image for i in range(0, 16, 2)), "mixup mixes different images"
    first = {key.image for key in batches[0]}
    assert first.isdisjoint(key.image for batch in batches[1:] for key in batch)
    splits = open_small(repeated_augmentation=3)
    images, labels = epoch_of(splits, 0)[0]
    assert labels[0] == labels[6] == labels[12]
    assert not torch.equal(images[0], images[6])


def test_one_sample_alone_is_the_sample_of_its_batch(two_epochs: list) -> None:
    splits = open_small()
    splits.order.seek(1, 2)
    key = next(iter(splits.order))[5]
    assert isinstance(key, SampleKey)
    image, label = splits.train.dataset[key]
    assert torch.equal(image, two_epochs[1][2][0][5])
    assert label == two_epochs[1][2][1][5]


def test_loading_leaves_the_random_states_alone() -> None:
    splits = open_small()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    epoch_of(splits, 0)
    list(splits.calibration), list(splits.eval)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_label_without_an_output_is_named() -> None:
    splits = open_small()
    splits.train.dataset.num_classes = 3
    with pytest.raises(DataError, match=r"image \d+ has label \d, but num_classes=3 allows 0 to 2"):
        epoch_of(splits, 0)
