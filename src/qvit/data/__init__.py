"""Open a data set: training, calibration and evaluation loaders that share nothing but the files.

    config = resolve_data(DataConfig(dataset="digits", train_crop="pad"), model)
    splits = open_data(config, seed=0)
    for images, labels in epoch_batches(splits.train, splits.order, epoch=0):
        images, targets = mixup_batch(images, labels, config, seed=0, step=step)

Calibration reads *training* images through the *evaluation* transform: it must see the values that the model will see
in use, and must not see the images on which it will be judged. Which image comes when, and with which augmentation,
is `data.order`'s business; what a file becomes, `augment`'s; where files come from, `data.sources`'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ..system.interruption import shield_worker
from .augment import Transform, eval_transform, mixup_batch, train_transform
from .classes import check_classes, class_error, fits, outputs_of_names
from .config import DataConfig, DataError
from .digits import open_digits
from .order import Batch, EpochOrder, SampleKey, SeededDataset
from .resolve import model_preprocess, preprocess_of, resolve_data
from .seeds import seed_of
from .shards import PREFIXES
from .skips import Skips, StandIns
from .sources import (
    Renumbered,
    Source,
    UnlabelledFolder,
    decode,
    find_split_folder,
    limit,
    mapped,
    open_timm,
    split_folder,
)
from .stream_loader import StreamLoader, open_eval_stream, open_training_streams
from .streams import SeededStream

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "EpochOrder",
    "SampleKey",
    "SeededDataset",
    "SeededStream",
    "Skips",
    "Splits",
    "StreamLoader",
    "UnlabelledFolder",
    "epoch_batches",
    "mixup_batch",
    "model_preprocess",
    "open_data",
    "open_eval",
    "preprocess_of",
    "resolve_data",
]


@dataclass(frozen=True)
class Splits:
    """The three loaders of a data set. Batches are images (B, 3, H, W) float32 and labels (B,) int64, -1: no label."""

    train: DataLoader | StreamLoader
    """Augmented training images, shuffled, whole batches only; iterate with `epoch_batches(loader, order, epoch)`.
    Accelerate shares the batches of a DataLoader among processes; a StreamLoader gives this process's slices already."""
    order: EpochOrder | SeededStream
    """Moves `train` to an epoch and a batch, also after `accelerator.prepare(train)`."""
    train_batches: int
    """Training batches in an epoch."""
    calibration: DataLoader | StreamLoader
    """Training images through the evaluation transform, all of them, in one random order fixed by the seed; those of a stream
    in the order of its shards, which should hold their images shuffled."""
    eval: DataLoader | StreamLoader
    """Evaluation images in file order, all of them."""
    class_names: tuple[str, ...]
    """In label order; empty where the data set does not say."""
    train_images: int
    """Images to train and calibrate on; 0 where a stream does not say."""
    eval_images: int
    """Images to evaluate on; 0 where a stream does not say."""
    skips: Skips
    """Training images that could not be read, as far as they were met."""


def open_data(
    config: DataConfig,
    seed: int,
    max_train_images: int | None = None,
    max_eval_images: int | None = None,
    skipped: Path | None = None,
) -> Splits:
    """Open the training and evaluation splits of a resolved config.

    `max_train_images` and `max_eval_images` keep a fixed random choice, the same for every seed. `skipped` is the file
    that names the training images that could not be read; by default a new one in the folder for temporary files. For
    the streams "wds/" and "hfids/" see `data.streams`: their order depends on the number of workers, and they resume by
    replay.

    Raises:
        DataError: blanks in the config, missing folder or split, the same images in both splits, no images, fewer images
            than a batch, classes of the two splits that differ, or that do not fit `num_classes` (see `data.classes`); while
            reading, a label out of range, more than `config.max_corrupt` training images that cannot be decoded, or one of
            the evaluation.
        ImportError: an optional package is missing; says what to install.
    """
    skips = Skips(config.max_corrupt, skipped)
    if config.dataset.startswith(PREFIXES):
        _refuse_limit(max_train_images)
        _refuse_limit(max_eval_images)
        return _open_streams(config, seed, skips)
    train, evaluation = _open_sources(config)
    train, evaluation = limit(train, max_train_images), limit(evaluation, max_eval_images)
    train = _in_memory(StandIns(train, skips), config)
    if len(train) < config.batch_size:
        raise DataError(
            f"{len(train)} training images do not fill one batch of {config.batch_size}; give a smaller batch_size"
        )
    copies = config.repeated_augmentation
    order = EpochOrder(len(train), config.batch_size, seed, shuffle=True, drop_last=True, copies=copies)
    calibration_order = EpochOrder(len(train), config.eval_batch_size, seed, shuffle=True, drop_last=False)
    return Splits(
        train=_loader(train, train_transform(config), order, config),
        order=order,
        train_batches=len(order),
        calibration=_loader(train, eval_transform(config), calibration_order, config),
        eval=_eval_loader(evaluation, config),
        class_names=train.class_names,
        train_images=len(train),
        eval_images=len(evaluation),
        skips=skips,
    )


