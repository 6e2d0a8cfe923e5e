"""Where the constants of `simd_math` come from: minimax fits by Lawson's reweighted least squares, numpy only.

  2^f     on [-1/2, 1/2], degree 5, relative error
  Phi(x)  = 1/2 + x R(x^2) on |x| <= 5.5, R = P/Q of degree 5/5; the error that is weighed is that of x Phi(x)

Run it to print them again. Lawson's rule: multiply each point's weight by its error until all peaks are level.
"""

from __future__ import annotations

from math import erf

import numpy as np

LIMIT = 5.5  # Phi(-5.5) = 1.9e-8: beyond it GELU is x or nothing, to float precision


def fit_exp2(degree: int, rounds: int = 400) -> tuple[np.ndarray, float]:
    f = np.cos(np.pi * np.arange(2001) / 2000) * 0.5
    powers = np.vander(f, degree + 1, increasing=True)
    weight, target = 2.0**-f, 2.0**f
    importance = np.full_like(f, 1.0 / len(f))
    for _ in range(rounds):
        root = np.sqrt(importance) * weight
        coefficients = np.linalg.lstsq(powers * root[:, None], target * root, rcond=None)[0]
        error = np.abs((powers @ coefficients - target) * weight)
        importance = importance * error / (importance * error).sum()
    return coefficients, float(error.max())


def fit_normal(degree: int, rounds: int = 400) -> tuple[np.ndarray, np.ndarray, float]:
    s = (np.cos(np.pi * np.arange(3001) / 3000) + 1) / 2 * LIMIT**2
    x = np.sqrt(np.maximum(s, 1e-16))
    target = 0.5 * np.array([erf(v / np.sqrt(2)) for v in x]) / x
    u = s / LIMIT**2  # well-conditioned variable; undone at the end
    powers = np.vander(u, degree + 1, increasing=True)
    importance, bottom = np.full_like(u, 1.0 / len(u)), np.ones_like(u)
    for _ in range(rounds):
        root = np.sqrt(importance) * (x * x + 0.02) / np.abs(bottom)
        system = np.concatenate([powers, -target[:, None] * powers[:, 1:]], axis=1)
        solution = np.linalg.lstsq(system * root[:, None], target * root, rcond=None)[0]
        top, bottom = powers @ solution[: degree + 1], powers @ np.r_[1.0, solution[degree + 1 :]]
        error = np.abs((top / bottom - target) * (x * x + 0.02))
        importance = importance * (error + 1e-12 * error.max())
        importance /= importance.sum()
    undo = LIMIT ** (-2.0 * np.arange(degree + 1))
    return solution[: degree + 1] * undo, np.r_[1.0, solution[degree + 1 :]] * undo, float(error.max())


if __name__ == "__main__":
    exp2, exp2_error = fit_exp2(5)
    top, bottom, normal_error = fit_normal(5)
    print("exp2", [f"{c:.9g}f" for c in exp2], f"relative error {exp2_error:.1e}")
    print("P", [f"{c:.9g}f" for c in top])
    print("Q", [f"{c:.9g}f" for c in bottom], f"error of x Phi(x) {normal_error:.1e}")
