"""Broken images and shards: in training another image stands in, counted and named up to a limit; elsewhere an error."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvit.data import Batch, DataConfig, DataError, Splits, epoch_batches, open_data, open_eval, stream_loader
from qvit.data.skips import Skipped, Skips, StandIns, first_readable
from qvit.data.sources import UnlabelledFolder
from qvit.data.streams import Share
from toy_shards import CONFIG, change, greys, png, sample, write_shards, write_tar

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a one-core machine
]


@pytest.fixture(autouse=True)
def _no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that names broken images lies in the folder for temporary files where nothing else is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def epoch_of(splits: Splits, epoch: int = 0, start: int = 0) -> list[Batch]:
    return list(epoch_batches(splits.train, splits.order, epoch, start))


# -- the count ---------------------------------------------------------------------------------------------------------


def test_what_several_readers_met_is_one_count(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run" / "skipped.jsonl"
    first, second = Skips(2, file), Skips(2, file)
    assert (first.images(), first.has_shards(), file.exists()) == (0, False, False), "no file without a broken image"
    first.add(Skipped("a.jpg", "cut off"))
    second.add(Skipped("a.jpg", "cut off"))  # met by another worker, and again in the next epoch
    first.add(Skipped("a.jpg", "cut off"))
    second.add(Skipped("b.jpg", "no image"))
    assert first.images() == second.images() == 2
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a.jpg", "b.jpg"]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1] == f"b.jpg: no image; left out of training (2 of at most 2 images, see {file})"


def test_the_limit_names_the_first_and_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    skips = Skips(1, file)
    skips.add(Skipped("a.jpg", "cut off"))
    message = (
        r"training images that cannot be read: 2, more than max_corrupt=1; the first are\n  a.jpg: cut off\n  b.jpg: no image\n"
        r"all are in .*skipped.jsonl; replace them and delete that file, or set data.max_corrupt to how many"
    )
    with pytest.raises(DataError, match=message):
        skips.add(Skipped("b.jpg", "no image"))
    with pytest.raises(DataError, match=message):
        Skips(1, file).add(Skipped("a.jpg", "cut off"))  # a resume with the same limit does not slip through
    Skips(2, file).add(Skipped("a.jpg", "cut off"))


def test_a_shard_counts_with_all_its_images(tmp_path: Path) -> None:
    skips = Skips(10, tmp_path / "skipped.jsonl")
    skips.add(Skipped("a.tar", "missing", images=10, shard=True))
    assert skips.has_shards()
    with pytest.raises(DataError, match=r"training images that cannot be read: 11, more than max_corrupt=10"):
        skips.add(Skipped("b.jpg", "cut off"))


def test_a_line_cut_off_by_a_kill_is_no_end(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    Skips(9, file).add(Skipped("a.jpg", "cut off"))
    with open(file, "a") as stream:
        stream.write('{"name": "b.jp')
    assert list(Skips(9, file).read()) == ["a.jpg"]
    Skips(9, file).add(Skipped("b.jpg", "cut off"))  # on a line of its own
    assert list(Skips(9, file).read()) == ["a.jpg", "b.jpg"]


def test_without_a_run_directory_a_temporary_file_is_named() -> None:
    skips, other = Skips(0), Skips(0)
    assert skips.file != other.file
    assert not skips.file.exists()


# -- data sets with an index -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> DataConfig:
    """Twelve training images grey 0 to 11, of which 3 is cut in half and 4 is a text; evaluation images 100 to 103."""
    for split, levels in (("train", range(12)), ("validation", range(100, 104))):
        for grey in levels:
            path = tmp_path / split / "abc"[grey % 3] / f"{grey:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(grey))
    (tmp_path / "train" / "a" / "0003.png").write_bytes(png(3)[:60])
    (tmp_path / "train" / "b" / "0004.png").write_bytes(b"not an image")
    return replace(CONFIG, dataset="folder", root=str(tmp_path))


def test_the_next_image_stands_in(folder: DataConfig, tmp_path: Path) -> None:
    """Files in the order of the data set: a (0, 3, 6, 9), b (1, 4, 7, 10), c (2, 5, 8, 11)."""
    splits = open_data(folder, seed=0, skipped=tmp_path / "skipped.jsonl")
    assert sorted(greys(splits.calibration)) == [0, 1, 2, 5, 6, 6, 7, 7, 8, 9, 10, 11]
    batches = epoch_of(splits)
    assert sorted(greys(batches)) == [0, 1, 2, 5, 6, 6, 7, 7, 8, 9, 10, 11]
    assert torch.cat([labels for _, labels in batches]).tolist() == [grey % 3 for grey in greys(batches)]
    names = list(splits.skips.read())
    assert sorted(names) == ["image 1 (a/0003.png)", "image 5 (b/0004.png)"]
    assert splits.skips.images() == 2


def test_places_do_not_depend_on_workers_resume_or_memory(folder: DataConfig) -> None:
    config = replace(folder, train_crop="pad", color_jitter=0.5)
    expected = epoch_of(open_data(config, seed=0), 1)
    assert len(expected) == 3
    for changes, start in (({"workers": 2}, 0), ({}, 1), ({"cache_decoded": True}, 0)):
        batches = epoch_of(open_data(replace(config, **changes), seed=0), 1, start)  # type: ignore[arg-type]
        for (images, labels), (expected_images, expected_labels) in zip(batches, expected[start:], strict=True):
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)


def test_workers_share_the_count(folder: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"training images that cannot be read: 2, more than max_corrupt=1; the first are\n"
    ):
        epoch_of(open_data(replace(folder, workers=2, max_corrupt=1), seed=0, skipped=tmp_path / "one.jsonl"))
    splits = open_data(replace(folder, workers=2), seed=0, skipped=tmp_path / "two.jsonl")
    epoch_of(splits, 0), epoch_of(splits, 1), list(splits.calibration)
    assert splits.skips.images() == 2, "seen from the training process"


def test_an_evaluation_leaves_nothing_out(folder: DataConfig) -> None:
    (Path(folder.root) / "validation" / "c" / "0101.png").write_bytes(png(101)[:60])
    for evaluation in (open_eval(folder), open_data(folder, seed=0).eval):
        with pytest.raises(DataError, match=r"c/0101.png\) cannot be decoded: .*; replace the file or remove it"):
            list(evaluation)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    source = StandIns(UnlabelledFolder(tmp_path), Skips(9, tmp_path / "skipped.jsonl"))
    with pytest.raises(DataError, match=r"none of 2 images can be read; see .*skipped.jsonl"):
        source.read(1)


def test_after_the_last_comes_the_first(tmp_path: Path) -> None:
    (tmp_path / "z.png").write_bytes(b"no image")
    (tmp_path / "a.png").write_bytes(png(7))
    source = UnlabelledFolder(tmp_path)
    pixels, _ = first_readable(source.read, 1, 2, Skips(1, tmp_path / "skipped.jsonl"))
    assert pixels[0, 0, 0] == 7


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path: Path) -> DataConfig:
    """Training shards of 7, 1 and 12 images (grey 0 to 19), evaluation shards of 4 and 3 (100 to 106)."""
    pytest.importorskip("webdataset")
    write_shards(tmp_path, "train", (7, 1, 12))
    write_shards(tmp_path, "validation", (4, 3), first=100)
    return replace(CONFIG, root=str(tmp_path))


BROKEN = {
    "half an image": ({"0003.png": png(3)[:60]}, "image file is truncated"),
    "a text as image": ({"0003.png": b"not an image"}, "cannot identify image file"),
    "no image": ({"0003.png": None}, r"there is a label but no image \(jpg, jpeg, png, webp\)"),
    "no label": ({"0003.cls": None}, r"there is no label \(cls\)"),
    "a word as label": ({"0003.cls": b"cat"}, "invalid literal for int"),
}


@pytest.mark.parametrize(("changes", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_sample_of_a_shard(
    changes: dict[str, bytes | None], reason: str, stream: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another image of its batch stands in, the same one with two processes; an evaluation stops and names it."""
    change(Path(stream.root) / "train-0.tar", {"README.txt": b"no sample", **changes})
    splits = open_data(stream, seed=0)
    batches = epoch_of(splits)
    assert sorted({*greys(batches), 3}) == list(range(20))
    assert [len(labels) for _, labels in batches] == [4] * 5
    [name] = splits.skips.read()
    assert name.endswith("train-0.tar: 0003")
    for index in range(2):
        monkeypatch.setattr(stream_loader, "this_process", lambda index=index: Share(index, 2))
        for part, batch in zip(epoch_of(open_data(stream, seed=0)), batches, strict=True):
            assert greys([part]) == greys([batch])[2 * index : 2 * index + 2]
    with pytest.raises(DataError, match=rf"train-0.tar: 0003 cannot be decoded: {reason}.*; replace the file"):
        list(open_eval(replace(stream, eval_split="train")))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


