"""Webdataset shards and streamed parquet: they train, evaluate, and resume by replay."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from qvit.data import DataConfig, DataError, epoch_batches, open_data, open_eval

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a one-core machine
    # webdataset leaves a shard open when its reader stops in the middle
    pytest.mark.filterwarnings(r"ignore:unclosed file <_io.BufferedReader name='.*\.tar'>:ResourceWarning"),
]
CONFIG = DataConfig(
    dataset="wds/",
    root="shards",
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop=1.0,
    crop_mode="center",
    interpolation="bilinear",
    num_classes=3,
    train_crop="pad",
    color_jitter=0.5,
    batch_size=4,
    eval_batch_size=5,
)


def write_shard(path: Path, first: int, images: int) -> None:
    """A tar of grey images `first` .. `first + images - 1`, label grey mod 3."""
    with tarfile.open(path, "w") as tar:
        for grey in range(first, first + images):
            png = io.BytesIO()
            Image.new("RGB", (16, 16), (grey,) * 3).save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(grey % 3).encode())):
                member = tarfile.TarInfo(f"{grey:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Two training shards of 10 images and one evaluation shard of 7, described by timm's _info.json."""
    pytest.importorskip("webdataset")
    splits = {}
    for split, shards, images in (("train", 2, 10), ("validation", 1, 7)):
        names = [f"{split}-{shard}.tar" for shard in range(shards)]
        for shard, name in enumerate(names):
            write_shard(tmp_path / name, shard * images + (100 if split == "validation" else 0), images)
        splits[split] = {
            "name": split,
            "filenames": names,
            "shard_lengths": [images] * shards,
            "num_samples": shards * images,
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return replace(CONFIG, root=str(tmp_path))


def greys(batches: object) -> list[int]:
    values = torch.cat([images for images, _ in batches])  # type: ignore[attr-defined]
    return [round(value) for value in ((values[:, 0, 8, 8] * 0.5 + 0.5) * 255).tolist()]


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_train_calibrate_and_evaluate(config: DataConfig, workers: int) -> None:
    splits = open_data(replace(config, workers=workers), seed=0)
    assert (splits.train_images, splits.eval_images, splits.train_batches) == (20, 7, 5)
    batches = list(epoch_batches(splits.train, splits.order, 0))
    assert len(batches) == 5
    assert batches[0][0].shape == (4, 3, 16, 16)
    assert greys(splits.calibration) == list(range(20))
    assert greys(splits.eval) == greys(open_eval(config)) == list(range(100, 107))
    assert torch.cat([labels for _, labels in splits.eval]).tolist() == [grey % 3 for grey in range(100, 107)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_replays(config: DataConfig, workers: int) -> None:
    config = replace(config, workers=workers)
    splits = open_data(config, seed=0)
    epochs = [list(epoch_batches(splits.train, splits.order, epoch)) for epoch in (0, 1)]
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    fresh = open_data(config, seed=0)
    resumed = list(epoch_batches(fresh.train, fresh.order, 1, start=2))
    assert len(resumed) == 3
    for (left, left_labels), (right, right_labels) in zip(resumed, epochs[1][2:], strict=True):
        assert torch.equal(left, right)
        assert torch.equal(left_labels, right_labels)


def test_accelerate_prepares_a_stream(config: DataConfig) -> None:
    splits, again = open_data(config, seed=0), open_data(config, seed=0)
    loader = Accelerator(cpu=True).prepare(splits.train)
    prepared = list(epoch_batches(loader, splits.order, 1))
    plain = list(epoch_batches(again.train, again.order, 1))
    assert all(torch.equal(left[0], right[0]) for left, right in zip(prepared, plain, strict=True))


def test_streams_refuse_what_they_cannot_do(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a stream cannot be limited to a number of images; name fewer shards"):
        open_data(config, seed=0, max_train_images=4)
    with pytest.raises(DataError, match=r"a stream has no repeated_augmentation and no cache_decoded"):
        open_data(replace(config, cache_decoded=True), seed=0)
    with pytest.raises(DataError, match=r"declares 20 images, which do not fill one batch of 64"):
        open_data(replace(config, batch_size=64), seed=0)
    with pytest.raises(DataError, match=r"split 'test' cannot be opened: .*\nwrite splits as shards and a count"):
        open_data(replace(config, train_split="test"), seed=0)
    with pytest.raises(DataError, match=r"image \d of the stream has label 2, but num_classes=2 allows 0 to 1"):
        list(open_eval(replace(config, num_classes=2)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(DataError, match=r"is a stream, which one process alone can read; use 'hfds/' or folders"):
        open_data(config, seed=0)
