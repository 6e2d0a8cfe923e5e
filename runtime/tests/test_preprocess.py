"""`preprocess` equals timm's evaluation transform within one grey level, for all modes, sizes and aspect ratios."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qvit_runtime import preprocess as module
from qvit_runtime.preprocess import ImageError, centre, preprocess, resized_size
from qvit_runtime.program import Preprocess


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure and noise together: both the resampling and the exact crop position show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (3 + c) + y / (5 - c)) for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(
    ("size", "crop"), [((32, 32), 0.9), ((32, 32), 1.0), ((48, 32), 0.875), ((33, 57), 0.95)], ids=str
)
def test_it_equals_timm(size, crop, interpolation, crop_mode):
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("timm.data")
    how = Preprocess(size=size, crop=crop, interpolation=interpolation, crop_mode=crop_mode)
    transform = data.create_transform(
        input_size=(3, *size),
        crop_pct=crop,
        interpolation=interpolation,
        crop_mode=crop_mode,
        mean=how.mean,
        std=how.std,
    )
    for width, height in [(40, 40), (71, 50), (50, 71), (20, 31), (200, 37), (32, 32), (35, 36)]:
        image = photo(width, height)
        ours, theirs = preprocess(image, how), transform(image).numpy()
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape == (3, *size)
        grey = np.abs(ours - theirs) * np.array(how.std)[:, None, None] * 255
        assert grey.max() < 1e-3, (width, height)  # within a grey level by far: equal but for float rounding
    assert torch.is_tensor(transform(photo(40, 40)))


def test_the_true_size_equals_timm():
    data = pytest.importorskip("timm.data")
    how = Preprocess(size=(224, 224), crop=0.9)
    transform = data.create_transform(input_size=(3, 224, 224), crop_pct=0.9, interpolation="bicubic")
    image = photo(500, 375)
    grey = np.abs(preprocess(image, how) - transform(image).numpy()) * 0.23 * 255
    assert grey.max() < 1e-3


def test_numbers_without_timm():
    """A flat image stays flat: (200 / 255 - mean) / std per channel."""
    how = Preprocess(size=(8, 8), crop=0.5, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    out = preprocess(Image.new("RGB", (30, 20), (200, 200, 200)), how)
    expected = (200 / 255 - np.array([0.1, 0.2, 0.3])) / np.array([1.0, 2.0, 4.0])
    assert np.allclose(out, expected[:, None, None], atol=1e-6)


def test_one_channel():
    how = Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,))
    out = preprocess(Image.new("RGB", (8, 8), (255, 255, 255)), how)
    assert out.shape == (1, 8, 8)
    assert np.allclose(out, 1.0)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_image_file_has(channels):
    how = Preprocess(size=(8, 8), mean=(0.5,) * channels, std=(0.5,) * channels)
    with pytest.raises(
        ImageError, match=f"the program takes images of {channels} channels .* call qvit_runtime.Engine"
    ):
        preprocess(Image.new("RGB", (8, 8)), how)


def test_sizes_after_the_resize():
    assert resized_size((375, 500), (248, 248), "center") == (248, 330)  # 330.67 truncated
    assert resized_size((500, 375), (248, 248), "center") == (330, 248)
    assert resized_size((375, 500), (248, 248), "squash") == (248, 248)
    assert resized_size((375, 500), (248, 248), "border") == (186, 248)
    assert resized_size((1, 10_000), (8, 8), "border") == (1, 8)


def test_centre_cuts_and_pads():
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    assert centre(pixels, (1, 2), np.zeros(1))[..., 0].tolist() == [[5, 6]]
    assert centre(pixels, (5, 2), np.full(1, -1))[..., 0].tolist() == [[-1, -1], [1, 2], [5, 6], [9, 10], [-1, -1]]


def test_a_needle_is_refused_instead_of_resized(monkeypatch):
    """1 x 5000 pixels at 224 would become 224 x 1,120,000."""
    monkeypatch.setattr(module, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match="image of 1 x 5000 pixels is too narrow: resized it has 224 x 1120000"):
        preprocess(Image.new("RGB", (1, 5000)), Preprocess(size=(224, 224)))
