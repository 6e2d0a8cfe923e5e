"""The normative arithmetic of the integer-only ops: rescaling, exponentials, roots and logarithms by shifts, in int64.

  dyadic          a real factor as (m, e): m / 2^e, m of 31 bits
  requantize      R(x; m, e) = (x m + 2^(e-1)) >> e                       a real factor m / 2^e, half rounds up
  shift_exp       E(t; unit, n) ~ unit 2^n e^(t / unit)                   for integers t <= 0
  integer_sqrt    floor(sqrt(n))
  floor_log2      floor(log2(n))

`integer_ops` states the formulas and their sources. Every function is exact: it returns the integer of its formula for
every input in its stated range, whatever numpy's float64 rounds on the way. The torch side and the native engine are
tested against these functions, number by number.
"""

from __future__ import annotations

import numpy as np

Integers = np.ndarray | np.integer | int


def requantize(x: np.ndarray, multiplier: Integers, shift: Integers) -> np.ndarray:
    """(x m + 2^(e-1)) >> e, element by element with broadcasting, as int64.

    Exact for |x| <= 2^31, |m| < 2^31 and 1 <= e <= 62: the product and its half stay below 2^63.
    """
    shift = np.asarray(shift, np.int64)
    half = np.int64(1) << (shift - 1)
    return (x.astype(np.int64) * np.asarray(multiplier, np.int64) + half) >> shift


def dyadic(factor: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Multiplier and shift, both int32 (groups,), of real factors: m / 2^e with 2^30 <= |m| < 2^31, shorter below 2^-31.

    Raises ValueError for a factor of 2^29 or more, which no shift in 1..62 and no 32-bit multiplier can express.
    """
    mantissa, exponent = np.frexp(np.atleast_1d(np.asarray(factor, np.float64)))
    multiplier, shift = np.rint(mantissa * 2.0**31).astype(np.int64), 31 - exponent.astype(np.int64)
    full = np.abs(multiplier) == 1 << 31  # a mantissa just below 1 was rounded up to it
    multiplier, shift = np.where(full, multiplier // 2, multiplier), shift - full
    if (shift < 1).any():
        raise ValueError(f"the factor {np.max(np.abs(factor)):g} is too large for a multiplier, allowed: below 2^29")
    tiny = np.maximum(shift - 62, 0)
    multiplier = np.where(tiny > 0, np.rint(np.ldexp(mantissa, 31 - tiny.astype(int))), multiplier)
    return multiplier.astype(np.int32), np.minimum(shift, 62).astype(np.int32)


def shift_exp(t: np.ndarray, unit: int, fraction: int) -> np.ndarray:
    """unit 2^fraction e^(t / unit) for integers t <= 0, as int64; monotone in t and never below unit.

    t log2(e) ~ t + t/2 - t/16 is split into -q whole powers of two and a rest r in (-unit, 0], and 2^(r / unit) is taken
    as 1 + r / (2 unit). Exponents below -fraction count as -fraction.
    """
    t = t.astype(np.int64)
    t = np.maximum(t + (t >> 1) - (t >> 4), -fraction * unit)
    q = -t // unit
    r = t + q * unit
    return ((r + 2 * unit) << (fraction - q)) >> 1


def integer_sqrt(n: np.ndarray) -> np.ndarray:
    """floor(sqrt(n)) of int64 in 0..2^62. The float64 root is off by one at most, and the squares tell."""
    root = np.sqrt(n.astype(np.float64)).astype(np.int64)
    root -= root * root > n
    return root + ((root + 1) * (root + 1) <= n)


def floor_log2(n: np.ndarray) -> np.ndarray:
    """floor(log2(n)) of positive int64. Where float64 rounds n up to a power of two, the power is above n, and that shows."""
    exponent = np.minimum(np.frexp(n.astype(np.float64))[1].astype(np.int64) - 1, 62)
    return exponent - ((np.int64(1) << exponent) > n)
