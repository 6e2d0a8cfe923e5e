"""Where decoded images come from: every data set behind one small face, `read(index) -> (pixels, label)`.

timm's factory opens image folders and Hugging Face data sets; this file adds a flat folder without labels, a subset,
other numbers for the classes, and a memory of decoded pixels. timm's own `ImageDataset` answers an unreadable file with the *next* image and a log
line, so an epoch would hold other images than its order says. Here the reader is asked directly and an unreadable
image is an `UnreadableError` that names it; whether it ends the run is `data.skips`' business.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import get_img_extensions

from .classes import in_order, outputs_of, read_class_map
from .config import DataConfig, DataError

TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("validation", "val", "valid", "eval", "evaluation")


class Source(Protocol):
    """Images with labels, in a fixed order that depends on the files alone."""

    class_names: tuple[str, ...]
    """In label order; empty where unknown."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """RGB pixels (H, W, 3) uint8 and the label (-1: none). Raises UnreadableError when it cannot be decoded."""
        ...


class ReaderSource:
    """A timm reader: an image folder, a tar of images, a Hugging Face data set."""

    class Reader(Protocol):
        def __getitem__(self, index: int) -> tuple[IO[bytes], int]: ...
        def __len__(self) -> int: ...
        def filename(self, index: int) -> str: ...

    def __init__(self, reader: Reader, class_names: tuple[str, ...]) -> None:
        self.reader = reader
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        try:
            stream, label = self.reader[index]
            with stream:
                return np.asarray(Image.open(stream).convert("RGB")), -1 if label is None else int(label)
        except Exception as error:  # Pillow alone raises OSError, SyntaxError, ValueError and struct.error
            raise unreadable(f"image {index} ({self._name(index)})", error) from error

    def _name(self, index: int) -> str:
        try:
            return str(self.reader.filename(index))
        except Exception:  # a reader without names must not hide the first error
            return "no name"


class UnlabelledFolder:
    """All images under a folder, sorted by path, with label -1: enough for calibration and for agreement with float."""

    class_names: tuple[str, ...] = ()

    def __init__(self, folder: str | Path) -> None:
        """Raises DataError when the folder is missing or holds no image."""
        root = existing_folder(folder)
        types = get_img_extensions(as_set=True)
        self.paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in types)
        if not self.paths:
            raise no_images(root)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        try:
            with Image.open(self.paths[index]) as image:
                return np.asarray(image.convert("RGB")), -1
        except Exception as error:  # as above
            raise unreadable(f"image {index} ({self.paths[index]})", error) from error


class ArraySource:
    """Decoded pixels in memory: one uint8 array (N, H, W, 3), or a list where the sizes differ."""

    def __init__(
        self, pixels: np.ndarray | Sequence[np.ndarray], labels: Sequence[int], class_names: tuple[str, ...]
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])


class Renumbered:
    """A source whose classes are other outputs than it says: those of a class map, or of the training split.

    outputs      for each of its labels
    class_names  of the outputs
    """

    def __init__(self, source: Source, outputs: Sequence[int], class_names: tuple[str, ...]) -> None:
        self.source = source
        self.outputs = outputs
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        pixels, label = self.source.read(index)
        return pixels, label if label < 0 else self.outputs[label]


class Subset:
    """Some images of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return self.source.read(int(self.indices[index]))


def limit(source: Source, images: int | None) -> Source:
    """At most `images` of a source: a fixed random choice, the same for every seed, in the source's order.

    A random choice, because folders are sorted by class and the first images are all of one.
    """
    if images is None or images >= len(source):
        return source
    if images < 1:
        raise DataError(f"at most {images} images were asked for; ask for at least 1, or None for all")
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:images]
    return Subset(source, sorted(chosen.tolist()))


