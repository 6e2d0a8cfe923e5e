"""From the parts that loader workers give on to batches: the training process's side of a stream (`data.streams`).

A DataLoader that batches would do so within each worker and drop the end of each: W ends for W workers, and an epoch of fewer
batches than N // B. Here workers give on slices of full batches, and what they have left is joined.

A shard that breaks off leaves the pass short, and all processes must make the same number of steps. Then a further pass over
what is there, in another order, fills the epoch up.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import torch
from torch.utils.data import DataLoader

from ..system.interruption import shield_worker
from ..system.processes import process_state
from .augment import eval_transform, train_transform
from .config import DataConfig, DataError
from .order import Batch
from .seeds import seed_of
from .shards import Shards, open_shards
from .skips import Skips
from .streams import SeededStream, Share


class StreamLoader:
    """Batches of a stream: in training this process's slices of an epoch's, already on its device; otherwise all of it, once.

    It is no DataLoader: `accelerator.prepare` passes it by, and would only share out once more what is shared out. Workers
    end with each pass, since they learn the epoch when they start.

    Raises DataError when the batch does not divide among the processes; while reading, when an evaluation has not as many
    images as its split declares.
    """

    def __init__(self, stream: SeededStream, workers: int) -> None:
        if stream.batch_size % stream.share.processes:
            raise DataError(
                f"batch_size={stream.batch_size} does not divide among {stream.share.processes} processes; "
                f"give a multiple of {stream.share.processes}"
            )
        self.dataset = stream
        self.batch_size = stream.batch_size
        self.parts = DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=shield_worker,
            # Without its own generator each iteration would draw from torch's global state, and so move dropout.
            generator=torch.Generator().manual_seed(seed_of("loader", stream.seed)),
        )

    def __iter__(self) -> Iterator[Batch]:
        """From where `dataset.seek` says."""
        stream = self.dataset
        if stream.batches is None:
            return self._all_once()
        return islice(self._slices(), stream.start, stream.batches)

    def _slices(self) -> Iterator[Batch]:
        """Slices of full batches, from as many passes as anybody wants: one, unless shards broke off.

        Ends after a pass without broken shards: what an epoch still lacks then was never there.
        """
        stream, rests = self.dataset, list[Batch]()
        device, places = stream.share.device, stream.places
        for stream.turn in count():
            found = False
            for images, labels, is_rest in self.parts:
                found = True
                if is_rest:
                    rests.append((images, labels))
                else:
                    yield images.to(device), labels.to(device)
            joined, rests = _joined(rests, self.batch_size), []
            for images, labels in joined:
                if len(labels) == self.batch_size:
                    yield images[places].to(device), labels[places].to(device)
                else:
                    rests = [(images, labels)]  # for the next pass, if there is one
            if not found or stream.skips is None or not stream.skips.has_shards():
                return

    def _all_once(self) -> Iterator[Batch]:
        rests, seen = list[Batch](), 0
        for images, labels, is_rest in self.parts:
            seen += len(labels)
            if is_rest:
                rests.append((images, labels))
            else:
                yield images, labels
        yield from _joined(rests, self.batch_size)
        declared = self.dataset.shards.images
        if self.dataset.skips is None and declared not in (0, seen):
            raise DataError(
                f"the evaluation split declares {declared} images, but its shards hold {seen}; correct the number, or "
                "replace the shards"
            )


def _joined(rests: list[Batch], size: int) -> list[Batch]:
    """Batches of `size`, and a shorter one at the end, of all rests in a row."""
    if not rests:
        return []
    images, labels = (torch.cat(parts) for parts in zip(*rests, strict=True))
    return list(zip(images.split(size), labels.split(size), strict=True))


def this_process() -> Share:
    """The share of this process, as Accelerate counts."""
    state = process_state()
    return Share(state.process_index, state.num_processes, state.device)


def open_training_streams(config: DataConfig, seed: int, skips: Skips) -> tuple[StreamLoader, StreamLoader]:
    """The training split twice: augmented, shuffled and shared, and plain in shard order for calibration."""
    if config.repeated_augmentation > 1 or config.cache_decoded:
        raise DataError("a stream has no repeated_augmentation and no cache_decoded; use 'hfds/' or folders for these")
    shards = open_shards(config, config.train_split)
    if shards.images < config.batch_size:
        raise DataError(
            f"split {config.train_split!r} declares {shards.images} images, which do not fill one batch of "
            f"{config.batch_size}; give a smaller batch_size, or write the count behind the split: '...|50000'"
        )
    train = SeededStream(
        shards,
        train_transform(config),
        config.batch_size,
        seed,
        num_classes=config.num_classes,
        share=this_process(),
        shuffle=True,
        batches=shards.images // config.batch_size,
        skips=skips,
    )
    return StreamLoader(train, config.workers), _everything(config, shards, seed, skips)


def open_eval_stream(config: DataConfig) -> StreamLoader:
    """The evaluation split, in shard order."""
    return _everything(config, open_shards(config, config.eval_split), 0, None)


def _everything(config: DataConfig, shards: Shards, seed: int, skips: Skips | None) -> StreamLoader:
    stream = SeededStream(
        shards,
        eval_transform(config),
        config.eval_batch_size,
        seed,
        num_classes=config.num_classes,
        share=Share(),
        shuffle=False,
        batches=None,
        skips=skips,
    )
    return StreamLoader(stream, config.workers)
