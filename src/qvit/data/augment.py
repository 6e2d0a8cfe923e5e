"""From decoded pixels to the values a model sees, in evaluation and in training; and mixup over a batch.

Evaluation is timm's pipeline exactly (`timm.data.create_transform`), and so is training with train_crop "resized".
Small images want another geometry: a random crop of the padded image instead of ImageNet's random resized crop. For
them timm's pipeline is taken in its three parts (geometry, colour, tensor), the first is replaced, and the work stays
in one small array from end to end: on two CPU cores a micro model trains on some 300 images a second, and the loader
must not be seen beside it. Every random draw comes from the global Python, numpy or torch state, which `data.order`
seeds per sample.

Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) are timm's, with one batch-wide draw. timm mixes image i with
image B-1-i; here neighbours 2k and 2k+1 mix, so that a batch split over processes mixes the same pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from torch.nn.functional import one_hot
from torchvision.transforms import ColorJitter

from .config import DataConfig, DataError
from .seeds import kept_random_states, seed_of


@dataclass(frozen=True)
class Transform:
    """Pixels (H, W, 3) uint8 in, values (3, H, W) float32 out."""

    steps: tuple[Callable, ...]
    random: bool
    """Whether any step draws random numbers."""

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        value = pixels
        for step in self.steps:
            value = step(value)
        return value  # type: ignore[return-value]


class Fit:
    """Pixels to pixels: shorter side to `size`, then the centre; an image that fits already passes untouched."""

    def __init__(self, size: int, interpolation: str) -> None:
        self.size = size
        self.resample = Image.Resampling[interpolation.upper()]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if height == width == self.size:
            return pixels
        scale = self.size / min(height, width)
        height, width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        resized = np.asarray(Image.fromarray(pixels).resize((width, height), self.resample))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]


class PadCrop:
    """Pixels to pixels: a random (size, size) window of the image continued by reflection for `pad` pixels.

    Reads the window through an index of rows and one of columns; the padded image is never made.
    """

    def __init__(self, size: int, pad: int) -> None:
        distance = np.abs(np.arange(-pad, size + pad))  # ... 2 1 0 1 2 ... size-1 size ...
        self.source = np.where(distance < size, distance, 2 * (size - 1) - distance)  # (size + 2 pad,)
        self.size = size
        self.pad = pad

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        top, left = torch.randint(0, 2 * self.pad + 1, (2,)).tolist()
        rows = self.source[top : top + self.size]
        columns = self.source[left : left + self.size]
        return pixels[rows[:, None], columns]


class Flip:
    """Pixels to pixels: left and right change places with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[:, ::-1] if torch.rand(()).item() < self.probability else pixels


class ToValues:
    """Pixels to values: (pixels / 255 - mean) / std per channel, the same bits as torchvision's two steps."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, pixels: np.ndarray | Image.Image) -> torch.Tensor:
        codes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # a copy: a flip is a view torch cannot take
        values = codes.to(torch.float32, memory_format=torch.contiguous_format)
        return values.div_(255).sub_(self.mean).div_(self.std)


def posterize(image: Image.Image, bits: int, fillcolor: object = None, resample: object = None) -> Image.Image:
    """RGB image with only the highest `bits` bits of each channel; 0 bits is black. The rest belongs to other ops."""
    mask = 256 - 2 ** (8 - min(bits, 8))
    return image.point([value & mask for value in range(256)] * 3)


def _let_posterize_reach_zero(step: Callable) -> None:
    """timm's policies posterize down to 0 bits, which Pillow refuses from version 13 on; before, it gave black."""
    policy = getattr(step, "policy", None) or [getattr(step, "ops", [])]
    for op in chain.from_iterable(policy):
        if op.name.startswith("Posterize"):
            op.aug_fn = posterize


