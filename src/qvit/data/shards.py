"""Shards of encoded images: webdataset tars ("wds/") and the files of a streamed Hugging Face data set ("hfids/").

timm's factory opens the split (which files, how many images, which labels); what its iterable readers do next is not ours to
use: they swallow every error, and a loader worker whose shards are short reads them twice while another's go unread. So the
files are read here, one shard at a time and from its beginning, which is all that a stream can do. What comes out is
*encoded*: `data.streams` shuffles and shares out bytes, and only who trains on an image decodes it.

A sample of a tar is its members of one base name: `0007.jpg` and `0007.cls` (the label in digits), or `0007.json` where the
split's `_info.json` names a field (`alt_label`). Members with neither image nor label, such as a README, are not samples.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from timm.data import create_dataset

from .classes import check_classes, outputs_of, read_class_map
from .config import DataConfig, DataError
from .sources import cannot_open, require, unreadable

PREFIXES = ("wds/", "hfids/")
IMAGES = ("jpg", "jpeg", "png", "webp")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:")
ROWS = 16  # of a Hugging Face file that are fetched at a time


def is_address(root: str) -> bool:
    """The root of shards that are fetched, https://HOST/PATH or pipe:COMMAND, and no folder."""
    return ADDRESS.match(root) is not None


class Encoded(NamedTuple):
    """One sample as it lies in its shard; `image` and `label` are for the `decode` of its shards."""

    name: str
    shard: int
    row: int
    image: Any
    label: Any


class Shards(Protocol):
    """A split in several files, each readable from its beginning only."""

    images: int
    """As declared; 0 where nothing says."""

    def __len__(self) -> int:
        """Number of shards."""
        ...

    def name(self, shard: int) -> str: ...

    def length(self, shard: int) -> int | None:
        """Images in a shard as declared; None where nothing says."""
        ...

    def read(self, shard: int) -> Iterator[Encoded]:
        """The samples of a shard in file order. Raises whatever a missing or damaged file makes its reader raise."""
        ...

    def decode(self, sample: Encoded) -> tuple[np.ndarray, int]:
        """RGB pixels (H, W, 3) uint8 and the label. Raises UnreadableError."""
        ...


class TarShards:
    """webdataset tars, as timm's reader found them in `_info.json` or in the split itself ('train-{00..09}.tar|50000')."""

    def __init__(self, reader: Any) -> None:
        info = reader.split_info
        self.urls = [os.path.join(reader.root, name) for name in info.filenames]
        self.label_field: str = info.alt_label
        # An alternative label drops the samples that have none, and so makes shards shorter than declared.
        known = len(info.shard_lengths) == len(self.urls) and not self.label_field
        self.lengths = list(info.shard_lengths) if known else [None] * len(self.urls)
        self.images = int(reader.num_samples or 0)

    def __len__(self) -> int:
        return len(self.urls)

    def name(self, shard: int) -> str:
        return self.urls[shard]

    def length(self, shard: int) -> int | None:
        return self.lengths[shard]

    def read(self, shard: int) -> Iterator[Encoded]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url = self.urls[shard]
        with gopen(url) as stream:
            try:
                for row, sample in enumerate(group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))):
                    image = next((sample[kind] for kind in IMAGES if kind in sample), None)
                    label = self._label(sample)
                    if (image is None and label is None) or (self.label_field and label == -1):
                        continue
                    yield Encoded(f"{url}: {sample['__key__']}", shard, row, image, label)
            except tarfile.TarError as error:  # to which webdataset has added stream and path
                raise tarfile.ReadError(error.args[0]) from None

    def decode(self, sample: Encoded) -> tuple[np.ndarray, int]:
        if sample.image is None:
            raise unreadable(sample.name, f"there is a label but no image ({', '.join(IMAGES)})")
        if sample.label is None:
            raise unreadable(sample.name, f"there is no label ({self.label_field or 'cls'})")
        try:
            with Image.open(io.BytesIO(sample.image)) as image:
                return np.asarray(image.convert("RGB")), int(sample.label)
        except Exception as error:  # Pillow alone raises OSError, SyntaxError, ValueError and struct.error
            raise unreadable(sample.name, error) from error

    def _label(self, sample: dict[str, Any]) -> Any:
        if not self.label_field:
            return sample.get("cls")
        try:
            return json.loads(sample.get("json", "{}")).get(self.label_field)
        except ValueError:  # no JSON: its one sample has no label, the rest of the shard is not lost
            return None


