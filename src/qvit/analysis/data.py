"""Images for an analysis: some to calibrate on, others to measure on.

With labels both come from `open_data`: training images and a fixed random choice of evaluation images. A flat folder has
neither labels nor splits; it is shuffled by the seed and divided, so that here too no image does both.

A loader has whole batches and a stream as many images as it has, so both are cut to the images that were asked for (`First`),
and analysis.json says how many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import DataConfig, DataError, EpochOrder, SeededDataset, Splits, UnlabelledFolder, open_data
from ..data.augment import eval_transform
from ..data.seeds import seed_of
from ..data.shards import PREFIXES as STREAMS
from ..data.sources import Subset, find_split_folder
from .config import AnalysisConfig

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass
class First:
    """The first `count` images of some batches, the last batch cut; `seen` is how many the latest iteration has given."""

    batches: Batches
    count: int
    seen: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.seen = 0
        for images, labels in self.batches:
            left = self.count - self.seen
            self.seen += min(left, len(images))
            yield images[:left], labels[:left]
            if self.seen == self.count:
                return


@dataclass(frozen=True)
class AnalysisData:
    """Batches of (images, labels), a label of -1 meaning none.

    calibration  training images
    evaluation   images to measure on, the same in every iteration
    images       how many of those to use at most
    batch_size   of both
    data         the resolved config they were opened with
    splits       for training, or None where there are no labels
    """

    calibration: Batches
    evaluation: Batches
    images: int
    batch_size: int
    data: DataConfig
    splits: Splits | None

    @property
    def measured(self) -> First:
        """The images of `evaluation` that are used."""
        return First(self.evaluation, self.images)

    @property
    def batches(self) -> int:
        """Batches of `measured`, where there are as many images."""
        return -(-self.images // self.batch_size)


def open_analysis_data(data: DataConfig, config: AnalysisConfig) -> AnalysisData:
    """Open the images of a resolved data config. Raises DataError as `open_data` does, and for a folder that is too small."""
    if data.dataset == "images":
        return _divided_folder(data, config)
    if data.dataset.startswith(STREAMS):
        splits = open_data(data, config.seed)
        images = min(config.images, splits.eval_images or config.images)
    else:
        splits = open_data(data, config.seed, max_eval_images=config.images)
        images = splits.eval_images
    return AnalysisData(splits.calibration, splits.eval, images, data.eval_batch_size, data, splits)


def _divided_folder(data: DataConfig, config: AnalysisConfig) -> AnalysisData:
    folder = UnlabelledFolder(find_split_folder(data.root, data.eval_split))
    count, first = len(folder), config.calibration_images
    if count < first + 2:
        raise DataError(
            f"{data.root} holds {count} images, too few to calibrate on {first} and to measure on others; give more images, "
            "or fewer --calibration-images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("divide", config.seed))).tolist()
    calibrated, measured = order[:first], order[first : first + config.images]
    loaders = [_loader(Subset(folder, indices), data) for indices in (calibrated, measured)]
    return AnalysisData(loaders[0], loaders[1], len(measured), data.eval_batch_size, data, None)


def _loader(source: Subset, data: DataConfig) -> DataLoader:
    order = EpochOrder(len(source), data.eval_batch_size, 0, shuffle=False, drop_last=False)
    return DataLoader(
        SeededDataset(source, eval_transform(data), 0, data.num_classes), batch_sampler=order, num_workers=data.workers
    )