class _View(NamedTuple):
    """The fields of a resolved config that a transform needs, none of them None."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float
    crop_mode: str
    interpolation: str


def eval_transform(config: DataConfig) -> Transform:
    """timm's evaluation transform for a resolved config: resize, centre crop, normalise; nothing random."""
    view = _view(config)
    timm_transform = create_transform(
        view.size,
        interpolation=view.interpolation,
        mean=view.mean,
        std=view.std,
        crop_pct=view.crop,
        crop_mode=view.crop_mode,
    )
    return Transform((Image.fromarray, *timm_transform.transforms), random=False)


def train_transform(config: DataConfig) -> Transform:
    """The training transform of a resolved config: crop and flip, colour, normalise and erase."""
    view = _view(config)
    if config.train_crop == "pad" and config.pad >= view.size:
        raise DataError(f"pad={config.pad} must be smaller than image_size={view.size} to reflect")
    geometry, colour, tensor = create_transform(
        view.size,
        is_training=True,
        hflip=config.flip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment or None,
        interpolation=view.interpolation,
        mean=view.mean,
        std=view.std,
        re_prob=config.random_erasing,
        re_mode="pixel",
        separate=True,
    )
    # timm reads color_jitter=0 as a jitter that does nothing; leave it out.
    coloured = [step for step in colour.transforms if config.color_jitter or not isinstance(step, ColorJitter)]
    for step in coloured:
        _let_posterize_reach_zero(step)
    if config.train_crop == "resized":
        return Transform((Image.fromarray, *geometry.transforms, *coloured, *tensor.transforms), random=True)
    steps: list[Callable] = [Fit(view.size, view.interpolation)]
    if config.train_crop == "pad" and config.pad:
        steps.append(PadCrop(view.size, config.pad))
    if config.flip:
        steps.append(Flip(config.flip))
    if coloured:
        steps += [np.ascontiguousarray, Image.fromarray, *coloured]
    erasing = tensor.transforms[2:]  # behind timm's to-tensor and normalise
    return Transform((*steps, ToValues(view.mean, view.std), *erasing), random=True)


def _view(config: DataConfig) -> _View:
    values = {
        "image_size": config.image_size,
        "mean": config.mean,
        "std": config.std,
        "crop": config.crop,
        "crop_mode": config.crop_mode,
        "interpolation": config.interpolation,
    }
    blank = [name for name, value in values.items() if value is None]
    if blank:
        raise DataError(f"{', '.join(blank)} not set; call resolve_data(config, model) first, or give the values")
    return _View(*values.values())  # type: ignore[arg-type]


def mixup_batch(
    images: torch.Tensor, labels: torch.Tensor, config: DataConfig, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch and make its targets; a function of (images, labels, seed, step) that touches no random state.

    Args:
        images: (B, 3, H, W), not modified.
        labels: (B,) int64, on the same device.
        config: `mixup`, `cutmix`, `label_smoothing` and `num_classes` are used.
        seed: the run's seed.
        step: number of the batch since the start of the run, the same in every process.

    Returns:
        images (B, 3, H, W) and targets (B, num_classes) float32 whose rows sum to 1; without mixup and cutmix
        the images are the ones given.

    Raises:
        DataError: num_classes is unknown or 0, or B is odd where pairs are mixed.
    """
    classes = config.num_classes
    if classes is None:
        raise DataError("num_classes is not set; call resolve_data(config, model) first, or give num_classes")
    if classes == 0:
        raise DataError(
            "the model has no classifier (num_classes = 0), so labels cannot train it; "
            "make it with as many classes as the data has, or calibrate it (qvit ptq)"
        )
    if not (config.mixup or config.cutmix):
        off = config.label_smoothing / classes
        return images, one_hot(labels, classes) * (1.0 - config.label_smoothing) + off
    size = len(images)
    if size % 2:
        raise DataError(f"a batch of {size} cannot be mixed in pairs; batch_size / processes must be even")
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
    # timm pairs i with size-1-i: even places first, odd places backwards, makes those pairs neighbours.
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2).flip(0)]).to(images.device)
    back = torch.argsort(order)
    with kept_random_states():
        np.random.seed(seed_of("mixup", seed, step) & 0xFFFFFFFF)
        mixed, targets = mixup(images[order], labels[order])
    return mixed[back], targets[back]
