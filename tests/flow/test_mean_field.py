"""The theory of random tanh networks, against what is known of it and against a large network."""

import math

import numpy as np
import pytest

from rnn_jax.flow.mean_field import mean_field_exponent


def test_the_theory_is_log_g_in_order_and_crosses_0_at_gain_1():
    for gain in (0.3, 0.8, 1.0):
        assert mean_field_exponent(gain) == pytest.approx(math.log(gain), abs=1e-12)
    rising = [mean_field_exponent(gain) for gain in (1.05, 1.2, 1.5, 2.0)]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.01  # it rises like the square of the distance from 1


def test_the_theory_is_that_of_random_networks_of_many_units():
    """Against the growth of a tangent vector in one network of 1,000 units, without this library."""
    rng, gain, units = np.random.default_rng(0), 1.6, 1000
    matrix = gain * rng.normal(size=(units, units)) / math.sqrt(units)
    h, tangent, growth = rng.normal(size=units), rng.normal(size=units), []
    for step in range(160):
        h = np.tanh(matrix @ h)
        tangent = (1 - h**2) * (matrix @ tangent)
        norm = np.linalg.norm(tangent)
        tangent /= norm
        if step >= 60:
            growth.append(math.log(norm))
    assert np.mean(growth) == pytest.approx(mean_field_exponent(gain), abs=0.03)
