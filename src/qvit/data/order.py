"""Which image comes when, and with which augmentation: functions of (seed, epoch, index) and of nothing else.

The usual loader draws from one running random state, so a sample's crop depends on which worker process met it and on
everything that worker did before; another number of workers, or a resume, is another experiment. Here

    order of an epoch       = permutation drawn from (seed, epoch)
    augmentation of a sample = random states set from hash(seed, epoch, index, copy), just before its transform runs

and the number of workers, of processes and the point of a resume change nothing. The sampler hands the loader
`SampleKey(epoch, image, copy)` instead of a bare index, so a worker needs no other message to know the epoch.

Processes: batches are global. Accelerate shards, and `Accelerator(dataloader_config=DataLoaderConfiguration(
split_batches=True))` gives process p of P the p-th slice of each batch, so all processes together see the batch that
one process would see. `EpochOrder.deal(P)` deals the batch out first, like cards and in pairs: the pairs that mixup makes stay
together, and every slice begins with its share (`leading`) of the first images of the batch, which are those that a probe of the
bits looks at. Resume: `data.epoch_batches(loader, order, epoch, start)` continues before batch `start`. Accelerate
calls `set_epoch` on samplers with a count of its own, which a resume would start at 0 again; hence our word is `seek`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from .augment import Transform
from .config import DataError
from .seeds import kept_random_states, seed_of, set_random_states
from .sources import Source

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (B, 3, H, W) float32, normalised, and labels (B,) int64."""


class SampleKey(NamedTuple):
    """One sample of one epoch; `copy` counts the augmented copies of an image in a batch."""

    epoch: int
    image: int
    copy: int


class EpochOrder:
    """A batch sampler: lists of `SampleKey`, each a global batch.

    With `copies` r > 1 (repeated augmentation) a batch of B holds ceil(B / r) different images, r times each, the
    copies of an image ceil(B / r) places apart so that mixup, which mixes neighbours, mixes different images.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, *, shuffle: bool, drop_last: bool, copies: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.copies = copies
        self.processes = 1
        self.epoch = 0
        self.start = 0

    def seek(self, epoch: int, start: int = 0) -> None:
        """The next iteration gives `epoch` from batch number `start` on. Raises DataError outside the epoch."""
        if epoch < 0 or not 0 <= start <= len(self):
            raise DataError(
                f"epoch {epoch}, batch {start} does not exist: epochs count from 0 and have {len(self)} batches"
            )
        self.epoch = epoch
        self.start = start

    def deal(self, processes: int) -> None:
        """From now on, order each full batch so that its slices, one per process, hold every `processes`-th pair of images.

        The batch must divide by `processes`. Slices of an odd size get every `processes`-th image: mixup refuses them.
        """
        self.processes = processes

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the start."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch  # a later seek must not change an iteration under way
        order = self._permutation(epoch)
        distinct = -(-self.batch_size // self.copies)
        for batch in range(self.start, len(self)):
            images = order[batch * distinct : (batch + 1) * distinct]
            keys = [SampleKey(epoch, image, copy) for copy in range(self.copies) for image in images]
            yield dealt(keys[: self.batch_size], self.processes)

    def _permutation(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(self.length)
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        return torch.randperm(self.length, generator=generator).tolist()


def dealt(batch: list[Item], processes: int) -> list[Item]:
    """The batch so that each of `processes` equal slices has every `processes`-th pair of it, or every one when it is odd."""
    if processes == 1 or len(batch) % processes:
        return batch
    hand = 1 if len(batch) // processes % 2 else 2
    cards = [batch[start : start + hand] for start in range(0, len(batch), hand)]
    return [key for process in range(processes) for card in cards[process::processes] for key in card]


def leading(first: int, batch: int, processes: int, process: int) -> int:
    """How many of the first `first` images of a dealt batch of `batch` one slice has; it begins with them."""
    size = batch // processes
    hand = dealt(list(range(batch)), processes)[process * size : (process + 1) * size]
    return sum(image < first for image in hand)


class SeededDataset(Dataset):
    """Source and transform as a map-style data set over `SampleKey`: image (3, H, W) float32, label int.

    Labels go through `checked_label`. Random states are restored once per batch where the
    samples are made in the training process itself (workers = 0).
    """

    def __init__(self, source: Source, transform: Transform, seed: int, num_classes: int | None = None) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[torch.Tensor, int]]:
        """A batch at once; torch's loader calls this where it exists."""
        if get_worker_info() is not None:
            return [self._sample(key) for key in keys]
        with kept_random_states():
            return [self._sample(key) for key in keys]

    def _sample(self, key: SampleKey) -> tuple[torch.Tensor, int]:
        pixels, label = self.source.read(key.image)
        label = checked_label(label, self.num_classes, f"image {key.image}")
        if self.transform.random:
            set_random_states(seed_of("sample", self.seed, *key))
        return self.transform(pixels), label


def checked_label(label: int, num_classes: int | None, name: str) -> int:
    """The label, or -1 (none) for a model without a classifier (0 classes), whose outputs are no classes.

    Raises DataError unless the label is -1 or below `num_classes` (None: any).
    """
    if num_classes == 0:
        return -1
    if label < -1 or (num_classes is not None and label >= num_classes):
        allowed = f"num_classes={num_classes} allows 0 to {num_classes - 1}" if num_classes else "-1 is the least"
        raise DataError(
            f"{name} has label {label}, but {allowed}; use a model with enough outputs, or a class_map file"
        )
    return label
