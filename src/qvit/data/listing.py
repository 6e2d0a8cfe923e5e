"""What the images of a training split are, said in one hash without opening one.

A file made from images in their order (the cache of a teacher's logits) is of no use once an image was added, removed or
replaced: every later place of the order holds another image, and the number of batches need not tell. So it is kept under
a hash of

    "folder", "hfds/FOLDER", "hfids/FOLDER"    paths below the folder, with sizes in bytes
    "wds/"                                     names of the shards, with sizes where they are files and lengths where declared
    "digits", and data sets on the hub         nothing: they have no files of ours; their name and number of images must do

Reading all bytes would be surer and takes as long as an epoch; a replaced image of the same name and size goes unnoticed.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .config import DataConfig
from .shards import Shards
from .sources import find_split_folder


def listing(config: DataConfig, shards: Shards | None = None) -> str:
    """Hash of the list of files that the training split of a config is made of; `shards` are those of a "wds/" split."""
    entries: Iterator[tuple[object, ...]] = iter(())
    _, _, name = config.dataset.partition("/")
    if config.dataset == "folder":
        entries = _files(find_split_folder(config.root, config.train_split))
    elif name and Path(name).is_dir():
        entries = _files(Path(name))
    elif config.dataset.startswith("wds/") and shards is not None:
        names = [shards.name(shard) for shard in range(len(shards))]
        entries = ((name, _size(Path(name)), shards.length(shard)) for shard, name in enumerate(names))
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Every file below a folder, in an order of its own; links are followed, as timm follows them."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), _size(path)


def _size(path: Path) -> int:
    """In bytes; -1 for what is no file here, such as the address of a shard or a link to nowhere."""
    return path.stat().st_size if path.is_file() else -1