def decode(source: Source) -> ArraySource:
    """Read every image once and keep the pixels (CIFAR-10: 45,000 x 32 x 32 x 3 bytes = 138 MB, about 5 s)."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for index in range(len(source)):
        image, label = source.read(index)
        images.append(image)
        labels.append(label)
    same = len({image.shape for image in images}) == 1
    return ArraySource(np.stack(images) if same else images, labels, source.class_names)


def mapped(source: Source, config: DataConfig) -> Source:
    """The source with the labels of the class map, if the config has one. Raises DataError where they do not go together."""
    class_map = read_class_map(config.class_map)
    if class_map is None:
        return source
    return Renumbered(source, outputs_of(source.class_names, class_map, config.class_map), in_order(class_map))


def open_timm(config: DataConfig, split: str) -> ReaderSource:
    """An image folder or an "hfds/" data set, through timm's factory; classes as they are sorted there. Raises DataError."""
    folder = config.dataset == "folder"
    root = str(find_split_folder(config.root, split)) if folder else config.root
    if not folder:
        require("datasets", f"dataset={config.dataset!r}", "data")
    try:
        dataset = create_dataset(
            "" if folder else config.dataset,
            root=root or None,
            split=split,
            search_split=False,
            input_key=None if folder else config.image_column,
            target_key=None if folder else config.label_column,
        )
    except RuntimeError as error:
        if "Found 0 images" in str(error):
            raise no_images(Path(root)) from error
        raise
    except (ValueError, OSError) as error:
        raise cannot_open(config, split, error) from error
    if not len(dataset):
        raise DataError(f"split {split!r} of dataset={config.dataset!r} holds no images; choose another split")
    if not folder:
        _check_columns(dataset.reader.dataset[0], config)
    return ReaderSource(dataset.reader, tuple(map(str, in_order(dataset.reader.class_to_idx))))


def _check_columns(row: dict[str, object], config: DataConfig) -> None:
    """The first row must hold an image and a label; `datasets` fills a column that does not exist with None."""
    for field in ("image_column", "label_column"):
        if row.get(getattr(config, field)) is None:
            there = sorted(name for name, value in row.items() if value is not None)
            raise DataError(
                f"{field}={getattr(config, field)!r} is not a column of {config.dataset!r}, which has {there}; "
                f"set {field} to one of these"
            )


def cannot_open(config: DataConfig, split: str, error: BaseException) -> DataError:
    if config.dataset.startswith("wds/"):
        hint = "write splits as shards and a count, such as 'train-{0000..0009}.tar|50000'"
    else:
        hint = "set dataset to a local folder or a hub name, and train_split and eval_split to splits that it has"
    if config.dataset.startswith("hfids/"):
        hint += ", with a count where it does not say one: 'train|50000'"
    return DataError(f"dataset={config.dataset!r}, split {split!r} cannot be opened: {error}\n{hint}")


def split_folder(root: str, split: str) -> Path | None:
    """The sub-folder of `root` for a split, by name or by one of timm's synonyms; None where there is none."""
    base = existing_folder(root)
    group = next((names for names in (TRAIN_NAMES, EVAL_NAMES) if split in names), ())
    return next((base / name for name in (split, *group) if (base / name).is_dir()), None)


def find_split_folder(root: str, split: str) -> Path:
    """`split_folder`, never silently `root` itself; raises DataError where there is none."""
    folder = split_folder(root, split)
    if folder is None:
        there = sorted(path.name for path in Path(root).iterdir() if path.is_dir())[:10]
        raise DataError(
            f"split {split!r} is not a folder in {root}, which has {there or 'no folders'}; set train_split and eval_split "
            'to two folders that exist (an evaluation alone may read root itself: --split "")'
        )
    return folder


def holds_images(folder: str | Path) -> bool:
    """Images lie in the folder itself, not in sub-folders."""
    types = get_img_extensions(as_set=True)
    return Path(folder).is_dir() and any(path.suffix.lower() in types for path in Path(folder).iterdir())


def existing_folder(folder: str | Path) -> Path:
    """`folder` as a Path, or a DataError that says it is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{folder} is not a folder; set root to the folder that holds the images")
    return path


def require(module: str, what: str, extra: str) -> None:
    """Raises ImportError that says what to install when an optional dependency is missing."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{what} needs the package {module!r}, which is not installed; pip install 'qvit[{extra}]'")


def no_images(folder: Path) -> DataError:
    return DataError(f"no images in {folder}; it should hold files such as {', '.join(get_img_extensions())}")


class UnreadableError(DataError):
    """One image cannot be decoded: `image` names it, `reason` says why."""

    image = ""
    reason = ""


def unreadable(image: str, error: BaseException | str) -> UnreadableError:
    """The error of one image. Loader workers hand on an exception's text alone, hence one argument and two attributes."""
    reason = str(error).partition(" <_io.")[0]  # Pillow ends with the stream and its address
    problem = UnreadableError(f"{image} cannot be decoded: {reason}; replace the file or remove it")
    problem.image, problem.reason = image, reason
    return problem