def epoch_batches(
    loader: DataLoader | StreamLoader, order: EpochOrder | SeededStream, epoch: int, start: int = 0
) -> Iterator[Batch]:
    """The training batches of an epoch from number `start` on; `loader` may come from `accelerator.prepare`."""
    order.seek(epoch, start)
    return iter(loader)


def open_eval(
    config: DataConfig, max_images: int | None = None, outputs: Sequence[str] = ()
) -> DataLoader | StreamLoader:
    """The evaluation loader alone, the same as `open_data(...).eval`: a training split need not exist.

    `outputs` are the names of the model's outputs, where it has them and the config has no class map: the classes of a data
    set with an index are numbered by them. Without either, of class folders that are fewer than the outputs, the training
    split says which outputs they are, if it is there. Raises as `open_data` does, and DataError for a class that no output is
    called by.
    """
    if config.dataset.startswith(PREFIXES):
        _refuse_limit(max_images)
        return open_eval_stream(config)
    return _eval_loader(limit(_open_evaluation(config, outputs), max_images), config)


def _eval_loader(source: Source, config: DataConfig) -> DataLoader:
    order = EpochOrder(len(source), config.eval_batch_size, 0, shuffle=False, drop_last=False)
    return _loader(_in_memory(source, config), eval_transform(config), order, config)


def _loader(source: Source, transform: Transform, order: EpochOrder, config: DataConfig) -> DataLoader:
    return DataLoader(
        SeededDataset(source, transform, order.seed, config.num_classes),
        batch_sampler=order,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        worker_init_fn=shield_worker,
        # Without its own generator each iteration would draw from torch's global state, and so move dropout.
        generator=torch.Generator().manual_seed(seed_of("loader", order.seed)),
    )


def _in_memory(source: Source, config: DataConfig) -> Source:
    return decode(source) if config.cache_decoded and config.dataset != "digits" else source


def _open_source(config: DataConfig, split: str) -> Source:
    """One split, map-style."""
    if config.dataset == "images":
        return UnlabelledFolder(find_split_folder(config.root, split))
    return mapped(open_digits(split) if config.dataset == "digits" else open_timm(config, split), config)


def _open_sources(config: DataConfig) -> tuple[Source, Source]:
    """Training and evaluation splits that number their classes alike."""
    _refuse_common_images(config)
    train = _open_source(config, config.train_split)
    check_classes(train.class_names, config, config.train_split)
    return train, _numbered_as(train, _open_source(config, config.eval_split), config)


def _open_evaluation(config: DataConfig, outputs: Sequence[str]) -> Source:
    """The evaluation split alone, numbered by the names of the outputs, or as `_open_sources` would."""
    evaluation = _open_source(config, config.eval_split)
    if outputs and evaluation.class_names and not config.class_map:
        return Renumbered(evaluation, outputs_of_names(evaluation.class_names, outputs), tuple(outputs))
    if fits(evaluation.class_names, config):
        return evaluation
    if config.dataset == "folder" and split_folder(config.root, config.train_split) is not None:
        train = _open_source(config, config.train_split)
        if fits(train.class_names, config):
            return _numbered_as(train, evaluation, config)
    raise class_error(evaluation.class_names, config, config.eval_split)


def _numbered_as(train: Source, evaluation: Source, config: DataConfig) -> Source:
    """The evaluation split; where it has fewer classes, with the labels of the training split, or every one would be off."""
    if train.class_names == evaluation.class_names:
        return evaluation
    unknown = sorted(set(evaluation.class_names) - set(train.class_names))
    if unknown:
        raise DataError(
            f"split {config.eval_split!r} has classes that {config.train_split!r} has not: {', '.join(unknown[:5])}; "
            "give both splits the same class folders"
        )
    outputs = [train.class_names.index(name) for name in evaluation.class_names]
    return Renumbered(evaluation, outputs, train.class_names)


def _refuse_common_images(config: DataConfig) -> None:
    """Raise DataError where the training images would judge as well; without labels nothing is trained."""
    if config.dataset == "images":
        return
    if config.dataset == "folder":
        splits = (config.train_split, config.eval_split)
        train, evaluation = (find_split_folder(config.root, split).resolve() for split in splits)
        common = train.is_relative_to(evaluation) or evaluation.is_relative_to(train)
        mend = "give two folders, neither inside the other, such as train and validation"
    else:
        common = config.train_split.partition("|")[0] == config.eval_split.partition("|")[0]
        mend = "name another split in eval_split"
    if common:
        raise DataError(
            f"train_split={config.train_split!r} and eval_split={config.eval_split!r} have images in common: they would be "
            f"trained on, or calibrated with, and then judge; {mend}"
        )


def _open_streams(config: DataConfig, seed: int, skips: Skips) -> Splits:
    _refuse_common_images(config)
    train, calibration = open_training_streams(config, seed, skips)
    evaluation = open_eval_stream(config)
    return Splits(
        train=train,
        order=train.dataset,
        train_batches=train.dataset.shards.images // config.batch_size,
        calibration=calibration,
        eval=evaluation,
        class_names=(),
        train_images=train.dataset.shards.images,
        eval_images=evaluation.dataset.shards.images,
        skips=skips,
    )


def _refuse_limit(images: int | None) -> None:
    if images is not None:
        raise DataError("a stream cannot be limited to a number of images; name fewer shards in the split instead")
