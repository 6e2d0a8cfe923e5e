"""Open a data set: training, calibration and evaluation loaders that share nothing but the files.

    config = resolve_data(DataConfig(dataset="digits", train_crop="pad"), model)
    splits = open_data(config, seed=0)
    for images, labels in epoch_batches(splits.train, splits.order, epoch=0):
        images, targets = mixup_batch(images, labels, config, seed=0, step=step)

Calibration reads *training* images through the *evaluation* transform: it must see the values that the model will see
in use, and must not see the images on which it will be judged. Which image comes when, and with which augmentation,
is `data_order`'s business; what a file becomes, `augment`'s; where files come from, `data_sources`'.
"""

from dataclasses import dataclass, replace

import torch
from timm.data import create_dataset
from torch.utils.data import DataLoader

from qvit.augment import Transform, eval_transform, mixup_batch, train_transform
from qvit.data_config import DataConfig, DataError, resolve_data
from qvit.data_order import Batch, EpochOrder, SampleKey, SeededDataset, SeededStream, epoch_batches
from qvit.data_sources import (
    Source,
    UnlabelledFolder,
    decode,
    existing_folder,
    find_split_folder,
    limit,
    open_timm,
    read_class_map,
    require,
)
from qvit.digits import open_digits
from qvit.seeds import seed_of

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "EpochOrder",
    "SampleKey",
    "SeededDataset",
    "SeededStream",
    "Splits",
    "UnlabelledFolder",
    "epoch_batches",
    "mixup_batch",
    "open_data",
    "resolve_data",
]


@dataclass(frozen=True)
class Splits:
    """The three loaders of a data set. Batches are images (B, 3, H, W) float32 and labels (B,) int64, -1: no label."""

    train: DataLoader
    """Augmented training images, shuffled, whole batches only; iterate with `epoch_batches(loader, order, epoch)`."""
    order: EpochOrder | SeededStream
    """Moves `train` to an epoch and a batch, also after `accelerator.prepare(train)`."""
    calibration: DataLoader
    """Training images through the evaluation transform, in one fixed random order, all of them."""
    eval: DataLoader
    """Evaluation images in file order, all of them."""
    class_names: tuple[str, ...]
    """In label order; empty where the data set does not say."""
    train_images: int
    """Images to train and calibrate on; 0 where a stream does not say."""
    eval_images: int
    """Images to evaluate on; 0 where a stream does not say."""


def open_data(
    config: DataConfig, seed: int, max_train_images: int | None = None, max_eval_images: int | None = None
) -> Splits:
    """Open the training and evaluation splits of a resolved config.

    `max_train_images` and `max_eval_images` keep a fixed random choice, the same for every seed. Streams ("wds/",
    "hfids/") come in their reader's order, which depends on the number of workers, and resume by replay.

    Raises:
        DataError: blanks in the config, missing folder or split, no images, fewer images than a batch, class folders
            of the two splits that differ, more classes than `num_classes`; while reading, an image that cannot be
            decoded or a label out of range.
        ImportError: an optional package is missing; says what to install.
    """
    if config.dataset.startswith(("wds/", "hfids/")):
        return _open_streams(config, seed, max_train_images, max_eval_images)
    train_source, eval_source = _open_sources(config)
    train_source, eval_source = limit(train_source, max_train_images), limit(eval_source, max_eval_images)
    _check_classes(train_source, config)
    if len(train_source) < config.batch_size:
        raise DataError(
            f"{len(train_source)} training images do not fill one batch of {config.batch_size}; give a smaller batch_size"
        )
    if config.cache_decoded and config.dataset != "digits":
        train_source, eval_source = decode(train_source), decode(eval_source)
    order = EpochOrder(
        len(train_source),
        config.batch_size,
        seed,
        shuffle=True,
        drop_last=True,
        copies=config.repeated_augmentation,
    )
    calibration_order = EpochOrder(len(train_source), config.eval_batch_size, seed, shuffle=True, drop_last=False)
    eval_order = EpochOrder(len(eval_source), config.eval_batch_size, seed, shuffle=False, drop_last=False)
    return Splits(
        train=_loader(train_source, train_transform(config), order, config),
        order=order,
        calibration=_loader(train_source, eval_transform(config), calibration_order, config),
        eval=_loader(eval_source, eval_transform(config), eval_order, config),
        class_names=train_source.class_names,
        train_images=len(train_source),
        eval_images=len(eval_source),
    )


