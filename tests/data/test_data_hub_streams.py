"""Streamed Hugging Face data sets ("hfids/"), here local parquet files: the order of a stream, their own columns and classes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from qvit.data import DataConfig, DataError, epoch_batches, open_data, open_eval
from toy_shards import CONFIG, greys

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a one-core machine
]
SIZES = (5, 1, 4)


@pytest.fixture(autouse=True)
def _no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that names broken images lies in the folder for temporary files where nothing else is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Parquet files of 5, 1 and 4 training images, grey 0 to 9, and of 3 for evaluation, 100 to 102."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    folder, grey = tmp_path / "data", 0
    folder.mkdir()

    def write(split: str, shard: int, shards: int, levels: range) -> None:
        rows = {
            "image": [Image.new("RGB", (16, 16), (level,) * 3) for level in levels],
            "label": [level % 3 for level in levels],
        }
        file = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))

    for shard, size in enumerate(SIZES):
        write("train", shard, len(SIZES), range(grey, grey + size))
        grey += size
    write("validation", 0, 1, range(100, 103))
    return replace(
        CONFIG,
        dataset=f"hfids/{folder}",
        root=str(tmp_path / "cache"),
        train_split="train|10",
        eval_split="validation|3",
        batch_size=2,
        eval_batch_size=2,
    )


@pytest.mark.parametrize("names", ["", "z\nx\ny"], ids=["numbered", "map"])
def test_an_image_without_a_label_has_none_behind_a_class_map_either(
    names: str, config: DataConfig, tmp_path: Path
) -> None:
    """-1 is how the hub writes that."""
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "data" / "validation-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache2"))
    rows = rows.map(lambda row, index: {"label": -1 if index == 1 else row["label"]}, with_indices=True)
    rows.to_parquet(str(file))
    if names:
        (tmp_path / "names.txt").write_text(names)
        config = replace(config, class_map=str(tmp_path / "names.txt"), num_classes=3)
    labels = torch.cat([labels for _, labels in open_eval(config)]).tolist()
    assert labels == ([2, -1, 1] if names else [1, -1, 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once(config: DataConfig, workers: int) -> None:
    splits = open_data(replace(config, workers=workers), seed=0)
    assert (splits.train_images, splits.eval_images, splits.train_batches) == (10, 3, 5)
    epochs = [list(epoch_batches(splits.train, splits.order, epoch)) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(greys(batches)) == list(range(10))
        assert torch.cat([labels for _, labels in batches]).tolist() == [grey % 3 for grey in greys(batches)]
    assert greys(epochs[0]) != greys(epochs[1])
    assert sorted(greys(splits.calibration)) == list(range(10))
    assert greys(splits.eval) == [100, 101, 102]


def test_what_must_be_said(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"split 'train' cannot be opened: Dataset length is unknown.*\n.*'train\|50000'"
    ):
        open_data(replace(config, train_split="train"), seed=0)
    with pytest.raises(DataError, match=r"split 'test\|3' cannot be opened: .*train.*validation"):
        open_eval(replace(config, eval_split="test|3"))
    for field in ("image_column", "label_column"):
        with pytest.raises(
            DataError, match=rf"{field}='img' is not a column of .*\['image', 'label'\]; set {field} to"
        ):
            open_eval(replace(config, **{field: "img"}))  # type: ignore[arg-type]
    names = tmp_path / "names.txt"
    names.write_text("z\ny\n")
    with pytest.raises(DataError, match=r"names.txt' has no place for x; correct it, or leave it out"):
        open_eval(replace(config, class_map=str(names)))
    names.write_text("z\ny\nx\n")
    labels = torch.cat([labels for _, labels in open_eval(replace(config, class_map=str(names)))])
    assert labels.tolist() == [1, 0, 2], "100, 101, 102 are of the classes y, z, x"
    for opened in (
        lambda: open_data(replace(config, num_classes=9), seed=0),
        lambda: open_eval(replace(config, num_classes=9)),
    ):
        with pytest.raises(
            DataError, match=r"has 3 classes \(x, y, z\), but the model has 9 outputs: .* give class_map"
        ):
            opened()
    with pytest.raises(
        DataError, match=r"eval_split='train' have images in common: .*; name another split in eval_split"
    ):
        open_data(replace(config, eval_split="train"), seed=0)
    with pytest.raises(DataError, match=r"the evaluation split declares 4 images, but its shards hold 3"):
        list(open_eval(replace(config, eval_split="validation|4")))


def test_a_broken_file(config: DataConfig) -> None:
    file = Path(config.dataset.removeprefix("hfids/")) / "train-00001-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:200])
    splits = open_data(config, seed=0)
    seen = greys(epoch_batches(splits.train, splits.order, 0))
    assert len(seen) == 10
    assert set(seen) <= set(range(10)) - {5}
    [skipped] = splits.skips.read().values()
    assert (skipped.name, skipped.shard) == ("shard 1 of 3", True)
    with pytest.raises(DataError, match=r"shard 1 of 3 cannot be read: it ends after 0 images .*; replace the file"):
        list(open_eval(replace(config, eval_split="train|10")))