MEMBERS = 4 * 512  # bytes of a sample in a toy tar: header and content of two small members


@pytest.mark.parametrize(
    ("size", "workers"),
    [(7 * MEMBERS + 700, 0), (7 * MEMBERS + 700, 2), (7 * MEMBERS, 0), (0, 0), (None, 0)],
    ids=["cut", "cut-workers", "cut-between", "empty", "gone"],
)
def test_a_broken_shard(size: int | None, workers: int, stream: DataConfig) -> None:
    """What is left of 20 images fills the 5 batches of the epoch; the rest is counted. An evaluation stops."""
    path = Path(stream.root) / "train-2.tar"
    if size is None:
        path.unlink()
    else:
        cut(path, size)
    lost = 5 if size else 12
    splits = open_data(replace(stream, max_corrupt=lost, workers=workers), seed=0)
    batches = epoch_of(splits)
    seen = greys(batches)
    assert [len(labels) for _, labels in batches] == [4] * 5
    assert set(seen) <= set(range(20 - lost))
    assert len(set(seen)) > 20 - lost - 4, "less than a batch is left over"
    assert max(seen.count(grey) for grey in seen) == -(-20 // (20 - lost)), "each pass has each once"
    assert splits.skips.images() == lost
    [skipped] = splits.skips.read().values()
    assert skipped.name.endswith("train-2.tar")
    assert skipped.reason.startswith(f"it ends after {12 - lost} images (")
    resumed = epoch_of(open_data(replace(stream, max_corrupt=lost, workers=workers), seed=0), 0, 4)
    assert greys(resumed) == greys(batches[4:])


def test_a_broken_shard_beyond_the_limit(stream: DataConfig) -> None:
    (Path(stream.root) / "train-2.tar").unlink()
    with pytest.raises(
        DataError, match=r"training images that cannot be read: 12, more than max_corrupt=10; the first are\n"
    ):
        epoch_of(open_data(stream, seed=0))


def test_a_broken_shard_in_an_evaluation(stream: DataConfig) -> None:
    cut(Path(stream.root) / "validation-1.tar", MEMBERS + 700)
    with pytest.raises(
        DataError, match=r"validation-1.tar cannot be read: it ends after 1 images .*; replace the file"
    ):
        list(open_eval(stream))


def test_a_label_out_of_range_is_never_left_out(stream: DataConfig) -> None:
    """It is the description that is wrong, not the image."""
    write_tar(Path(stream.root) / "train-1.tar", {**sample(7), "0007.cls": b"3"})
    with pytest.raises(DataError, match=r"train-1.tar: 0007 has label 3, but num_classes=3 allows 0 to 2"):
        epoch_of(open_data(stream, seed=0))
