"""The order of a stream: data sets that are read from the beginning of their shards only ("wds/", "hfids/").

    shards, in an order drawn from (seed, epoch) -> dealt to the loader workers, one each in turn
    a worker: its shards' samples, encoded -> shuffle buffer -> batches of the *global* size
        a full batch: this process's slice is decoded and augmented      -> given on as it is
        what is left at the end, less than a batch: all of it is decoded -> joined with the other workers' and sliced,
                                                                            in the training process (`data.stream_loader`)

So every image comes once in an epoch, whatever the number of workers and however unequal the shards (except the last
N mod B, as with any data set), and an epoch has N // B batches everywhere. Since each process makes the same batches and
decodes its own slice, the number of processes changes nothing and nobody waits for anybody. What it costs: every process
reads all bytes, though it decodes only its share. Augmentation is drawn from (seed, epoch, shard, place in the shard).

What a stream cannot do: its order depends on the number of workers, and there is no jumping. A resume reads the epoch
once more from its beginning and decodes from where it stopped.

An unreadable image of a training stream is replaced by the next readable one of its batch, and a shard that breaks off is
noted with what is lost (`data.skips`); in an evaluation both are errors.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .augment import Transform
from .config import DataError
from .order import checked_label, dealt
from .seeds import kept_random_states, seed_of, set_random_states
from .shards import Encoded, Shards
from .skips import Skipped, Skips, first_readable

BUFFER = 4096  # encoded samples that a worker shuffles among: 450 MB at ImageNet's 110 kB


@dataclass(frozen=True)
class Share:
    """The slice of every batch that is read here: number `index` of `processes`, brought to `device`."""

    index: int = 0
    processes: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable


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
        return pixels, checked_label(label, self.num_classes, sample.name)


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
