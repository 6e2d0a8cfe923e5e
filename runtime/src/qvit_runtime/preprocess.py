"""From an image file to the input of a Program: `load_image` decodes what people really have, `preprocess` does what timm does.

`load_image` gives an upright 8-bit RGB image from a JPEG, PNG or WebP file:

  EXIF orientation   applied, as every viewer does
  grey, palette      expanded to RGB
  CMYK, YCCK         converted to RGB without a colour profile, as timm does
  alpha              laid on white: what a person sees; timm drops the alpha and shows what lies hidden beneath it
  16 bits            scaled to 8 (Pillow's own conversion clips everything above 255)
  bombs              the size in the header is compared with MAX_PIXELS before anything is decoded

`preprocess` is timm's evaluation transform (timm.data.create_transform, is_training=False) on Pillow and numpy alone:
resize so that the crop covers `size / crop`, cut the centre, divide by 255, normalise. What the resize keeps depends on
the crop mode (H, W the target / crop, h, w the image):

  center   the shorter side fits, the aspect ratio stays, the longer side is cut
  squash   both sides fit, the aspect ratio is lost
  border   the longer side fits, the aspect ratio stays, the rest is filled with the mean
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .program import Preprocess

MAX_PIXELS = 89_000_000  # just below where Pillow starts to warn; 267 MB as RGB
MAX_FILE_BYTES = 1 << 28
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class ImageError(ValueError):
    """An image that cannot be used; the message is one line that names the file."""


def load_image(source: str | os.PathLike[str] | bytes | BinaryIO) -> Image.Image:
    """Decode a path, the bytes of a file or an open binary stream into an upright RGB image.

    Raises ImageError, naming the file, for everything that is wrong with it, a missing file included.
    """
    name, content = _read(source)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image, allowed: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: too many pixels, allowed: at most {MAX_PIXELS}") from None
    except Exception as error:  # a decoder fed with a hostile file may raise anything
        raise _broken(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: {image.width} x {image.height} pixels, allowed: at most {MAX_PIXELS} in all")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name}: broken image: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _read(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[str, bytes]:
    """Name for messages and content, at most MAX_FILE_BYTES of it."""
    if isinstance(source, bytes):
        name, content = "<bytes>", source
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with Path(source).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{name}: cannot be read: {reason}") from error
    else:
        name, content = str(getattr(source, "name", "<stream>")), source.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"{name}: the file is larger than {MAX_FILE_BYTES} bytes")
    return name, content


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a broken EXIF block means upright."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return image
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16, I;16B, I: greyscale PNG of 16 bits
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(np.clip(deep, 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def image_mode(how: Preprocess) -> str:
    """Pillow's mode of the image that a program takes: L for one channel, RGB for three.

    Raises ImageError for any other number of channels.
    """
    modes = {1: "L", 3: "RGB"}
    channels = len(how.mean)
    if channels not in modes:
        raise ImageError(
            f"the program takes images of {channels} channels and an image file gives 1 or 3; normalise such images "
            "yourself and call qvit_runtime.Engine(program) on the array"
        )
    return modes[channels]


def preprocess(image: Image.Image, how: Preprocess) -> np.ndarray:
    """An RGB image -> float32 (channels, height, width), within one grey level of timm's evaluation transform.

    Raises ImageError when the image is so narrow that it would grow beyond MAX_PIXELS, and where `image_mode` does.
    """
    mode = image_mode(how)
    height, width = how.size
    target = (math.floor(height / how.crop), math.floor(width / how.crop))
    new_height, new_width = resized_size((image.height, image.width), target, how.crop_mode)
    if new_height * new_width > MAX_PIXELS:
        grown = f"{new_width} x {new_height}"
        raise ImageError(f"an image of {image.width} x {image.height} pixels is too narrow: resized it has {grown}")
    image = image.convert(mode)
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), RESAMPLING[how.interpolation])
    pixels = np.asarray(image, np.float32).reshape(new_height, new_width, -1) / np.float32(255)
    # torchvision pads with black; the border mode, which pads much, pads with the mean
    fill = np.rint(255 * np.array(how.mean)) / 255 if how.crop_mode == "border" else np.zeros(len(how.mean))
    pixels = centre(pixels, (height, width), fill.astype(np.float32))
    normal = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)


def resized_size(size: tuple[int, int], target: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) of the image after the resize; the roundings are those of torchvision and timm."""
    (height, width), (target_height, target_width) = size, target
    if crop_mode == "squash":
        return target
    if crop_mode == "center" and target_height == target_width:  # torchvision's Resize truncates
        short, long = min(size), max(size)
        other = int(target_height * long / short)
        return (other, target_height) if width <= height else (target_height, other)
    ratios = (height / target_height, width / target_width)  # timm's ResizeKeepRatio rounds
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def centre(pixels: np.ndarray, size: tuple[int, int], fill: np.ndarray) -> np.ndarray:
    """Cut or pad (rows, cols, C) about the centre to (*size, C)."""
    out = np.broadcast_to(fill, (*size, len(fill))).copy()
    source, target = [], []
    for length, wanted in zip(pixels.shape, size, strict=False):
        if length >= wanted:
            start = round((length - wanted) / 2)  # half to even, as torchvision
            source.append(slice(start, start + wanted))
            target.append(slice(0, wanted))
        else:
            start = (wanted - length) // 2
            source.append(slice(0, length))
            target.append(slice(start, start + length))
    out[tuple(target)] = pixels[tuple(source)]
    return out
