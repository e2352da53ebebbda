"""Optimizers by name: each is the plain composition in optax that its description says."""

import math
import re

import jax
import numpy as np
import optax
import pytest

from rnn_jax.training.optimizers import (
    OPTIMIZERS,
    kernels_only,
    make_ensemble_optimizer,
    make_optimizer,
    make_schedule,
)
from tests import reference


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def parameters():
    normal = np.random.default_rng(0).normal
    return {
        "embedding": {"embedding": normal(size=(5, 3))},
        "rnn": {"kernel": normal(size=(3, 4)), "bias": normal(size=(4,))},
    }


def gradients(steps):
    """Of a number of steps, `[steps, ...]`."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda p: 3.0 * random.normal(size=(steps, *p.shape)), parameters())


def train(optimizer, gradients):
    """Returns the parameters after a step of each of the gradients, `[steps, ...]`."""

    @reference.quick_jit
    def run(params, gradients):
        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[0][0]

    return run(parameters(), gradients)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, expected)


ONLY = {"embedding": {"embedding": False}, "rnn": {"kernel": True, "bias": False}}
PLAIN = {
    "adam": lambda rate: optax.chain(optax.add_decayed_weights(0.1, ONLY), optax.adam(rate)),
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.1, mask=ONLY),
    "lion": lambda rate: optax.lion(rate, weight_decay=0.1, mask=ONLY),
    "muon": lambda rate: optax.contrib.muon(rate, weight_decay=0.1, weight_decay_mask=ONLY),
    "rmsprop": lambda rate: optax.chain(optax.add_decayed_weights(0.1, ONLY), optax.rmsprop(rate)),
    "sgd": lambda rate: optax.chain(
        optax.add_decayed_weights(0.1, ONLY), optax.trace(0.9), optax.scale_by_learning_rate(rate)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_its_plain_composition_with_schedule_decay_and_clipping(name):
    ours = make_optimizer(name, 0.1, schedule="cosine", steps=8, warmup_steps=2, weight_decay=0.1, clip=1.0)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, 0.1, 2), optax.cosine_decay_schedule(0.1, 6)], boundaries=[2]
    )
    plain = optax.chain(optax.clip_by_global_norm(1.0), PLAIN[name](schedule))
    assert_same(train(ours, gradients(8)), train(plain, gradients(8)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_gradients_are_one_update_with_their_mean(name):
    accumulated = train(make_optimizer(name, 0.1, steps=6, clip=0.5, accumulate=3), gradients(6))
    means = jax.tree.map(lambda grads: grads.reshape(2, 3, *grads.shape[1:]).mean(axis=1), gradients(6))
    assert_same(accumulated, train(make_optimizer(name, 0.1, steps=2, clip=0.5), means))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_kernels_and_leaves_biases_and_embeddings_alone(name):
    optimizer = make_optimizer(name, 0.1, weight_decay=0.1)
    params = parameters()
    zeros = jax.tree.map(np.zeros_like, params)
    updates = reference.quick_jit(lambda params: optimizer.update(zeros, optimizer.init(params), params)[0])(params)
    assert np.sum(updates["rnn"]["kernel"] * params["rnn"]["kernel"]) < 0
    assert not np.any(updates["rnn"]["bias"])
    assert not np.any(updates["embedding"]["embedding"])
    assert kernels_only(params) == ONLY


def rates(schedule, steps):
    return np.asarray(reference.quick_jit(jax.vmap(schedule))(np.arange(steps, dtype=np.int32)))


def test_schedules_are_their_closed_forms():
    steps, peak = 100, 0.3
    cosine = make_schedule("cosine", peak, steps)
    expected = peak * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    np.testing.assert_allclose(rates(cosine, steps), expected, rtol=1e-6)
    warm = make_schedule("constant", peak, steps, warmup_steps=10)
    np.testing.assert_allclose(rates(warm, steps)[[0, 5, 10, 99]], [0, peak / 2, peak, peak], rtol=1e-6)
    assert float(make_schedule("constant", peak, steps)(7)) == peak
    for warmup, top in ((0, 30), (10, 10)):
        cycle = rates(make_schedule("one_cycle", peak, steps, warmup), steps)
        assert cycle.argmax() == top
        np.testing.assert_allclose([cycle[0], cycle[top]], [peak / 25, peak], rtol=1e-6)
        assert cycle[-1] < peak / 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "adagard"}, "optimizer='adagard' is unknown; allowed: adam, adamw, lion, muon, rmsprop, sgd."),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range; allowed: a finite number above 0."),
        ({"learning_rate": math.nan}, "learning_rate=nan is out of range; allowed: a finite number above 0."),
        ({"schedule": "linear"}, "schedule='linear' is unknown; allowed: constant, cosine, one_cycle."),
        ({"warmup_steps": 10}, "warmup_steps=10 is out of range; allowed: 0 to 9, below the updates."),
        ({"accumulate": 11}, "accumulate=11 is out of range; allowed: 1 to 10, the gradients in all."),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is out of range; allowed: a finite number, 0 or more."),
        ({"clip": 0.0}, "clip=0.0 is out of range; allowed: above 0, or None."),
    ],
)
def test_an_impossible_optimizer_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make_optimizer(**{"name": "adam", "learning_rate": 0.1, "steps": 10, **arguments})


def test_the_optimizer_of_an_ensemble_is_adam_by_name_with_its_rate_in_the_state():
    state = make_ensemble_optimizer(0.1).init(parameters())
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1)
    for clip in (None, 0.5):
        ours, plain = make_ensemble_optimizer(0.1, clip), make_optimizer("adam", 0.1, clip=clip)
        assert_same(train(ours, gradients(4)), train(plain, gradients(4)))
    with pytest.raises(ValueError, match=r"^clip=0\.0 is out of range; allowed: above 0, or None\.$"):
        make_ensemble_optimizer(0.1, clip=0.0)
