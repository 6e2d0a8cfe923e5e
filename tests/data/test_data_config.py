"""DataConfig refuses nonsense in words that help, and resolve_data takes the blanks from the model."""

from dataclasses import replace

import pytest
import timm
from timm.models.vision_transformer import VisionTransformer

from qvit.data import DataConfig, DataError, open_data, preprocess_of, resolve_data
from qvit_runtime.program import Preprocess


@pytest.fixture
def micro() -> VisionTransformer:
    """A ViT made by hand: no pretrained_cfg."""
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "imagenet"}, r"dataset='imagenet' is not one of 'digits', 'folder'.*give root=PATH"),
        ({"dataset": "folder"}, r"dataset='folder' needs root=PATH"),
        ({"dataset": "wds/", "root": ""}, r"dataset='wds/' needs root=PATH"),
        ({"dataset": "hfds/"}, r"names no data set; write 'hfds/NAME'"),
        ({"train_crop": "random"}, r"train_crop='random' is not one of 'resized', 'pad', 'none'"),
        ({"interpolation": "random"}, r"interpolation='random' is not one of 'bicubic'"),
        ({"crop_mode": "top"}, r"crop_mode='top' is not one of 'center'"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\): give three numbers, one per RGB channel"),
        ({"std": (0.5, 0.0, 0.5)}, r"std=.* must be positive"),
        ({"crop": 1.5}, r"crop=1.5 must lie in \(0, 1\]"),
        ({"flip": 2.0}, r"flip=2.0 is a share"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 is a share"),
        ({"workers": -1}, r"workers=-1 must be at least 0"),
        ({"max_corrupt": -1}, r"max_corrupt=-1 must be at least 0"),
        ({"batch_size": 0}, r"batch_size=0 must be at least 1"),
        ({"mixup": float("nan")}, r"mixup=nan must be at least 0"),
        ({"repeated_augmentation": 0}, r"repeated_augmentation=0 must be at least 1"),
        ({"batch_size": 7, "cutmix": 1.0}, r"batch_size=7 is odd: mixup and cutmix mix pairs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses(fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataConfig(**{"dataset": "digits", **fields})


def test_lists_become_tuples_and_the_empty_name_is_folder() -> None:
    config = DataConfig(dataset="", root="images", mean=[0.1, 0.2, 0.3])  # type: ignore[arg-type]  # as TOML gives it
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.dataset == "folder"
    assert hash(config) == hash(DataConfig(root="images", mean=(0.1, 0.2, 0.3)))


def test_blanks_come_from_the_models_pretrained_cfg() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=7)
    config = resolve_data(DataConfig(dataset="digits"), model)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    assert (config.image_size, config.num_classes) == (64, 7), "as the model was built, not as it was pretrained"
    assert (config.crop, config.crop_mode, config.interpolation) == (0.9, "center", "bicubic")


def test_deit_and_vit_differ_by_their_cfg_not_by_their_name() -> None:
    config = resolve_data(DataConfig(root="x"), timm.create_model("deit_tiny_patch16_224", depth=1))
    assert config.mean == (0.485, 0.456, 0.406)
    assert config.num_classes == 1000


def test_what_is_given_stays() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=7)
    given = DataConfig(dataset="digits", mean=(0.0, 0.0, 0.0), crop=1.0, interpolation="bilinear")
    config = resolve_data(given, model)
    assert (config.mean, config.crop, config.interpolation) == (given.mean, 1.0, "bilinear")


def test_a_model_that_says_nothing_must_be_told(micro: VisionTransformer) -> None:
    with pytest.raises(DataError, match=r"has no pretrained_cfg, so mean and std are unknown; give the mean and std"):
        resolve_data(DataConfig(dataset="digits"), micro)
    config = resolve_data(DataConfig(dataset="digits", mean=(0, 0, 0), std=(1, 1, 1)), micro)
    assert (config.image_size, config.crop, config.num_classes) == (32, 1.0, 10)


def test_a_model_without_a_classifier_has_no_classes() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    assert resolve_data(DataConfig(dataset="digits"), model).num_classes == 0
    with pytest.raises(DataError, match=r"num_classes=10, but the model has 0 outputs"):
        resolve_data(DataConfig(dataset="digits", num_classes=10), model)


def test_contradictions_with_the_model(micro: VisionTransformer) -> None:
    given = {"dataset": "digits", "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(DataError, match=r"image_size=28, but the model was made for 32; leave image_size out"):
        resolve_data(DataConfig(**given, image_size=28), micro)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"num_classes=9, but the model has 10 outputs"):
        resolve_data(DataConfig(**given, num_classes=9), micro)  # type: ignore[arg-type]


def test_only_square_inputs() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=(32, 64))
    with pytest.raises(DataError, match=r"32 x 64 images; only square"):
        resolve_data(DataConfig(dataset="digits"), model)


def test_an_unresolved_config_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"image_size, mean, std, crop, crop_mode, interpolation not set; call resolve_data"
    ):
        open_data(DataConfig(dataset="digits"), seed=0)


def test_preprocess_of_a_config() -> None:
    """What the evaluation transform does, as the artifact says it; class names where every output has one."""
    given = {
        "dataset": "digits",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop": 0.8,
        "interpolation": "bilinear",
    }
    config = DataConfig(**given, image_size=32, crop_mode="squash", num_classes=2)  # type: ignore[arg-type]
    expected = Preprocess((32, 32), 0.8, "squash", "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("cat", "dog"))
    assert preprocess_of(config, ("cat", "dog")) == expected
    assert preprocess_of(config) == preprocess_of(config, ("cat",)) == replace(expected, labels=())
    with pytest.raises(DataError, match=r"blanks; complete it with qvit.resolve_data\(config, model\) first"):
        preprocess_of(replace(config, crop=None))
