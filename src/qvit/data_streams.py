"""The order of a stream: data sets that are read from the beginning of their shards only ("wds/", "hfids/").

    shards, in an order drawn from (seed, epoch) -> dealt to the loader workers, one each in turn
    a worker: its shards' samples, encoded -> shuffle buffer -> batches of the *global* size
        a full batch: this process's slice is decoded and augmented           -> given on as it is
        what is left at the end, less than a batch: all of it is decoded      -> joined with the other workers' and sliced

So every image comes once in an epoch, whatever the number of workers and however unequal the shards (except those of the
last N mod B places, as with any data set), an epoch has N // B batches everywhere, and since each process makes the same batches and
decodes its own slice, the number of processes changes nothing and nobody waits for anybody. What it costs: every process
reads all bytes, though it decodes only its share. Augmentation is drawn from (seed, epoch, shard, place in the shard).

What a stream cannot do: its order depends on the number of workers, and there is no jumping. A resume reads the epoch once more from its
beginning and decodes from where it stopped.

An unreadable image of a training stream is replaced by the next readable one of its batch (`data_skips`). A shard that
breaks off leaves the pass short; then a further pass, in another order, fills the epoch up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from qvit.augment import Transform, eval_transform, train_transform
from qvit.data_config import DataConfig, DataError
from qvit.data_order import Batch, check_label, dealt
from qvit.data_shards import Encoded, Shards, open_shards
from qvit.data_skips import Skipped, Skips, first_readable
from qvit.interruption import shield_worker
from qvit.processes import process_state
from qvit.seeds import kept_random_states, seed_of, set_random_states

BUFFER = 4096  # encoded samples that a worker shuffles among: 450 MB at ImageNet's 110 kB


@dataclass(frozen=True)
class Share:
    """The slice of every batch that is read here: number `index` of `processes`, brought to `device`."""

    index: int = 0
    processes: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable


def this_process() -> Share:
    """The share of this process, as Accelerate counts."""
    state = process_state()
    return Share(state.process_index, state.num_processes, state.device)


class Part(NamedTuple):
    """What a worker gives on: a slice of a full batch, or all of a rest."""

    images: torch.Tensor
    labels: torch.Tensor
    is_rest: bool


class SeededStream(IterableDataset):
    """The parts of a worker; the order object of a stream, which `seek`s as `EpochOrder` does.

    shuffle     draw the order from (seed, epoch); otherwise shard order
    batches     training batches in an epoch, or None: all there is, once
    skips       where unreadable images are noted; None: they are errors
    """

    def __init__(
        self,
        shards: Shards,
        transform: Transform,
        batch_size: int,
        seed: int,
        *,
        num_classes: int | None,
        share: Share,
        shuffle: bool,
        batches: int | None,
        skips: Skips | None,
    ) -> None:
        self.shards, self.transform, self.batch_size, self.seed = shards, transform, batch_size, seed
        self.num_classes, self.share, self.shuffle = num_classes, share, shuffle
        self.batches, self.skips = batches, skips
        self.epoch = 0
        self.start = 0
        self.turn = 0
        """Passes over the shards that this epoch has had."""
        size = batch_size // share.processes
        self.places = dealt(list(range(batch_size)), share.processes)[share.index * size : (share.index + 1) * size]

    def seek(self, epoch: int, start: int = 0) -> None:
        """The next iteration gives `epoch` from batch number `start` on. Raises DataError outside the epoch."""
        if epoch < 0 or start < 0 or (self.batches is not None and start > self.batches):
            raise DataError(
                f"epoch {epoch}, batch {start} does not exist: epochs count from 0 and have {self.batches} batches"
            )
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        samples, unwanted = self._samples(number, workers), 0 if self.turn else self.start
        nothing = Part(torch.empty(0), torch.empty(0), is_rest=False)
        for batch in count():
            encoded = list(islice(samples, self.batch_size))
            if len(encoded) < self.batch_size:
                break
            # Workers give in turns, so this is at most batch number `batch * workers + number` of the pass.
            yield nothing if batch * workers + number < unwanted else self._decoded(encoded, self.places)
        if encoded:
            yield self._decoded(encoded, range(len(encoded)))._replace(is_rest=True)

    def _samples(self, number: int, workers: int) -> Iterator[Encoded]:
        """The encoded samples of a worker, in its order."""
        if not self.shuffle:
            return chain.from_iterable(map(self._shard, range(number, len(self.shards), workers)))
        words = self.seed, self.epoch, self.turn
        order = random.Random(seed_of("shards", *words)).sample(range(len(self.shards)), len(self.shards))
        mine = chain.from_iterable(map(self._shard, order[number::workers]))
        return shuffled(mine, BUFFER, random.Random(seed_of("buffer", *words, number)))

    def _shard(self, shard: int) -> Iterator[Encoded]:
        """The samples of a shard, as far as it can be read."""
        read, declared = 0, self.shards.length(shard)
        try:
            for sample in self.shards.read(shard):
                read += 1
                yield sample
            if declared is not None and read < declared:
                raise EOFError(f"{declared} images are declared")
        except Exception as error:  # tarfile, pyarrow, fsspec: each has its own
            reason = f"it ends after {read} images ({type(error).__name__}: {error})"
            if self.skips is None:
                raise DataError(f"{self.shards.name(shard)} cannot be read: {reason}; replace the file") from error
            lost = 1 if declared is None else declared - read
            self.skips.add(Skipped(self.shards.name(shard), reason, lost, shard=True))

    def _decoded(self, batch: list[Encoded], places: Sequence[int]) -> Part:
        with kept_random_states():
            samples = [self._sample(batch, place) for place in places]
        images, labels = zip(*samples, strict=True)
        return Part(torch.stack(images), torch.tensor(labels), is_rest=False)

    def _sample(self, batch: list[Encoded], place: int) -> tuple[torch.Tensor, int]:
        """The image and label at a place of a batch; where it cannot be read, those of the next one that can."""
        if self.skips is None:
            pixels, label = self._read(batch[place])
        else:
            pixels, label = first_readable(lambda index: self._read(batch[index]), place, len(batch), self.skips)
        if self.transform.random:
            _, shard, row, *_ = batch[place]
            set_random_states(seed_of("stream", self.seed, self.epoch, self.turn, shard, row))
        return self.transform(pixels), label

    def _read(self, sample: Encoded) -> tuple[np.ndarray, int]:
        pixels, label = self.shards.decode(sample)
        check_label(label, self.num_classes, sample.name)
        return pixels, label


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
                f"the evaluation split declares {declared} images, but its shards hold {seen}; correct the number, or replace the shards"
            )


def _joined(rests: list[Batch], size: int) -> list[Batch]:
    """Batches of `size`, and a shorter one at the end, of all rests in a row."""
    if not rests:
        return []
    images, labels = (torch.cat(parts) for parts in zip(*rests, strict=True))
    return list(zip(images.split(size), labels.split(size), strict=True))


def shuffled(samples: Iterable[Encoded], size: int, draw: random.Random) -> Iterator[Encoded]:
    """The samples in a random order, made with a buffer of `size`: each place goes to one of the next `size` samples."""
    buffer: list[Encoded] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = draw.randrange(size)
        yield buffer[place]
        buffer[place] = sample
    draw.shuffle(buffer)
    yield from buffer


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
