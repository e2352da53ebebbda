"""One optimiser step that also measures the gradient flow, for one model or an ensemble in one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rnn_jax.flow import GradientProfile, gradient_profile
from rnn_jax.tasks.task import NOT_ASKED
from rnn_jax.training.ensemble import over_members

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
    """Returns the model and optimiser state after one update, and the profile before it.

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


def evaluate(
    score: Callable[..., jax.Array],
    ensemble: nnx.Module,
    examples: dict[str, np.ndarray],
    batch_size: int = 512,
) -> np.ndarray:
    """Returns the mean score of each member over all examples, `[seeds]`.

    Args:
      score: `(model, batch) -> scalar`, a mean over the batch, or over the steps that its "labels" ask for.
      ensemble: as `make_ensemble` builds it.
      examples: arrays `[N, ...]`.
      batch_size: how many examples to evaluate at a time.
    """
    scores = _of_each_member(score)
    count = len(next(iter(examples.values())))
    parts, weights = [], []
    for start in range(0, count, batch_size):
        batch = {name: array[start : start + batch_size] for name, array in examples.items()}
        weights.append(np.sum(batch["labels"] != NOT_ASKED) if "labels" in batch else min(batch_size, count - start))
        parts.append(np.asarray(scores(ensemble, batch), np.float64) * weights[-1])
    return np.sum(parts, axis=0) / np.sum(weights)


@functools.cache  # a function of its own for each call would be compiled at each call
def _of_each_member(score: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return over_members(score, in_axes=(0, None))
