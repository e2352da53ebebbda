"""The horizon: how far back a gradient reaches."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["lag_e", "lag_1000"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Horizon:
    """The lag from which on the norm stays below a share of its largest value; `time` if it never does.

    -1 where the profile holds a NaN or +inf: then it is unknown.

    Attributes:
      lag_e: for 1/e, int32 `[...]`.
      lag_1000: for 1/1000, int32 `[...]`.
    """

    lag_e: Array
    lag_1000: Array


@partial(jax.jit, static_argnames="reverse")
def horizon(log10_norm: Array, *, reverse: bool = False) -> Horizon:
    """Returns the horizons of a gradient profile.

    The smallest lag T - t from which the norm stays below 1/e, and below 1/1000, of its largest value. A gradient that
    lives over the whole sequence has the horizon T: beyond what the sequence can tell. A profile of zeros has 0, one
    with a NaN or +inf in it has -1: how far back such a gradient reaches is unknown.

    Args:
      log10_norm: `[..., time]`, as in `GradientProfile.log10_norm`.
      reverse: the profile of a layer that ran backward: lags count from the first step.
    """
    by_lag = log10_norm if reverse else jnp.flip(log10_norm, -1)
    largest = jnp.max(by_lag, axis=-1, keepdims=True)  # NaN if there is one
    known = largest[..., 0] < jnp.inf

    def beyond(log10_share: float) -> Array:
        above = (by_lag >= largest + log10_share) & (by_lag > -jnp.inf)
        lags = jnp.arange(1, by_lag.shape[-1] + 1, dtype=jnp.int32)
        lag = jnp.max(jnp.where(above, lags.reshape((1,) * (above.ndim - 1) + lags.shape), 0), axis=-1)
        return jnp.where(known, lag, jnp.full_like(lag, -1))

    return Horizon(lag_e=beyond(-math.log10(math.e)), lag_1000=beyond(-3.0))