def _loader(source: Source, transform: Transform, order: EpochOrder, config: DataConfig) -> DataLoader:
    return DataLoader(
        SeededDataset(source, transform, order.seed, config.num_classes),
        batch_sampler=order,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        # Without its own generator each iteration would draw from torch's global state, and so move dropout.
        generator=torch.Generator().manual_seed(seed_of("loader", order.seed)),
    )


def _open_sources(config: DataConfig) -> tuple[Source, Source]:
    """Training and evaluation sources, map-style."""
    if config.dataset == "digits":
        return open_digits(config.train_split), open_digits(config.eval_split)
    if config.dataset == "images":
        return _open_flat(config.root, config.train_split), _open_flat(config.root, config.eval_split)
    train, evaluation = open_timm(config, config.train_split), open_timm(config, config.eval_split)
    if train.class_names == evaluation.class_names:
        return train, evaluation
    unknown = sorted(set(evaluation.class_names) - set(train.class_names))
    if unknown:
        raise DataError(
            f"split {config.eval_split!r} has classes that {config.train_split!r} has not: {', '.join(unknown[:5])}; "
            "give both splits the same class folders"
        )
    # Fewer classes in evaluation: number them as in training, or every label would be off.
    class_map = {name: label for label, name in enumerate(train.class_names)}
    return train, open_timm(config, config.eval_split, class_map)


def _open_flat(root: str, split: str) -> UnlabelledFolder:
    return UnlabelledFolder(find_split_folder(root, split) if split else existing_folder(root))


def _check_classes(source: Source, config: DataConfig) -> None:
    if config.num_classes is not None and len(source.class_names) > config.num_classes:
        raise DataError(
            f"the data set has {len(source.class_names)} classes, but num_classes={config.num_classes}; "
            f"use a model with num_classes={len(source.class_names)}"
        )


def _open_streams(config: DataConfig, seed: int, max_train_images: int | None, max_eval_images: int | None) -> Splits:
    """timm's iterable readers, one process only: they and Accelerate would both shard."""
    require("webdataset" if config.dataset.startswith("wds/") else "datasets", f"dataset={config.dataset!r}", "data")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise DataError(
            f"dataset={config.dataset!r} is a stream, which one process alone can read; use 'hfds/' or folders"
        )
    if max_train_images is not None or max_eval_images is not None:
        raise DataError("a stream cannot be limited to a number of images; name fewer shards in the split instead")
    if config.repeated_augmentation > 1 or config.cache_decoded:
        raise DataError("a stream has no repeated_augmentation and no cache_decoded; use 'hfds/' or folders for these")
    train = _open_stream(config, config.train_split, seed, train_transform(config), training=True)
    calibration = _open_stream(config, config.train_split, seed, eval_transform(config), training=False)
    evaluation = _open_stream(config, config.eval_split, seed, eval_transform(config), training=False)
    once = replace(config, batch_size=config.eval_batch_size)
    return Splits(
        train=_stream_loader(train, config, drop_last=True),
        order=train,
        calibration=_stream_loader(calibration, once, drop_last=False),
        eval=_stream_loader(evaluation, once, drop_last=False),
        class_names=(),
        train_images=len(train),
        eval_images=len(evaluation),
    )


def _open_stream(config: DataConfig, split: str, seed: int, transform: Transform, *, training: bool) -> SeededStream:
    try:
        stream = create_dataset(
            config.dataset,
            root=config.root or None,
            split=split,
            is_training=training,
            class_map=read_class_map(config.class_map),  # type: ignore[arg-type]  # timm says dict
            batch_size=config.batch_size if training else config.eval_batch_size,
            seed=seed,
        )
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise DataError(
            f"dataset={config.dataset!r}, split={split!r} cannot be opened: {error} "
            "For 'wds/' write splits as shards and a count, such as 'train-{0000..0009}.tar|50000'."
        ) from error
    stream.set_loader_cfg(num_workers=config.workers)
    return SeededStream(stream, transform, seed)


def _stream_loader(stream: SeededStream, config: DataConfig, *, drop_last: bool) -> DataLoader:
    return DataLoader(
        stream,
        batch_size=config.batch_size,
        drop_last=drop_last,
        num_workers=config.workers,
        generator=torch.Generator().manual_seed(seed_of("loader", stream.seed)),
    )
