"""The transforms: evaluation is timm's, the small-image path is what it says, mixup is pure and survives sharding."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import functional

from qvit.data import DataConfig, DataError, mixup_batch
from qvit.data.augment import Fit, Flip, PadCrop, ToValues, eval_transform, posterize, train_transform
from qvit.data.seeds import set_random_states

CONFIG = DataConfig(
    dataset="digits",
    image_size=32,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    crop=0.9,
    crop_mode="center",
    interpolation="bicubic",
    num_classes=10,
)


@pytest.fixture
def pixels() -> np.ndarray:
    """A random image, (40, 48, 3)."""
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_evaluation_is_timms(crop_mode: str, pixels: np.ndarray) -> None:
    config = replace(CONFIG, crop_mode=crop_mode)
    timm_transform = create_transform(
        32, mean=config.mean, std=config.std, crop_pct=0.9, crop_mode=crop_mode, interpolation="bicubic"
    )
    transform = eval_transform(config)
    assert not transform.random
    assert torch.equal(transform(pixels), timm_transform(Image.fromarray(pixels)))


def test_to_values_has_the_bits_of_torchvision(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    expected = functional.normalize(functional.to_tensor(image), list(CONFIG.mean), list(CONFIG.std))
    assert torch.equal(ToValues(CONFIG.mean, CONFIG.std)(pixels), expected)


def test_pad_crop_is_a_window_of_the_reflected_image(pixels: np.ndarray) -> None:
    square = pixels[:16, :16]
    padded = np.pad(square, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = {padded[t : t + 16, u : u + 16].tobytes() for t in range(7) for u in range(7)}
    torch.manual_seed(0)
    seen = {PadCrop(16, 3)(square).tobytes() for _ in range(400)}
    assert seen == windows, "every window, and only windows"


def test_fit_resizes_the_shorter_side_and_takes_the_centre(pixels: np.ndarray) -> None:
    fitted = Fit(20, "bicubic")(pixels)
    resized = np.asarray(Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(fitted, resized[:, 2:22])
    assert Fit(20, "bicubic")(fitted) is fitted


def test_flip(pixels: np.ndarray) -> None:
    assert np.array_equal(Flip(1.0)(pixels), pixels[:, ::-1])
    assert Flip(0.0)(pixels) is pixels


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"color_jitter": 0.3},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"auto_augment": "augmix-m3-w3"},
        {"random_erasing": 1.0},
    ],
    ids=["plain", "jitter", "randaugment", "augmix", "erasing"],
)
def test_training_draws_only_from_the_seeded_states(crop: str, extra: dict, pixels: np.ndarray) -> None:
    transform = train_transform(replace(CONFIG, train_crop=crop, **extra))

    def sample(seed: int) -> torch.Tensor:
        set_random_states(seed)
        return transform(pixels)

    assert sample(1).shape == (3, 32, 32)
    assert sample(1).dtype == torch.float32
    assert torch.equal(sample(1), sample(1))
    assert len({sample(seed).numpy().tobytes() for seed in range(8)}) > 1, "it really augments"


@pytest.mark.parametrize("policy", ["rand-m10-n4-inc1", "v0", "original", "augmix-m10"])
def test_policies_at_full_strength(policy: str, pixels: np.ndarray) -> None:
    """Pillow 13 refuses to posterize to 0 bits, timm asks for it."""
    transform = train_transform(replace(CONFIG, auto_augment=policy))
    for seed in range(60):
        set_random_states(seed)
        assert transform(pixels).isfinite().all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows(bits: int, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    assert posterize(image, bits) == ImageOps.posterize(image, bits)
    assert not np.asarray(posterize(image, 0)).any()


def test_no_augmentation_at_all_is_the_evaluation_view_of_a_fitting_image(pixels: np.ndarray) -> None:
    config = replace(CONFIG, train_crop="none", flip=0.0, crop=1.0)
    square = pixels[:32, :32]
    assert torch.equal(train_transform(config)(square), eval_transform(config)(square))


def test_padding_cannot_exceed_the_image() -> None:
    with pytest.raises(DataError, match=r"pad=32 must be smaller than image_size=32"):
        train_transform(replace(CONFIG, train_crop="pad", pad=32))


MIXES = [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, 3, 16, 16, generator=generator), torch.arange(size) % 10


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_mixup_is_a_function_of_seed_and_step(mix: dict) -> None:
    config = replace(CONFIG, label_smoothing=0.1, **mix)
    images, labels = batch()
    before = images.clone()
    np.random.seed(5)
    random.seed(5)
    state = np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist()
    mixed, targets = mixup_batch(images, labels, config, seed=0, step=7)
    assert state == (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist())
    assert torch.equal(images, before), "the batch given is not modified"
    assert mixed.shape == images.shape
    assert targets.shape == (8, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    again = mixup_batch(images, labels, config, seed=0, step=7)
    assert torch.equal(mixed, again[0])
    assert torch.equal(targets, again[1])
    assert any(not torch.equal(mixed, mixup_batch(images, labels, config, 0, step)[0]) for step in range(8, 12))


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@pytest.mark.parametrize("processes", [2, 4])
def test_mixup_of_slices_is_the_slices_of_mixup(mix: dict, processes: int) -> None:
    config = replace(CONFIG, **mix)
    images, labels = batch()
    for step in range(6):
        whole = mixup_batch(images, labels, config, 0, step)
        parts = zip(images.chunk(processes), labels.chunk(processes), strict=True)
        shards = [mixup_batch(image, label, config, 0, step) for image, label in parts]
        assert torch.equal(whole[0], torch.cat([shard[0] for shard in shards]))
        assert torch.equal(whole[1], torch.cat([shard[1] for shard in shards]))


def test_mixup_mixes_neighbours() -> None:
    images = torch.zeros(4, 3, 8, 8)
    images[1] = 1.0
    mixed, targets = mixup_batch(images, torch.arange(4), replace(CONFIG, mixup=1.0), seed=0, step=0)
    share = mixed[0, 0, 0, 0].item()
    assert 0 < share < 1
    assert mixed[1].unique().item() == pytest.approx(1 - share)
    assert not mixed[2:].any()
    assert targets[0, :2].tolist() == pytest.approx([1 - share, share])


def test_without_mixing_the_targets_are_smoothed_labels() -> None:
    images, labels = batch(3)
    same, targets = mixup_batch(images, labels, replace(CONFIG, label_smoothing=0.1), seed=0, step=0)
    assert same is images
    expected = torch.nn.functional.cross_entropy(torch.eye(3, 10), labels, label_smoothing=0.1)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(torch.eye(3, 10), targets), expected)


def test_mixup_errors() -> None:
    images, labels = batch(3)
    with pytest.raises(DataError, match=r"a batch of 3 cannot be mixed in pairs; batch_size / processes must be even"):
        mixup_batch(images, labels, replace(CONFIG, mixup=1.0), seed=0, step=0)
    with pytest.raises(DataError, match=r"num_classes is not set; call resolve_data"):
        mixup_batch(images, labels, replace(CONFIG, num_classes=None), seed=0, step=0)
    with pytest.raises(DataError, match=r"no classifier \(num_classes = 0\), so labels cannot train it; make it with"):
        mixup_batch(images, labels, replace(CONFIG, num_classes=0), seed=0, step=0)
