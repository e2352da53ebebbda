"""The largest Lyapunov exponent of a random tanh network of infinitely many units.

References:
  Molgedey, Schuchhardt, Schuster 1992, "Suppressing chaos in neural networks by noise", Phys. Rev. Lett. 69(26).
"""

import math

import numpy as np


def mean_field_exponent(gain: float) -> float:
    """Returns the largest Lyapunov exponent of h' = tanh(g J h), J_ij from N(0, 1/N), for N -> infinity, nats a step.

    It is log g up to g = 1. Beyond, with q = g^2 < tanh(sqrt(q) z)^2 > over z from N(0, 1), it is
    log(g^2 < tanh'(sqrt(q) z)^2 >) / 2.

    Args:
      gain: g, above 0.
    """
    z, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    q = 1.0 if gain > 1 else 0.0
    for _ in range(10_000):  # a contraction, slow near g = 1
        new = gain**2 * float(weights @ np.tanh(math.sqrt(q) * z) ** 2)
        if abs(new - q) < 1e-14:
            break
        q = new
    slope = 1 - np.tanh(math.sqrt(q) * z) ** 2
    return 0.5 * math.log(gain**2 * float(weights @ slope**2))
