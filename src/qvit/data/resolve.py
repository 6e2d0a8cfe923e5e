"""How a model wants its images: read off the model, filled into a data config, written into an artifact.

    model --model_preprocess--> Preprocess --resolve_data--> DataConfig without blanks --preprocess_of--> Preprocess

timm keeps mean, std, crop and interpolation beside each model, in `model.pretrained_cfg`; nothing is ever guessed from a
model's name. `resolve_data` takes from there what a config leaves open, and `preprocess_of` gives what the images were
really opened with to `qvit.freeze`, which without it takes what the model says.
"""

from collections.abc import Sequence
from dataclasses import replace

from timm.data import resolve_model_data_config
from torch import nn

from qvit_runtime.program import Preprocess

from .config import DataConfig, DataError


def model_preprocess(model: nn.Module) -> Preprocess:
    """The evaluation transform that timm gives with a model: its `pretrained_cfg`, at the size that the model is built for.

    A model without `pretrained_cfg` has timm's ImageNet mean and std, and crops nothing (crop 1.0).
    """
    known = resolve_model_data_config(model, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {"crop_pct": 1.0})
    # The patch embedding knows better than `pretrained_cfg`, which ignores img_size=.
    built = getattr(getattr(model, "patch_embed", None), "img_size", None) or known["input_size"][1:]
    return Preprocess(
        size=tuple(built),
        crop=known["crop_pct"],
        crop_mode=known["crop_mode"],
        interpolation=known["interpolation"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )


def resolve_data(config: DataConfig, model: nn.Module) -> DataConfig:
    """Fill the fields that are `None` from a timm model; what is given stays.

    Size, mean, std, crop, crop mode and interpolation: `model_preprocess`; but a model without `pretrained_cfg` must be
    given mean and std. Classes: `model.num_classes` (None where the model does not say).

    Raises:
        DataError: the model says nothing and neither does the config, or the two contradict each other.
    """
    wanted = [name for name in ("mean", "std") if getattr(config, name) is None]
    if not getattr(model, "pretrained_cfg", None) and wanted:
        raise DataError(
            f"{type(model).__name__} has no pretrained_cfg, so {' and '.join(wanted)} are unknown; "
            "give the mean and std that it was trained with, for example mean=(0.485, 0.456, 0.406)"
        )
    known = model_preprocess(model)
    classes = getattr(model, "num_classes", None)
    if config.num_classes is not None and classes is not None and config.num_classes != classes:
        raise DataError(
            f"num_classes={config.num_classes}, but the model has {classes} outputs; leave num_classes out, "
            f"or make the model with num_classes={config.num_classes}"
        )
    return replace(
        config,
        image_size=_resolve_size(config.image_size, model, known.size),
        mean=config.mean or known.mean,  # type: ignore[arg-type]  # checked by DataConfig, as are the next
        std=config.std or known.std,  # type: ignore[arg-type]
        crop=config.crop or known.crop,
        crop_mode=config.crop_mode or known.crop_mode,  # type: ignore[arg-type]
        interpolation=config.interpolation or known.interpolation,  # type: ignore[arg-type]
        num_classes=classes if config.num_classes is None else config.num_classes,
    )


def _resolve_size(given: int | None, model: nn.Module, built: tuple[int, int]) -> int:
    if built[0] != built[1]:
        raise DataError(f"the model wants {built[0]} x {built[1]} images; only square inputs are supported")
    if given and given != built[0] and getattr(getattr(model, "patch_embed", None), "strict_img_size", False):
        raise DataError(
            f"image_size={given}, but the model was made for {built[0]}; leave image_size out, "
            f"or make the model with img_size={given}"
        )
    return given or int(built[0])


def preprocess_of(config: DataConfig, class_names: Sequence[str] = ()) -> Preprocess:
    """The evaluation transform of a resolved config, for `qvit.freeze`: the artifact then prepares images as the config does.

    class_names  `Splits.class_names`; they are stored where every output has one

    Raises DataError for a config with blanks.
    """
    size, mean, std = config.image_size, config.mean, config.std
    if not (size and mean and std and config.crop and config.interpolation and config.crop_mode):
        raise DataError("the data config has blanks; complete it with qvit.resolve_data(config, model) first")
    return Preprocess(
        size=(size, size),
        crop=config.crop,
        crop_mode=config.crop_mode,
        interpolation=config.interpolation,
        mean=mean,
        std=std,
        labels=tuple(class_names) if len(class_names) == config.num_classes else (),
    )
