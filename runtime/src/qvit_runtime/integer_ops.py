"""The ops of integer-only and log2 methods (I-ViT, FQ-ViT, TSPTQ-ViT); `program` lists them beside its own.

The ops of `program` multiply integers and do the rest in float. Here nothing is float: each op states its arithmetic in
integers, rounding included, and every backend gives the same integers bit for bit. `>>` is the arithmetic shift (floor),
`//` is floor division, `log2` and square roots are exact floors.

Wide codes. A `Grid` may have bits 16 (the residual stream, clipped to [-2^15, 2^15 - 1]) or 32 (the sums of a product,
never clipped: `check` refuses a program whose sums could leave int32). Wide grids are signed, have no offset, and one width
for all groups. Only ops of this file read or write wide codes, and those that move elements about (SplitHeads, MergeHeads,
WindowPartition, WindowMerge, PatchMerge, SelectToken). Where nothing else is said, codes here have no offset, inputs may
have any width, and outputs have the grid that the program declares, of up to 16 bits.

Requantization (I-ViT, arXiv 2207.01405, section 3.1). A real factor r = m / 2^e is applied to an integer x as

    R(x; m, e) = (x * m + 2^(e-1)) >> e            |m| < 2^31, 1 <= e <= 62, products in 64 bits; half rounds up

The authors round half to even in double precision; the shift needs no float. Multipliers, shifts, biases and the like are
int32 arrays in `Program.integers`, named by the ops, with |element| < 2^31. A multiplier or shift has one entry, or one per
group of the buffer that it is applied to (along that buffer's group axis).

Exponentials by shifts (I-ViT, equations 10 to 14), for an integer t <= 0 that stands for t / unit powers of e:

    t <- max(t + (t >> 1) - (t >> 4), -n unit);  q = (-t) // unit;  r = t + q unit                     -unit < r <= 0
    E(t; unit, n) = ((r + 2 unit) << (n - q)) >> 1                                ~ unit 2^n e^(t / unit), t log2(e) by shifts

with unit = ceil(1 / scale) and n = `fraction`; 2^(r/unit) is taken as 1 + r / (2 unit).
"""

from __future__ import annotations

from dataclasses import dataclass

WIDE_BITS = (16, 32)


@dataclass(frozen=True)
class Dequantize:
    """codes of any width -> values: code * scale + offset in float64, rounded to float32 at the end."""

    input: str
    output: str


@dataclass(frozen=True)
class QuantizeRegions:
    """values (..., K) -> codes (..., 2 K): two-scaled codes (TSPTQ-ViT, arXiv 2305.12901, our reconstruction).

    The output grid is unsigned with two groups on the last axis: low region, scale s and offset o; high region, scale
    s 2^m and offset 0. A value x is in one region, the other has code 0, so that x ~ o + s low + s 2^m high:

        y = (x - o) / s (float32);  c = rint(y), or 0 below it;  if c <= qmax_low: low = c, high = 0
        else: low = 0, high = min(rint((x - o) / (s 2^m)), qmax_high)

    A k-bit two-scaled code is one region flag and k - 1 bits of magnitude: both groups have k - 1 bits (1..7), and m is in
    1..k - 1, so that the code just above the border is at least one and the whole is monotone.
    Readers: Linear and AttentionValue only, whose weight (out, K) or value (H, K, d) then serves both halves. For Linear, o
    is folded into the bias by whoever emits, once, as the offset of the low half; for AttentionValue, o is 0.
    """

    input: str
    output: str


@dataclass(frozen=True)
class LinearAccumulate:
    """codes of up to 8 bits (..., in) -> 32-bit codes (..., out): sum_i x_i w_oi + bias_o.

    weight  one column group; the input has one group
    bias    integers (out,), or ""
    The output grid has one group, or one per output channel on the last axis.
    """

    input: str
    output: str
    weight: str
    bias: str


@dataclass(frozen=True)
class QueryKeyAccumulate:
    """codes q, k of up to 8 bits (..., H, N, d) -> 32-bit codes (..., H, N, N): q k^T. All: one group, or one per head."""

    query: str
    key: str
    output: str


@dataclass(frozen=True)
class AttentionValueAccumulate:
    """codes of up to 8 bits, attention (..., H, N, N) and v (..., H, N, d) -> 32-bit codes (..., H, N, d): attention v.

    All: one group, or one per head.
    """

    attention: str
    value: str
    output: str


