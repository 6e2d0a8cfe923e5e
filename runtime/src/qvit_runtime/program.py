"""Program: a frozen Vision Transformer as a flat list of typed ops over named buffers.

A trained quantized module is frozen into one `Program`. It is plain data: numpy arrays, strings, ints.
Three backends give it meaning and must agree: `interpreter` (numpy, normative), the native engine (C++), and the ONNX
export. A new model family is new emit code; a new method is at most a new op here with its three meanings.

Buffers carry one image; every backend adds a leading batch axis. A buffer holds either

  values   float32, or
  codes    integers on a `Grid`: value = code * scale + offset, with code in [qmin, qmax] of the grid's bits.

Shapes in use (N tokens, C channels, H heads, d = C / H, W windows of T tokens):

  image            (3, height, width)          tokens     (N, C)  or  (rows, cols, C) for Swin
  q, k, v          (H, N, d)  or (W, H, T, d)  scores     (H, N, N) or (W, H, T, T)

Weights are (out, in), as in torch. Their groups form a grid of (row_groups, column_groups) equal blocks: the fused qkv
has 3 H row groups (q heads, then k heads, then v heads), `proj` has H column groups (the heads are its inputs), a
per-channel weight has `out` row groups, a per-tensor weight has one of each.

Ops know their inputs and outputs by buffer name and nothing else about the program, so that a list of them reads like a
listing of the network. What a well-formed program is, `check` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .integer_ops import IntegerOp, QuantizeRegions

MIN_BITS, MAX_BITS = 2, 8
MAX_MIDRISE_BITS = 7  # the codes of a mid-rise block take one bit more, and are int8 as all weights


@dataclass(frozen=True)
class Grid:
    """How the codes of an activation stand for values.

    bits    one width per group, each 2..8; integer-only ops also know wide codes of 16 and 32 bits, and one bit in each
            region of two-scaled codes, see `integer_ops`
    signed  codes in [-2^(b-1), 2^(b-1) - 1] if true, else [0, 2^b - 1]
    scale   float32 (groups,), positive
    offset  float32 (groups,), in the unit of the values; all zero on a signed grid
    axis    axis of the (batch-less) buffer that the groups divide into equal contiguous blocks
    """

    bits: tuple[int, ...]
    signed: bool
    scale: np.ndarray
    offset: np.ndarray
    axis: int = 0

    @property
    def groups(self) -> int:
        return len(self.bits)

    @property
    def qmin(self) -> np.ndarray:
        """Smallest code of each group, int32 (groups,)."""
        return np.array([-(1 << (b - 1)) if self.signed else 0 for b in self.bits], np.int32)

    @property
    def qmax(self) -> np.ndarray:
        """Largest code of each group, int32 (groups,)."""
        return np.array([(1 << (b - 1)) - 1 if self.signed else (1 << b) - 1 for b in self.bits], np.int32)


@dataclass(frozen=True)
class Buffer:
    """A named tensor of one image: `values` when `grid` is None, else `codes` on that grid."""

    name: str
    shape: tuple[int, ...]
    grid: Grid | None = None


@dataclass(frozen=True)
class Weight:
    """Integer weights of a Linear.

    codes    int8 (out, in), always signed
    bits     int (row_groups, column_groups), each 2..8, or 2..7 in a mid-rise block
    scale    float32 (row_groups, column_groups), positive: value = code * scale of its block
    midrise  bool (row_groups, column_groups); left out, no block is mid-rise

    The codes of a block are -2^(b-1) .. 2^(b-1) - 1, with 0 among them and one more below it than above. At 2 bits that one
    is a quarter of the levels. A mid-rise block has no 0 and as many levels above it as below: its codes are the odd numbers
    -(2^b - 1) .. 2^b - 1, and its scale is half the distance of two levels. (Uniform quantizers rise or tread at zero.)
    """

    codes: np.ndarray
    bits: np.ndarray
    scale: np.ndarray
    midrise: np.ndarray = None  # type: ignore[assignment]  # only until __post_init__

    def __post_init__(self) -> None:
        if self.midrise is None:
            object.__setattr__(self, "midrise", np.zeros(np.shape(self.bits), np.bool_))

    @property
    def code_bits(self) -> np.ndarray:
        """Bits of the two's complement that holds the codes of each block, int (row_groups, column_groups)."""
        return self.bits.astype(np.int64) + self.midrise

    @property
    def qmin(self) -> np.ndarray:
        """Smallest code of each block, int64 (row_groups, column_groups)."""
        return self.midrise - (np.int64(1) << (self.code_bits - 1))

    @property
    def qmax(self) -> np.ndarray:
        """Largest code of each block, int64 (row_groups, column_groups)."""
        return (np.int64(1) << (self.code_bits - 1)) - 1


@dataclass(frozen=True)
class Quantize:
    """values -> codes on the grid of the output buffer."""

    input: str
    output: str


@dataclass(frozen=True)
class Patchify:
    """codes (channels, h * patch, w * patch) -> codes (h * w, channels * patch * patch), or (h, w, ...).

    Inside a row the order is channel, patch row, patch column: the order of a flattened convolution weight.
    """

    input: str
    output: str
    patch: int


@dataclass(frozen=True)
class Linear:
    """codes (..., in) -> values (..., out): sum over column groups of acc * scale_x * scale_w, plus bias.

    An offset o of the input adds o * scale_w * (row sum of the weight codes); `freeze` folds it into the bias, so a
    backend multiplies codes only. Behind QuantizeRegions the input is twice as wide as the weight, which serves both halves.
    """

    input: str
    output: str
    weight: str
    bias: str


