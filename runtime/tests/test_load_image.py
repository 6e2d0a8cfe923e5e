"""`load_image`: every kind of file that people have becomes upright RGB; everything else is an ImageError with its name."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qvit_runtime import preprocess as module
from qvit_runtime.preprocess import ImageError, load_image

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("how", ["path", "text", "bytes", "stream"])
def test_sources(tmp_path, how):
    path = tmp_path / "a.png"
    RGB.save(path)
    content = path.read_bytes()
    source = {"path": path, "text": str(path), "bytes": content, "stream": io.BytesIO(content)}[how]
    assert np.array_equal(load_image(source), RGB)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})])
def test_formats(kind, options):
    image = load_image(encoded(RGB.resize((64, 64)), kind, **options))
    difference = np.abs(np.asarray(image, int) - np.asarray(RGB.resize((64, 64)), int))
    assert image.mode == "RGB"
    assert difference.mean() < (8 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """The eight ways to store one upright image."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose values: what a camera did
    stored = RGB if undo is None else RGB.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encoded(stored, "PNG", exif=exif)), RGB)


def test_a_broken_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(load_image(encoded(RGB, "PNG", exif=exif)), RGB)
    assert np.array_equal(load_image(encoded(RGB, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), RGB)


def test_grey_and_black_and_white():
    grey = np.asarray(load_image(encoded(RGB.convert("L"), "PNG")))
    assert np.array_equal(grey, np.repeat(np.asarray(RGB.convert("L"))[..., None], 3, -1))
    white = np.asarray(load_image(encoded(Image.new("1", (3, 2), 1), "PNG")))
    assert white.tolist() == [[[255] * 3] * 3] * 2


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert np.asarray(load_image(encoded(deep, "PNG")))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(palette, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_alpha_lies_on_white():
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert load_image(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    assert load_image(encoded(Image.new("LA", (1, 1), (7, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_palette_entry():
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    content = encoded(palette, "PNG", transparency=0)
    assert load_image(content).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk():
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red = np.asarray(load_image(content), int)
    assert np.abs(red - [255, 0, 0]).max() <= 3


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (10_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused(width, height):
    with pytest.raises(ImageError, match=r"<bytes>: .*pixels"):
        load_image(png(width, height))


def test_the_pixel_limit_is_ours(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 53)
    with pytest.raises(ImageError, match="<bytes>: 9 x 6 pixels, allowed: at most 53 in all"):
        load_image(encoded(RGB, "PNG"))


def test_a_huge_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    (tmp_path / "big.png").write_bytes(encoded(RGB, "PNG"))
    with pytest.raises(ImageError, match=r"big\.png: the file is larger than 100 bytes"):
        load_image(tmp_path / "big.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "not an image, allowed: JPEG, PNG, WEBP"),
        ("text.png", b"hello world", "not an image"),
        ("cut.png", encoded(RGB, "PNG")[:-60], "broken image"),
        ("cut.jpg", encoded(RGB.resize((300, 300)), "JPEG")[:2000], "broken image: image file is truncated"),
        ("flat.png", png(64, 64), "broken image"),
        ("bitmap.png", encoded(RGB, "BMP"), "not an image"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}: {message}") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: cannot be read: No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutants_are_refused_or_decoded(kind):
    good, refused = encoded(RGB.resize((32, 32)), kind), 0
    for seed in range(150):
        rng, content = random.Random(seed), bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert load_image(bytes(content[: rng.choice((len(good), rng.randrange(len(good))))])).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 30
