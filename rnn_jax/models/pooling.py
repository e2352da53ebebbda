"""Pools: one vector a sequence from the outputs of a recurrent network at its true steps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array

POOLS = ("last", "mean", "max", "attention")


def last_step(ys: Array, lengths: Array | None = None) -> Array:
    """Returns `ys [*batch, time, H]` at the last step of each sequence, `[*batch, H]`.

    With `lengths`, that is the last true step; a sequence of length 0 gives the output of its first (padded) step, 0.
    """
    _check_steps(ys)
    if lengths is None:
        return ys[..., -1, :]
    index = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(ys, index[..., None, None], axis=-2)[..., 0, :]


def mean_over_steps(ys: Array, lengths: Array | None = None) -> Array:
    """Returns the mean of `ys [*batch, time, H]` over the true steps, `[*batch, H]`; 0 if there is none."""
    _check_steps(ys)
    wide = at_least_float32(ys)
    if lengths is None:
        return jnp.mean(wide, axis=-2).astype(ys.dtype)
    total = jnp.sum(jnp.where(steps_within(lengths, ys.shape[-2]), wide, jnp.zeros_like(wide)), axis=-2)
    return (total / jnp.maximum(lengths, 1)[..., None].astype(wide.dtype)).astype(ys.dtype)


def max_over_steps(ys: Array, lengths: Array | None = None) -> Array:
    """Returns the largest of `ys [*batch, time, H]` over the true steps, `[*batch, H]`; 0 if there is none."""
    _check_steps(ys)
    if lengths is None:
        return jnp.max(ys, axis=-2)
    lowest = jnp.full_like(ys, jnp.finfo(ys.dtype).min)
    largest = jnp.max(jnp.where(steps_within(lengths, ys.shape[-2]), ys, lowest), axis=-2)
    return jnp.where((lengths > 0)[..., None], largest, jnp.zeros_like(largest))


class AttentionPool(nnx.Module):
    r"""Mean of the outputs over time, weighted by how well each of them answers a learned query.

    .. math::
        u_t = \tanh(h_t W + b), \qquad
        a_t = \frac{\exp(u_t \cdot q)}{\sum_s \exp(u_s \cdot q)}, \qquad
        \mathrm{pooled} = \sum_t a_t h_t

    over the true steps t and s: the word attention of Yang et al.; without b, one hop of Lin et al.

    Args:
      features: H of the outputs, and of u and q.
      dtype, param_dtype: as in `flax.nnx.Linear`.
      rngs: draws W and q.

    References:
      Yang, Yang, Dyer, He, Smola, Hovy 2016, "Hierarchical attention networks for document classification", NAACL.
      Lin, Feng, dos Santos, Yu, Xiang, Zhou, Bengio 2017, "A structured self-attentive sentence embedding",
      arXiv 1703.03130.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, **dtypes: Any):
        self.projection = nnx.Linear(features, features, **dtypes, rngs=rngs)
        self.query = nnx.Linear(features, 1, use_bias=False, **dtypes, rngs=rngs)

    def weights(self, ys: Array, lengths: Array | None = None) -> Array:
        """Returns a_t for `ys [*batch, time, H]`, `[*batch, time]`, float32 at least.

        They sum to 1 over the true steps and are exactly 0 beyond; all are 0 in a sequence of length 0.
        """
        _check_steps(ys)
        scores = at_least_float32(self.query(jnp.tanh(self.projection(ys))))
        if lengths is None:
            return jax.nn.softmax(scores, axis=-2)[..., 0]
        true_steps = steps_within(lengths, ys.shape[-2])
        # Not -inf, whose softmax is NaN where no step is true.
        scores = jnp.where(true_steps, scores, jnp.full_like(scores, jnp.finfo(scores.dtype).min))
        return jnp.where(true_steps, jax.nn.softmax(scores, axis=-2), jnp.zeros_like(scores))[..., 0]

    def __call__(self, ys: Array, lengths: Array | None = None) -> Array:
        """Pools `ys [*batch, time, H]`, finite at padded steps, to `[*batch, H]`."""
        return jnp.einsum("...t,...th->...h", self.weights(ys, lengths).astype(ys.dtype), ys)


def _check_steps(ys: Array) -> None:
    """Raises ValueError if there are no steps: `lengths` of 0 are true steps that are none, and pool to 0."""
    if ys.shape[-2] == 0:
        raise ValueError(f"ys has shape {ys.shape}, of no time steps; allowed: one or more to pool.")


def steps_within(lengths: Array, time: int) -> Array:
    """Returns which steps are true ones, bool `[*batch, time, 1]`."""
    lengths = jnp.asarray(lengths, jnp.int32)[..., None, None]
    return jnp.arange(time, dtype=jnp.int32).reshape((1,) * (lengths.ndim - 2) + (time, 1)) < lengths


def at_least_float32(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
