"""The training step: what it learns, what it measures on the way, and ensembles in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax.models import SequenceClassifier
from rnn_jax.training.ensemble import over_members
from rnn_jax.training.optimizers import make_ensemble_optimizer
from rnn_jax.training.step import make_ensemble, train_step


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


CLIP = 0.5


def make_model(rngs):
    draw = nnx.initializers.normal(0.3)  # compiles faster than the orthogonal kernels
    return SequenceClassifier("gru(update_bias=1)", 1, 8, 1, recurrent_kernel_init=draw, rngs=rngs)


@jax.jit
def begin(key, rate):
    """Returns a model and the state of its optimizer, which holds the learning rate."""
    model = make_model(nnx.Rngs(key))
    return model, make_ensemble_optimizer(rate, CLIP).init(model)


def mean_squared_error(model, batch):
    return jnp.mean(jnp.square(model(batch["xs"]) - batch["target"]))


def batch_of(seed, size=16):
    xs = np.random.default_rng(seed).normal(size=(size, 6, 1)).astype(np.float32)
    return {"xs": xs, "target": xs[:, 0]}  # remember the first number


step_of_one = functools.partial(train_step, make_ensemble_optimizer(0.0, CLIP), mean_squared_error)
step = jax.jit(step_of_one)


def test_a_model_learns():
    (model, state), losses = begin(jax.random.key(0), 1e-2), []
    for k in range(200):
        model, state, profile = step(model, state, batch_of(k))
        losses.append(float(profile.loss))
    assert np.mean(losses[:5]) > 0.5
    assert np.mean(losses[-5:]) < 0.1


def test_the_update_is_that_of_the_plain_gradient_and_the_profile_is_of_the_model_before_it():
    (model, state), batch = begin(jax.random.key(0), 1e-2), batch_of(0)
    updated, _, profile = step(model, state, batch)

    @jax.jit
    def plain_step(model, batch):
        loss, grads = jax.value_and_grad(mean_squared_error)(model, batch)
        plain = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(1e-2))
        updates, _ = plain.update(grads, plain.init(model), model)
        return loss, optax.apply_updates(model, updates)

    loss, expected = plain_step(model, batch)
    np.testing.assert_allclose(profile.loss, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert profile.log10_norm["rnn"].shape == (6,)


def test_members_of_an_ensemble_are_their_own_runs_at_their_own_learning_rates():
    seeds, rates = [3, 5, 8], [1e-2, 1e-3, 1e-2]
    members = [begin(jax.random.key(seed), rate) for seed, rate in zip(seeds, rates)]
    ensemble = make_ensemble(make_model, seeds)
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *[state for _, state in members])
    step_of_all = over_members(step_of_one)
    batches = jax.tree.map(lambda *arrays: np.stack(arrays), *[batch_of(seed) for seed in seeds])
    for _ in range(3):
        ensemble, states, profiles = step_of_all(ensemble, states, batches)
    ensemble, profiles = jax.device_get((ensemble, profiles))

    for k, (seed, (model, state)) in enumerate(zip(seeds, members)):
        for _ in range(3):
            model, state, profile = step(model, state, batch_of(seed))
        np.testing.assert_allclose(profiles.log10_norm["rnn"][k], profile.log10_norm["rnn"], rtol=1e-4, atol=1e-4)
        for together, alone in zip(jax.tree.leaves(ensemble), jax.tree.leaves(model), strict=True):
            np.testing.assert_allclose(together[k], alone, rtol=1e-4, atol=1e-5)
