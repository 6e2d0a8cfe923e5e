"""The operations of an integer-only transformer, as an interface. `network` is written in them, once.

Three classes give them meaning:

    Observation   float tensors, float functions; calibration takes the ranges from it          `observation`
    Simulation    integer codes in torch, with gradients: the module's forward pass              `simulation`
    Emission      ops of a Program over named buffers: freeze                                    `emission`

so that what is trained, what is calibrated and what is frozen cannot differ in their wiring.

A method that takes a Grid rounds onto it. Sums of products ("...Accumulate" in a program) have no Grid: their scale
follows from their operands.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from .layers import Grid, LayerNorm, Linear

T = TypeVar("T")
Pair = tuple[int, int]
Factor = float | Tensor


class Arithmetic(Protocol[T]):
    """The operations of the network. T is what travels: a tensor, codes with a scale, or the name of a buffer.

    Shapes are those of a program with a batch in front: tokens (B, N, C), or (B, rows, cols, C) for Swin; inside windows
    (B, W, T, C); per head (B, H, N, d) or (B, W, H, T, d).
    """

    def patches(self, image: T, patch: int, as_grid: bool) -> T:
        """(B, channels, height, width) -> (B, N, channels * patch^2), or (B, rows, cols, ...) as a grid."""

    def linear(self, x: T, layer: Linear) -> T:
        """(..., in) -> sums (..., out)"""

    def requantize(self, x: T, grid: Grid) -> T:
        """Onto a grid."""

    def split_heads(self, x: T, grids: tuple[Grid, Grid, Grid], heads: int) -> tuple[T, T, T]:
        """Sums of the fused qkv (..., N, 3 H d) -> q, k, v (..., H, N, d), each on its grid."""

    def query_key(self, q: T, k: T, grid: Grid, factor: float) -> T:
        """factor * q k^T, (..., H, N, N), onto a grid."""

    def softmax(self, x: T, scores: Grid, output: Grid, bias: Tensor | None, mask: Tensor | None) -> T:
        """Over the last axis, after adding bias (H, N, N) and mask (W, N, N); x is on the grid `scores`."""

    def attention_value(self, attention: T, v: T, grid: Grid) -> T:
        """attention v onto a grid, heads merged: (..., N, H d)."""

    def layer_norm(self, x: T, norm: LayerNorm) -> T:
        """Over the last axis, onto the norm's grid."""

    def gelu(self, x: T, grid: Grid) -> T:
        """x sigmoid(1.702 x) of x on `grid`, not rounded onto another yet."""

    def add(self, left: T, right: T, grid: Grid, factors: tuple[Factor, Factor]) -> T:
        """factors[0] * left + factors[1] * right onto a grid; a factor is a number or one per channel (C,)."""

    def tokens(self, x: T, prefix: Tensor, position: Tensor, grid: Grid) -> T:
        """(B, N, C) -> (B, P + N, C): constant prefix rows (P, C), then x + position (N, C), onto a grid."""

    def select_token(self, x: T, index: int) -> T:
        """(B, N, C) -> (B, C)"""

    def mean_tokens(self, x: T, start: int, grid: Grid) -> T:
        """Mean over all tokens from `start` on, (B, C), onto a grid."""

    def window_partition(self, x: T, window: Pair, shift: Pair) -> T:
        """(B, rows, cols, C) -> (B, W, T, C): roll by -shift, pad with zeros, cut."""

    def window_merge(self, x: T, window: Pair, shift: Pair, size: Pair) -> T:
        """The inverse, back to (B, rows, cols, C) with size (rows, cols)."""

    def patch_merge(self, x: T) -> T:
        """(B, rows, cols, C) -> (B, ceil(rows / 2), ceil(cols / 2), 4 C)"""