class HubShards:
    """The files of a streamed Hugging Face data set, local or on the hub."""

    def __init__(self, reader: Any, config: DataConfig) -> None:
        """Raises DataError when a column is missing, a class has no place in the class map, or classes do not fit the model."""
        import datasets

        stream = reader.builder.as_streaming_dataset(split=reader.split)
        self.columns = config.image_column, config.label_column
        _check_features(stream.features or {}, config)
        self.stream = stream.cast_column(config.image_column, datasets.Image(decode=False))
        self.image = datasets.Image()
        self.classes = _renumbered(stream.features or {}, config, reader.split)
        self.images = int(reader.num_samples or 0)

    def __len__(self) -> int:
        return int(self.stream.num_shards)

    def name(self, shard: int) -> str:
        return f"shard {shard} of {len(self)}"

    def length(self, shard: int) -> int | None:
        return None

    def read(self, shard: int) -> Iterator[Encoded]:
        row = 0
        # `iter(rows)` and not the plain iteration, which would share the one shard out among loader workers.
        for batch in self.stream.shard(len(self), shard).iter(ROWS):
            for image, label in zip(*(batch[column] for column in self.columns), strict=True):
                path = image.get("path") if image else None
                yield Encoded(path or f"row {row} of {self.name(shard)}", shard, row, image, label)
                row += 1

    def decode(self, sample: Encoded) -> tuple[np.ndarray, int]:
        try:
            pixels = np.asarray(self.image.decode_example(sample.image).convert("RGB"))
            label = int(sample.label)  # -1 is no label, and has no class
            return pixels, self.classes[label] if self.classes and label >= 0 else label
        except Exception as error:  # as above, and what fsspec raises
            raise unreadable(sample.name, error) from error


def open_shards(config: DataConfig, split: str) -> Shards:
    """A split of a "wds/" or "hfids/" data set; a count behind a bar, as in 'train|50000', says how many images it has.

    Raises DataError when it cannot be opened, ImportError that says what to install.
    """
    tars = config.dataset.startswith("wds/")
    require("webdataset" if tars else "datasets", f"dataset={config.dataset!r}", "data")
    if tars and config.class_map:
        raise DataError(f"class_map={config.class_map!r}: the labels of tar shards are numbers already; leave it out")
    name, _, number = split.partition("|")
    try:
        stream = create_dataset(
            config.dataset,
            root=config.root or None,
            split=split if tars else name,
            num_samples=int(number) if number and not tars else None,
            input_key=None if tars else config.image_column,
            target_key=None if tars else config.label_column,
        )
        return TarShards(stream.reader) if tars else HubShards(stream.reader, config)
    except DataError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise cannot_open(config, split, error) from error


def _check_features(features: dict[str, Any], config: DataConfig) -> None:
    for field in ("image_column", "label_column"):
        if features and getattr(config, field) not in features:
            raise DataError(
                f"{field}={getattr(config, field)!r} is not a column of {config.dataset!r}, which has "
                f"{sorted(features)}; set {field} to one of these"
            )


def _renumbered(features: dict[str, Any], config: DataConfig, split: str) -> list[int] | None:
    """The output of each class by the class map; None without a map."""
    names = getattr(features.get(config.label_column), "names", [])
    class_map = read_class_map(config.class_map)
    if class_map is None:
        check_classes(names, config, split)
        return None
    return outputs_of(names, class_map, config.class_map)