@dataclass(frozen=True)
class Requantize:
    """codes -> codes of the same shape: clip(R(x; multiplier, shift)) to the grid of the output.

    multiplier, shift  integers (1,), or (groups,) of the input's grid along its axis
    The output's grid has one group, or any number of groups, along the input's group axis where the input has several (the
    fused qkv of ViT and Swin has three: q, k, v).
    """

    input: str
    output: str
    multiplier: str
    shift: str


@dataclass(frozen=True)
class AddRequantize:
    """codes + codes -> codes of the same shape: clip(R(left) + R(right)), each rounded by itself, to the output's grid.

    left_multiplier, left_shift, right_multiplier, right_shift  as in Requantize, each for the groups of its own side
    The output's grid has one group.
    """

    left: str
    right: str
    output: str
    left_multiplier: str
    left_shift: str
    right_multiplier: str
    right_shift: str


@dataclass(frozen=True)
class IntegerTokens:
    """codes (N, C) -> codes (P + N, C): prefix rows as they are, then clip(R(x) + position).

    prefix    integers (P, C), codes of the output and inside its range; P may be 0
    position  integers (N, C) in steps of the output
    The output's grid has one group.
    """

    input: str
    output: str
    prefix: str
    position: str
    multiplier: str
    shift: str


@dataclass(frozen=True)
class SumTokens:
    """codes (N, C) or (rows, cols, C) of up to 16 bits -> 32-bit codes (C,): the sum over all tokens from `start` on.

    start counts flattened tokens, as in MeanTokens. The input has one group, or several along the channels; the output has
    one, or as many.
    """

    input: str
    output: str
    start: int


@dataclass(frozen=True)
class IntegerLayerNorm:
    """LayerNorm over the last axis with an integer square root: codes of up to 16 bits (..., C) -> codes (..., C).

        x_c = (code_c - zero) << exponent_c          exponent: integers (C,) in 0..8, or "" for none (FQ-ViT's powers of
                                                     two; the input then has up to 8 bits)
        mu  = (2 sum_c x_c + C) // (2 C);   y = x - mu;   k = max(1, floor(sqrt(sum_c y_c^2)))
        z_c = (y_c * ((2^31 - 1) // k)) >> 1         in [-2^30, 2^30): y / k in units of 2^-30, that is LayerNorm / sqrt(C)
        out = clip((((z_c * multiplier_c) >> (shift - 8)) + bias_c + 128) >> 8)

    multiplier  integers (C,), signed: gamma sqrt(C) / s_out as multiplier / 2^(shift - 30)
    shift       9..62, one for all channels
    bias        integers (C,): (beta - offset_out) / s_out in units of 1 / 256 code
    zero        a code of the input, the one that stands for 0: -offset / scale of every group of its grid
    Input and output have one group, or several along the channels; both may have an offset.
    I-ViT, section 3.4, with these differences: the square root is exact for every input (theirs: ten Newton steps from
    2^16), and beta is not divided by gamma, so that a gamma near zero is harmless.
    """

    input: str
    output: str
    multiplier: str
    bias: str
    shift: int
    exponent: str = ""
    zero: int = 0


@dataclass(frozen=True)
class ShiftGelu:
    """x sigmoid(1.702 x) by shifts (I-ViT, section 3.3), element by element: codes of up to 8 bits -> 32-bit codes.

        M = max(0, x);  e1 = E(x - M);  e2 = E(-M);  F = (2^31 - 1) // (e1 + e2);  out = x * ((e1 * F) >> 23)

    The input has one group; unit = ceil(1 / (1.702 scale)); the output stands for out * scale / 256. The sigmoid has 8 bits,
    theirs 7. `check` demands 2 unit 2^fraction < 2^31.
    The authors' pivot M is the largest x of the row. With it both exponentials of a small x underflow as soon as the row
    reaches `fraction` powers of two, the sigmoid becomes 1/2, and -128 comes out as -64: at 23 digits that begins at 8-bit
    scales of 0.07. With a pivot of its own, one of e1 and e2 is always unit 2^fraction, and nothing depends on the row.
    fraction: any from 8 to 16 is within one step of the exact function, for scales 0.02 to 0.2; larger ones leave too few
    digits for F. 14 is a good choice.
    """

    input: str
    output: str
    unit: int
    fraction: int


