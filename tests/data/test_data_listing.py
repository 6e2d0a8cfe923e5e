"""The hash of a split's files: moved by every image that comes, goes or changes, and by nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qvit.data import DataConfig
from qvit.data.listing import listing
from qvit.data.shards import open_shards
from toy_shards import png, write_shards


def write_folder(root: Path) -> None:
    for split in ("train", "validation"):
        for number in range(4):
            path = root / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(40 * number))


def add(root: Path) -> None:
    (root / "train" / "class0" / "4.png").write_bytes(png(3))


def remove(root: Path) -> None:
    (root / "train" / "class0" / "2.png").unlink()


def replace(root: Path) -> None:
    (root / "train" / "class0" / "2.png").write_bytes(png(3) + b"more")


def rename(root: Path) -> None:
    (root / "train" / "class0" / "2.png").rename(root / "train" / "class1" / "2.png")


@pytest.mark.parametrize("change", [add, remove, replace, rename])
@pytest.mark.parametrize("dataset", ["folder", "hfds/"])
def test_an_image_more_or_less_or_another_is_another_listing(
    change: Callable[[Path], None], dataset: str, tmp_path: Path
) -> None:
    write_folder(tmp_path)
    name = dataset if dataset == "folder" else f"{dataset}{tmp_path}"
    config = DataConfig(dataset=name, root=str(tmp_path))
    before = listing(config)
    assert listing(config) == before
    change(tmp_path)
    assert listing(config) != before


def test_a_copy_is_the_same_and_so_is_another_evaluation_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "validation" / "class0" / "0.png").unlink()
    (tmp_path / "b" / "train" / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "train" / "link").symlink_to(tmp_path / "nowhere")
    left, right = (listing(DataConfig(root=str(tmp_path / name))) for name in "ab")
    assert left == right


def test_shards_are_told_by_name_size_and_length(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    found = []
    for sizes in ([4, 4], [4, 5], [5, 4], [4, 4]):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / "data").mkdir()
        write_shards(tmp_path / "data", "train", sizes)
        config = DataConfig(dataset="wds/", root=str(tmp_path / "data"), train_split="train")
        found.append(listing(config, open_shards(config, "train")))
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_what_has_no_files_of_ours_has_one_listing() -> None:
    assert listing(DataConfig(dataset="digits")) == listing(DataConfig(dataset="hfds/someone/pictures"))
