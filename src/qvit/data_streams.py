"""Data sets too large to index: webdataset shards ("wds/") and streamed Hugging Face data sets ("hfids/").

timm's iterable readers give the images in shard order with a shuffle buffer. What that costs against an indexed data
set: the order depends on the number of workers, a resume replays the epoch up to where it stopped (`data_order.
epoch_batches`), only one process can read, and an image that cannot be decoded is skipped by the reader with a log line.
"""

import torch
from timm.data import create_dataset
from torch.utils.data import DataLoader

from qvit.augment import Transform, eval_transform, train_transform
from qvit.data_config import DataConfig, DataError
from qvit.data_order import SeededStream
from qvit.data_sources import cannot_open, read_class_map, require
from qvit.seeds import seed_of

PREFIXES = ("wds/", "hfids/")


def open_training_streams(config: DataConfig, seed: int) -> tuple[SeededStream, SeededStream]:
    """The training split twice: augmented and shuffled, and through the evaluation transform for calibration."""
    if config.repeated_augmentation > 1 or config.cache_decoded:
        raise DataError("a stream has no repeated_augmentation and no cache_decoded; use 'hfds/' or folders for these")
    train = _open_stream(config, config.train_split, seed, train_transform(config), training=True)
    return train, _open_stream(config, config.train_split, seed, eval_transform(config), training=False)


def open_eval_stream(config: DataConfig) -> SeededStream:
    """The evaluation split in shard order."""
    return _open_stream(config, config.eval_split, 0, eval_transform(config), training=False)


def images_of(stream: SeededStream) -> int:
    """Images as the split or the data set declares them; 0 where neither says."""
    return int(stream.stream.reader.num_samples or 0)


def stream_loader(stream: SeededStream, batch_size: int, workers: int, *, drop_last: bool) -> DataLoader:
    """A loader of a stream. Its workers end with each epoch: they learn the epoch's number when they start."""
    return DataLoader(
        stream,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed_of("loader", stream.seed)),
    )


def _open_stream(config: DataConfig, split: str, seed: int, transform: Transform, *, training: bool) -> SeededStream:
    shards = config.dataset.startswith("wds/")
    require("webdataset" if shards else "datasets", f"dataset={config.dataset!r}", "data")
    _refuse_processes(config)
    try:
        stream = create_dataset(
            config.dataset,
            root=config.root or None,
            split=split,
            is_training=training,
            class_map=read_class_map(config.class_map),  # type: ignore[arg-type]  # timm says dict
            batch_size=config.batch_size if training else config.eval_batch_size,
            seed=seed,
            input_key=None if shards else config.image_column,
            target_key=None if shards else config.label_column,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise cannot_open(config, split, error) from error
    stream.set_loader_cfg(num_workers=config.workers)
    batches = int(stream.reader.num_samples) // config.batch_size if training else None
    if batches == 0:
        raise DataError(
            f"split {split!r} declares {stream.reader.num_samples} images, which do not fill one batch of "
            f"{config.batch_size}; give a smaller batch_size, or correct the count"
        )
    return SeededStream(stream, transform, seed, config.num_classes, batches)


def _refuse_processes(config: DataConfig) -> None:
    """timm's readers and Accelerate would each give every process its own part."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise DataError(
            f"dataset={config.dataset!r} is a stream, which one process alone can read; use 'hfds/' or folders"
        )
