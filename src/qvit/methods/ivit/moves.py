"""Moving the elements of a tensor about: patches, heads, windows. The same for floats and for codes, and exact for both.

Heads are cut by `network.attention.split_heads`, as everywhere.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .arithmetic import Pair


def cut_patches(image: Tensor, patch: int, as_grid: bool) -> Tensor:
    """(B, channels, height, width) -> (B, N, channels * patch^2), or (B, rows, cols, ...); each row as a conv weight's."""
    batch, channels, height, width = image.shape
    rows, cols = height // patch, width // patch
    cut = image[:, :, : rows * patch, : cols * patch].reshape(batch, channels, rows, patch, cols, patch)
    grid = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, cols, channels * patch * patch)
    return grid if as_grid else grid.flatten(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(..., H, N, d) -> (..., N, H d)"""
    return x.transpose(-3, -2).flatten(-2)


def _windows_of(size: Pair, window: Pair) -> Pair:
    return -(-size[0] // window[0]), -(-size[1] // window[1])


def cut_windows(x: Tensor, window: Pair, shift: Pair) -> Tensor:
    """(B, rows, cols, C) -> (B, W, T, C): roll by -shift, pad bottom and right with zeros, cut in row-major order."""
    batch, rows, cols, channels = x.shape
    (height, width), (down, across) = window, _windows_of((rows, cols), window)
    x = F.pad(x.roll((-shift[0], -shift[1]), (1, 2)), (0, 0, 0, across * width - cols, 0, down * height - rows))
    x = x.view(batch, down, height, across, width, channels).transpose(2, 3)
    return x.reshape(batch, down * across, height * width, channels)


def join_windows(x: Tensor, window: Pair, shift: Pair, size: Pair) -> Tensor:
    """(B, W, T, C) -> (B, rows, cols, C): the inverse; padding is dropped, the roll undone."""
    (height, width), (down, across) = window, _windows_of(size, window)
    x = x.view(len(x), down, across, height, width, -1).transpose(2, 3)
    x = x.reshape(len(x), down * height, across * width, -1)[:, : size[0], : size[1]]
    return x.roll(shift, (1, 2))


def merge_patches(x: Tensor) -> Tensor:
    """(B, rows, cols, C) -> (B, rows / 2, cols / 2, 4 C), odd sides padded with zeros; timm's order of the four."""
    batch, rows, cols, channels = x.shape
    x = F.pad(x, (0, 0, 0, cols % 2, 0, rows % 2))
    x = x.view(batch, (rows + 1) // 2, 2, (cols + 1) // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)