@dataclass(frozen=True)
class Shiftmax:
    """Softmax over the last axis by shifts (I-ViT, section 3.2): codes of up to 16 bits (..., H, N, N) -> unsigned codes.

        t = x + bias + mask;  e = E(t - max t);  F = (2^31 - 1) // sum e
        out = min((((e * F) >> (30 - b)) + 1) >> 1, 2^b - 1)                                          b bits, scale 2^-b

    bias  integers (H, N, N) in codes of the input, or ""       mask  integers (windows, N, N) likewise, or ""
    Both within +-2^28, so that everything in front of the sum fits 32 bits.
    The input has one group, the output one of 2..8 bits; unit = ceil(1 / scale). `check` demands max(N, 2) unit 2^fraction
    < 2^31.
    The authors take the floor, of 16 bits; of 8 bits a floor would lose half a step of every probability, a third of a row
    of 197 even ones. So the code is rounded here.
    fraction: results are as good as they get from 10 digits on, while N unit 2^fraction stays below 2^29 (F needs its digits
    too). 12 is a good choice for 8-bit scores; the error that is left is that of unit, a whole number, and of 1 + r / 2.
    """

    input: str
    output: str
    unit: int
    fraction: int
    bias: str = ""
    mask: str = ""


@dataclass(frozen=True)
class LogIntSoftmax:
    """Softmax over the last axis with log2 output (FQ-ViT, arXiv 2111.13824): codes of up to 8 bits -> log2 codes.

        x <- x + bias + mask;  d = min(max x - x, 30 ln2);  q = d // ln2;  r = q ln2 - d                  -ln2 < r <= 0
        e = (r (r + linear) + constant) << (30 - q)                          64 bits: `check` demands N constant 2^30 < 2^62
        R = floor(sum e / e + 1/2);  f = floor(log2 R);  code = f + 1 if 2 R >= 3 2^f else f
        code = min(code, 2^b - 1)

    A code c stands for 2^-c, the largest code 2^b - 1 for 0. (The authors have 2^b probabilities and zero besides, which is
    2^b + 1 values.) Between codes f and f + 1 lies R = 1.5 2^f, not sqrt(2) 2^f; as in their code sum e / e is rounded first,
    so in terms of sum e / e the thresholds are 1.5, 2.5, 5.5, 11.5, ...
    bias, mask: integers in codes of the input, with the shapes and limits of Shiftmax. The input has one group.
    ln2, linear, constant  of i-exp for the scale S of the input: ceil(ln 2 / S), floor(0.96963238 / 0.35815147 / S),
                           floor(1 / 0.35815147 / S^2); `check` demands that the parabola rises on (-ln2, 0] and
                           stays above 0, which holds for S <= 0.6
    The output's grid is unsigned, b bits, one group, scale 1: only ShiftAttentionValue may read it.
    """

    input: str
    output: str
    ln2: int
    linear: int
    constant: int
    bias: str = ""
    mask: str = ""


@dataclass(frozen=True)
class ShiftAttentionValue:
    """log2 codes (..., H, N, N) and codes v (..., H, N, d) -> values (..., H, N, d), by shifts instead of products.

        acc = sum_k v_k << (fraction - c_k) over the k with c_k <= fraction;   out = acc * scale_v / 2^fraction

    fraction = min(2^b - 2, 20), see `shift_fraction`: the code 2^b - 1 for 0 is never in the sum. At 4 bits sums of 256
    tokens fit 32 bits, else 64 bits are used. acc is exact; float64(acc) * scale_v is one float64 product, divided by a
    power of two and rounded to float32. v has up to 8 bits, one group, or one per head.
    """

    attention: str
    value: str
    output: str


def shift_fraction(bits: int) -> int:
    """How many binary digits ShiftAttentionValue keeps behind the point, for log2 codes of this width."""
    return min(2**bits - 2, 20)


IntegerOp = (
    Dequantize
    | QuantizeRegions
    | LinearAccumulate
    | QueryKeyAccumulate
    | AttentionValueAccumulate
    | Requantize
    | AddRequantize
    | IntegerTokens
    | SumTokens
    | IntegerLayerNorm
    | ShiftGelu
    | Shiftmax
    | LogIntSoftmax
    | ShiftAttentionValue
)
