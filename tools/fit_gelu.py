"""Fits the polynomial of core/gelu.h: Phi(x) = 1/2 + x P(s), s = 2 (x / clamp)^2 - 1, so that GELU(x) = x Phi(x).

    python tools/fit_gelu.py > core/gelu.h

Least squares on Chebyshev nodes, reweighted (Lawson) until the largest error of GELU is level over the range: a minimax
fit. The error is then measured as the kernels compute it, in float32 with fused multiply-add, also past the clamp.
"""

import math

import numpy as np

CLAMP = 4.5
TERMS = 9
NODES = 4000


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def fit() -> np.ndarray:
    x = CLAMP * np.cos(np.linspace(np.pi / 2, 0, NODES + 1)[1:])
    scaled = 2 * (x / CLAMP) ** 2 - 1
    basis = np.polynomial.chebyshev.chebvander(scaled, TERMS - 1) * (x * x)[:, None]
    target = (normal_cdf(x) - 0.5) * x
    weight = np.ones(NODES)
    for _ in range(300):
        root = np.sqrt(weight)[:, None]
        coefficients = np.linalg.lstsq(basis * root, target * root[:, 0], rcond=None)[0]
        weight *= np.abs(basis @ coefficients - target) + 1e-12
        weight /= weight.sum()
    # powers of s, which runs over -1 … 1: in powers of x^2 float32 would lose three digits to cancellation
    return np.polynomial.chebyshev.cheb2poly(coefficients).astype(np.float32)


def gelu(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """As core/kernels/body.inc does it; float64 holds a float32 product exactly, which makes the sum a fused one."""
    c = np.clip(x, -np.float32(CLAMP), np.float32(CLAMP))
    t = ((c * c).astype(np.float64) * np.float32(2 / CLAMP**2) - 1).astype(np.float32).astype(np.float64)
    r = np.full_like(x, p[-1])
    for a in p[-2::-1]:
        r = (r.astype(np.float64) * t + a).astype(np.float32)
    phi = (c.astype(np.float64) * r + 0.5).astype(np.float32)
    return np.asarray(x * phi)


def main() -> None:
    p = fit()
    x = np.linspace(-20, 20, 800_001).astype(np.float32)
    error = np.abs(gelu(x, p).astype(np.float64) - x * normal_cdf(x.astype(np.float64)))
    inside = error[np.abs(x) <= CLAMP].max()
    values = ",\n    ".join(f"{float(v)!r}f" for v in p)
    print(f"""// By tools/fit_gelu.py: the normal distribution function, Phi(x) = 1/2 + x P(s), s = 2 (x / clamp)^2 - 1.
// Largest error of x Phi(x) in float32: {inside:.1e} up to the clamp, {error.max():.1e} up to |x| = 20.
#pragma once

namespace thinbert {{

constexpr float kGeluClamp = {CLAMP}f;
constexpr float kGeluStretch = {float(np.float32(2 / CLAMP**2))!r}f;
constexpr int kGeluTerms = {TERMS};
constexpr float kGelu[kGeluTerms] = {{
    {values},
}};

}}  // namespace thinbert""")


if __name__ == "__main__":
    main()
