"""Streams: every image once whatever the workers, the processes and the sizes of the shards; a resume replays."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.data import (
    Batch,
    DataConfig,
    DataError,
    Splits,
    StreamLoader,
    epoch_batches,
    open_data,
    open_eval,
    stream_loader,
    streams,
)
from qvit.data.augment import eval_transform
from qvit.data.shards import Encoded
from qvit.data.streams import Part, SeededStream, Share, shuffled
from toy_shards import CONFIG, greys, png, write_shards, write_tar

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a one-core machine
]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Training shards of 7, 1 and 12 images (grey 0 to 19), evaluation shards of 4, 1 and 2 (100 to 106)."""
    pytest.importorskip("webdataset")
    write_shards(tmp_path, "train", (7, 1, 12))
    write_shards(tmp_path, "validation", (4, 1, 2), first=100)
    return replace(CONFIG, root=str(tmp_path))


def epoch_of(splits: Splits, epoch: int, start: int = 0) -> list[Batch]:
    return list(epoch_batches(splits.train, splits.order, epoch, start))


def as_process(monkeypatch: pytest.MonkeyPatch, index: int, processes: int) -> None:
    monkeypatch.setattr(stream_loader, "this_process", lambda: Share(index, processes))


def test_sizes_and_labels(config: DataConfig) -> None:
    splits = open_data(config, seed=0)
    assert (splits.train_images, splits.eval_images, splits.train_batches) == (20, 7, 5)
    batches = epoch_of(splits, 0)
    assert [images.shape for images, _ in batches] == [(4, 3, 16, 16)] * 5
    assert torch.cat([labels for _, labels in batches]).tolist() == [grey % 3 for grey in greys(batches)]
    assert greys(splits.calibration) == list(range(20)), "shard order"
    assert [len(labels) for _, labels in splits.eval] == [5, 2]
    assert greys(splits.eval) == greys(open_eval(config)) == list(range(100, 107))
    features = open_eval(replace(config, num_classes=0))
    assert torch.cat([labels for _, labels in features]).tolist() == [-1] * 7


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_image_once(config: DataConfig, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an epoch, over one process or two together, and in an evaluation; shards divide unevenly among all of them."""
    config = replace(config, workers=workers)
    alone = open_data(config, seed=0)
    whole = epoch_of(alone, 1)
    assert sorted(greys(whole)) == list(range(20))
    assert sorted(greys(alone.eval)) == list(range(100, 107))
    slices = []
    for index in range(2):
        as_process(monkeypatch, index, 2)
        slices.append(epoch_of(open_data(config, seed=0), 1))
    assert [len(batches) for batches in slices] == [5, 5]
    for batch, *parts in zip(whole, *slices, strict=True):
        assert sorted(greys([batch])) == sorted(greys(parts)), "both together train on the batch of one"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_number_that_does_not_divide(config: DataConfig, workers: int) -> None:
    splits = open_data(replace(config, batch_size=6, workers=workers), seed=0)
    seen = greys(epoch_of(splits, 0))
    assert len(seen) == len(set(seen)) == 18, "3 batches of 6, nothing twice"


def test_epochs_and_seeds_differ(config: DataConfig) -> None:
    config = replace(config, train_crop="pad", color_jitter=0.5)
    splits = open_data(config, seed=0)
    orders = [greys(epoch_of(splits, epoch)) for epoch in (0, 1)] + [greys(epoch_of(open_data(config, seed=1), 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == greys(epoch_of(splits, 0)), "an epoch can be had again"


def test_augmentation_belongs_to_the_image(config: DataConfig) -> None:
    """Workers change the order, and so the place of an image, not what becomes of it."""
    seen = []
    for workers in (0, 2):
        splits = open_data(replace(config, workers=workers, train_crop="pad", color_jitter=0.5), seed=0)
        seen.append([image.numpy().tobytes() for images, _ in epoch_of(splits, 0) for image in images])
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [2, 5])
def test_a_resume_replays(config: DataConfig, workers: int, start: int) -> None:
    config = replace(config, workers=workers, train_crop="pad", color_jitter=0.5)
    splits = open_data(config, seed=0)
    epoch_of(splits, 0)
    whole, resumed = epoch_of(splits, 1), epoch_of(open_data(config, seed=0), 1, start)
    assert len(resumed) == 5 - start
    for (left, left_labels), (right, right_labels) in zip(resumed, whole[start:], strict=True):
        assert torch.equal(left, right)
        assert torch.equal(left_labels, right_labels)


def test_a_replay_does_not_decode_what_nobody_sees(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = open_data(config, seed=0)
    shards, decoded = splits.train.dataset.shards, []
    decode = shards.decode
    monkeypatch.setattr(shards, "decode", lambda sample: decoded.append(sample.row) or decode(sample))
    epoch_of(splits, 0, start=3)
    assert len(decoded) == 8


def test_outside_an_epoch(config: DataConfig) -> None:
    splits = open_data(config, seed=0)
    for epoch, start in ((-1, 0), (0, -1), (0, 6)):
        with pytest.raises(DataError, match=rf"epoch {epoch}, batch {start} does not exist: .* have 5 batches"):
            splits.order.seek(epoch, start)


def test_accelerate_passes_a_stream_by(config: DataConfig) -> None:
    splits = open_data(config, seed=0)
    assert Accelerator(cpu=True).prepare(splits.train) is splits.train, "its batches are shared out already"


def test_loading_leaves_the_random_state_alone(config: DataConfig) -> None:
    before = torch.get_rng_state()
    epoch_of(open_data(replace(config, train_crop="pad", workers=1), seed=0), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_split_that_declares_too_much(config: DataConfig) -> None:
    """Training ends early, which `StepBatches` reports; an evaluation must not pass for one of all images."""
    info = Path(config.root) / "_info.json"
    described = json.loads(info.read_text())
    for split in described["splits"].values():
        del split["shard_lengths"][:]
        split["num_samples"] += 4
    info.write_text(json.dumps(described))
    splits = open_data(config, seed=0)
    assert (splits.train_batches, len(epoch_of(splits, 0))) == (6, 5)
    with pytest.raises(DataError, match=r"the evaluation split declares 11 images, but its shards hold 7; correct"):
        list(splits.eval)


def test_shards_named_in_the_split(config: DataConfig) -> None:
    (Path(config.root) / "_info.json").unlink()
    config = replace(config, train_split="train-{0..2}.tar|20", eval_split="validation-{0..2}.tar")
    splits = open_data(config, seed=0)
    assert sorted(greys(epoch_of(splits, 0))) == list(range(20))
    assert (splits.eval_images, len(greys(splits.eval))) == (0, 7)
    with pytest.raises(DataError, match=r"declares 0 images, .* write the count behind the split: '...\|50000'"):
        open_data(replace(config, train_split="train-{0..2}.tar"), seed=0)


def test_labels_from_json(config: DataConfig) -> None:
    """timm's alternative label: a field of the JSON beside the image; -1 says that the image has none."""
    root = Path(config.root)
    [shard] = write_shards(root, "species", (4,), first=100)
    described = json.loads((root / "_info.json").read_text())
    described["splits"]["species"].update(alt_label="kind", num_samples=3)
    (root / "_info.json").write_text(json.dumps(described))
    kinds = {100: 2, 101: -1, 102: 0, 103: 1}
    write_tar(
        shard,
        {k: v for g, kind in kinds.items() for k, v in ((f"{g}.png", png(g)), (f"{g}.json", b'{"kind": %d}' % kind))},
    )
    batches = list(open_eval(replace(config, eval_split="species")))
    assert greys(batches) == [100, 102, 103]
    assert torch.cat([labels for _, labels in batches]).tolist() == [2, 0, 1]


def test_refusals(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a stream cannot be limited to a number of images; name fewer shards"):
        open_data(config, seed=0, max_train_images=4)
    with pytest.raises(DataError, match=r"a stream has no repeated_augmentation and no cache_decoded"):
        open_data(replace(config, cache_decoded=True), seed=0)
    with pytest.raises(DataError, match=r"declares 20 images, which do not fill one batch of 64"):
        open_data(replace(config, batch_size=64), seed=0)
    with pytest.raises(DataError, match=r"split 'test' cannot be opened: .*\nwrite splits as shards and a count"):
        open_data(replace(config, train_split="test"), seed=0)
    with pytest.raises(DataError, match=r"validation-0.tar: 0101 has label 2, but num_classes=2 allows 0 to 1"):
        list(open_eval(replace(config, num_classes=2)))
    with pytest.raises(DataError, match=r"class_map='x.txt': the labels of tar shards are numbers already; leave it"):
        open_eval(replace(config, class_map="x.txt"))
    as_process(monkeypatch, 0, 3)
    with pytest.raises(DataError, match=r"batch_size=4 does not divide among 3 processes; give a multiple of 3"):
        open_data(config, seed=0)


@given(items=st.integers(0, 60), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_the_shuffle_buffer_gives_everything_once(items: int, size: int, seed: int) -> None:
    order = list(shuffled(range(items), size, random.Random(seed)))  # type: ignore[arg-type]  # any items will do
    assert sorted(order) == list(range(items))
    assert all(place >= item - size for place, item in enumerate(order)), "nothing comes before it is read"
    assert size > 1 or order == list(range(items))


class NumberedShards:
    """Shards without files: sample after sample a grey level, counted through all shards."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.images = sizes, sum(sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def length(self, shard: int) -> int | None:
        return self.sizes[shard]

    def read(self, shard: int) -> Iterator[Encoded]:
        for row in range(self.sizes[shard]):
            yield Encoded(f"{shard}/{row}", shard, row, sum(self.sizes[:shard]) + row, 0)

    def decode(self, sample: Encoded) -> tuple[np.ndarray, int]:
        return np.full((16, 16, 3), sample.image, np.uint8), 0


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    size=st.integers(1, 3),
    processes=st.integers(1, 3),
    workers=st.integers(1, 3),
)
@settings(deadline=None)
def test_any_shards_any_split(sizes: list[int], size: int, processes: int, workers: int) -> None:
    """Slices of all processes, from workers that are played one after the other: the batches of one process, each image once."""
    batch = size * processes
    batches = sum(sizes) // batch

    def epoch(index: int, count: int) -> list[list[int]]:
        stream = SeededStream(
            NumberedShards(sizes),
            eval_transform(CONFIG),
            batch,
            0,
            num_classes=None,
            share=Share(index, count),
            shuffle=True,
            batches=batches,
            skips=None,
        )
        loader = StreamLoader(stream, 0)
        with pytest.MonkeyPatch.context() as patch:
            worker = SimpleNamespace(id=0, num_workers=workers)
            patch.setattr(streams, "get_worker_info", lambda: worker)
            parts: list[Part] = []
            for worker.id in range(workers):
                parts += stream
        loader.parts = parts  # type: ignore[assignment]
        return [greys([part]) for part in loader]

    whole, slices = epoch(0, 1), [epoch(index, processes) for index in range(processes)]
    seen = [grey for part in whole for grey in part]
    assert len(seen) == len(set(seen)) == batches * batch
    assert [sorted(part) for part in whole] == [sorted(chain(*parts)) for parts in zip(*slices, strict=True)]