@dataclass(frozen=True)
class SplitHeads:
    """(..., N, parts * H * d) -> (..., H, N, d), the `part`-th of `parts` equal column ranges, on values or codes.

    Codes have one group, or groups along the last axis: one per part, which takes its own, or one per part and head, where
    each part takes its H groups and has them along the head axis.
    """

    input: str
    output: str
    part: int
    parts: int


@dataclass(frozen=True)
class MergeHeads:
    """codes (..., H, N, d) -> codes (..., N, H * d); the head groups become groups of the last axis."""

    input: str
    output: str


@dataclass(frozen=True)
class QueryKey:
    """codes q, k (..., H, N, d) -> values (..., H, N, N): q k^T * scale_q * scale_k * factor, per head."""

    query: str
    key: str
    output: str
    factor: float


@dataclass(frozen=True)
class Softmax:
    """Softmax over the last axis of values (..., H, N, N).

    bias  constant (H, N, N) added first, or "" (Swin's relative position bias)
    mask  constant (windows, N, N) added first, or "" (Swin's shifted windows)
    """

    input: str
    output: str
    bias: str = ""
    mask: str = ""


@dataclass(frozen=True)
class AttentionValue:
    """codes attention (..., H, N, N) and v (..., H, N, d) -> values (..., H, N, d), per head.

    Behind QuantizeRegions attention is (..., H, N, 2 N), and v serves both halves.
    """

    attention: str
    value: str
    output: str


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over the last axis of values, biased variance; weight and bias are constants (C,).

    For values up to 1e16 in size: beyond, the float32 sum of their squares may overflow in a backend, and no norm is left.
    """

    input: str
    output: str
    weight: str
    bias: str
    eps: float


@dataclass(frozen=True)
class Gelu:
    """Exact GELU, x * Phi(x), on values."""

    input: str
    output: str


@dataclass(frozen=True)
class Add:
    """values + values of the same shape."""

    left: str
    right: str
    output: str


@dataclass(frozen=True)
class Multiply:
    """values (..., C) * constant (C,): LayerScale; a constant of shape (1,) scales everything."""

    input: str
    output: str
    factor: str


@dataclass(frozen=True)
class Tokens:
    """values (N, C) -> (P + N, C): prefix tokens (class, distillation, register), then x + position.

    prefix    constant (P, C), its position embedding already added; P may be 0
    position  constant (N, C)
    """

    input: str
    output: str
    prefix: str
    position: str


@dataclass(frozen=True)
class WindowPartition:
    """(rows, cols, C) -> (windows, window_rows * window_cols, C), on codes or values.

    Roll by -shift, pad bottom and right with the code of zero to multiples of the window, then cut in row-major order.
    """

    input: str
    output: str
    window: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class WindowMerge:
    """The inverse of WindowPartition: (windows, T, C) -> (rows, cols, C); padding is dropped, the roll undone."""

    input: str
    output: str
    window: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class PatchMerge:
    """(rows, cols, C) -> (ceil(rows / 2), ceil(cols / 2), 4 C), on values or codes of one group; odd sides are zero-padded.

    Channel blocks in timm's order: (0, 0), (1, 0), (0, 1), (1, 1) as (row, column) inside the 2 x 2 square.
    """

    input: str
    output: str


@dataclass(frozen=True)
class SelectToken:
    """(N, C) -> (C,): one token, on values or codes."""

    input: str
    output: str
    index: int


@dataclass(frozen=True)
class MeanTokens:
    """values (N, C) or (rows, cols, C) -> (C,): the mean over all tokens from `start` on (start counts flattened tokens)."""

    input: str
    output: str
    start: int


Op = (
    Quantize
    | Patchify
    | Linear
    | SplitHeads
    | MergeHeads
    | QueryKey
    | Softmax
    | AttentionValue
    | LayerNorm
    | Gelu
    | Add
    | Multiply
    | Tokens
    | WindowPartition
    | WindowMerge
    | PatchMerge
    | SelectToken
    | MeanTokens
    | IntegerOp
)


@dataclass(frozen=True)
class Preprocess:
    """How an image file becomes the input buffer: timm's evaluation transform, as data.

    size           (height, width) of the input
    crop           the resized image is size / crop before the centre crop
    crop_mode      "center", "squash" or "border", see `preprocess`
    interpolation  "bicubic", "bilinear" or "nearest"
    mean, std      per channel, on RGB / 255
    labels         class names in order, or empty
    """

    size: tuple[int, int]
    crop: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A whole frozen network.

    name        free text, usually the timm model's name
    input       buffer of the normalised image, values (channels, height, width)
    output      buffer of the logits or features, values (classes,)
    ops         in order of execution; every op writes one buffer, every buffer is written once
    buffers     by name, the input included
    weights     by name, integer
    constants   by name, float32
    integers    by name, int32: what integer-only ops name
    preprocess  what to do with an image file
    """

    name: str
    input: str
    output: str
    ops: tuple[Op, ...]
    buffers: dict[str, Buffer]
    weights: dict[str, Weight]
    constants: dict[str, np.ndarray]
    preprocess: Preprocess
    metadata: dict[str, str] = field(default_factory=dict)
    integers: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def two_scaled(self) -> frozenset[str]:
        """Buffers of two-scaled codes: the outputs of QuantizeRegions, which no grid tells from two groups of a Quantize."""
        return frozenset(op.output for op in self.ops if isinstance(op, QuantizeRegions))
