"""Claims about the horizon, on profiles made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import flow


def horizons(by_lag):
    """Returns (e, thousand) for a profile given by lag: lag 0 first."""
    result = flow.horizon(np.asarray(by_lag, np.float32)[::-1])
    return int(result.lag_e), int(result.lag_1000)


def by_definition(by_lag, share):
    """The smallest lag from which on the norm stays below a share of its largest value, by trying one after another."""
    by_lag = np.asarray(by_lag, np.float64)
    for lag in range(len(by_lag) + 1):
        if np.all(by_lag[lag:] < by_lag.max() + np.log10(share)):
            return lag
    raise AssertionError("unreachable: nothing is left at lag T")


@pytest.mark.parametrize(
    ("by_lag", "e", "thousand"),
    [
        ([0.0, -0.1, -0.2, -0.3, -0.4], 5, 5),  # never falls to 1/e = 10**-0.434: the whole sequence
        ([0.0, 0.0, 0.0], 3, 3),
        ([0.0, 1.0, 2.0, 3.0], 4, 4),  # grows on its way back: the last lag is the largest
        ([0.0, -0.4, -0.5, -2.9, -3.1, -4.0], 2, 4),
        ([-200.0, -200.4, -200.5, -202.9, -203.1], 2, 4),  # what counts is the share, not the size
        ([500.0, 499.6, 499.5, 496.9], 2, 3),
        ([0.0, -5.0, -0.2, -5.0, -5.0], 3, 3),  # down and up again: it stays below from lag 3 on
        ([-2.0, 0.0, -0.5, -2.0, -4.0], 2, 4),  # the largest is not the first
        ([-np.inf, 0.0, -0.5, -4.0], 2, 3),  # a loss of the last output: nothing at lag 0
        ([0.0, -3.0, -3.1], 1, 2),  # at 1/1000 it is not below
        ([0.0, -np.inf, -np.inf], 1, 1),
        ([0.0, -np.inf, -0.1], 3, 3),
        ([-np.inf, -np.inf, -np.inf], 0, 0),  # no gradient at all reaches nowhere
        ([7.0], 1, 1),
        ([-np.inf], 0, 0),
    ],
)
def test_horizons_of_profiles_made_by_hand(by_lag, e, thousand):
    assert horizons(by_lag) == (e, thousand)
    if np.any(np.isfinite(by_lag)):
        assert (by_definition(by_lag, 1 / np.e), by_definition(by_lag, 1e-3)) == (e, thousand)


def test_random_profiles_have_the_horizons_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        by_lag = np.cumsum(rng.normal(-0.1, 0.5, size=20)).astype(np.float32)
        assert horizons(by_lag) == (by_definition(by_lag, 1 / np.e), by_definition(by_lag, 1e-3))


@pytest.mark.parametrize("w", [0.3, 0.9, 0.99, 0.997])
def test_an_exponential_has_the_horizon_of_its_closed_form(w):
    by_lag = np.arange(5000) * np.log10(w)
    assert horizons(by_lag) == (np.ceil(1 / -np.log(w)), np.ceil(np.log(1000) / -np.log(w)))


def test_the_horizon_of_a_layer_that_ran_backward_counts_from_the_first_step():
    profile = jnp.array([0.0, -0.4, -1.0, -3.5], jnp.float32)
    result = flow.horizon(profile, reverse=True)
    assert (int(result.lag_e), int(result.lag_1000)) == (2, 3)
    flipped = flow.horizon(profile[::-1])
    assert (int(flipped.lag_e), int(flipped.lag_1000)) == (2, 3)
    assert int(flow.horizon(profile).lag_e) == 4


def test_leading_axes_are_kept_and_the_result_goes_through_jit_and_vmap():
    profiles = jnp.array([[[0.0, 0.0, 0.0], [-9.0, -1.0, 0.0]], [[-np.inf, 0.0, -9.0], [-np.inf, -np.inf, -np.inf]]])
    expected = np.array([[3, 1], [2, 0]])
    for run in (flow.horizon, jax.jit(flow.horizon), jax.vmap(flow.horizon)):
        result = run(profiles)
        np.testing.assert_array_equal(result.lag_e, expected)
        assert result.lag_e.dtype == result.lag_1000.dtype == jnp.int32
    np.testing.assert_array_equal(flow.horizon(profiles).lag_1000, [[3, 2], [2, 0]])


@pytest.mark.parametrize("by_lag", [[np.nan] * 3, [0.0, np.nan, 0.0], [0.0, np.inf, -1.0], [-np.inf, np.nan, 0.0]])
def test_a_profile_that_is_not_finite_has_no_horizon(by_lag):
    """Neither the full length, which would say that the gradient lives, nor 0, which would say that it is gone."""
    assert horizons(by_lag) == (-1, -1)
    together = flow.horizon(np.array([by_lag, [0.0, 0.0, -9.0]]))
    np.testing.assert_array_equal(together.lag_e, [-1, 3])
