"""One optimizer step that also measures the gradient flow, for one model or an ensemble in one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rnn_jax.flow import GradientProfile, gradient_profile

PyTree = Any


def make_ensemble(make_model: Callable[[nnx.Rngs], nnx.Module], seeds: Sequence[int]) -> nnx.Module:
    """Builds one model for each seed, stacked along a leading axis of every parameter.

    Member k is the model that `make_model(nnx.Rngs(seeds[k]))` builds.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return jax.jit(jax.vmap(lambda key: make_model(nnx.Rngs(key))))(keys)


def train_step(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[..., jax.Array],
    model: PyTree,
    opt_state: PyTree,
    batch: PyTree,
) -> tuple[PyTree, PyTree, GradientProfile]:
    """Returns the model and optimizer state after one update, and the profile before it.

    The profile comes from the backward pass of the update itself. For an ensemble, map over the last three
    (`rnn_jax.training.ensemble.over_members`).

    Args:
      optimizer: an optax transformation.
      loss_fn: `loss_fn(model, batch) -> scalar`.
      model, opt_state: before the update.
      batch: what the loss takes.
    """
    profile = gradient_profile(loss_fn, model, batch)
    updates, opt_state = optimizer.update(profile.grads, opt_state, model)
    return optax.apply_updates(model, updates), opt_state, profile
