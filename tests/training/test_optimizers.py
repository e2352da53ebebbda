"""Optimizers by name: each is the plain composition in optax that its description says."""

import math
import re

import jax
import jax.numpy as jnp
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


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def parameters():
    key = jax.random.key(0)
    return {
        "embedding": {"embedding": jax.random.normal(key, (5, 3))},
        "rnn": {"kernel": jax.random.normal(key, (3, 4)), "bias": jax.random.normal(key, (4,))},
    }


def gradients(seed):
    return jax.tree.map(lambda p: 3.0 * jax.random.normal(jax.random.key(seed), p.shape), parameters())


def train(optimizer, steps):
    params = parameters()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for seed in range(steps):
        updates, state = update(gradients(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


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
    assert_same(train(ours, 8), train(optax.chain(optax.clip_by_global_norm(1.0), PLAIN[name](schedule)), 8))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_gradients_are_one_update_with_their_mean(name):
    accumulated = train(make_optimizer(name, 0.1, steps=6, clip=0.5, accumulate=3), 6)
    plain = make_optimizer(name, 0.1, steps=2, clip=0.5)
    params = parameters()
    state = plain.init(params)
    for start in (0, 3):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(gradients(start + k) for k in range(3)))
        updates, state = plain.update(mean, state, params)
        params = optax.apply_updates(params, updates)
    assert_same(accumulated, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_kernels_and_leaves_biases_and_embeddings_alone(name):
    optimizer = make_optimizer(name, 0.1, weight_decay=0.1)
    params = parameters()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert float(jnp.sum(updates["rnn"]["kernel"] * params["rnn"]["kernel"])) < 0
    assert not np.any(updates["rnn"]["bias"])
    assert not np.any(updates["embedding"]["embedding"])
    assert kernels_only(params) == ONLY


def test_schedules_are_their_closed_forms():
    steps, peak = 100, 0.3
    cosine = make_schedule("cosine", peak, steps)
    for step in (0, 1, 50, 99):
        np.testing.assert_allclose(cosine(step), peak * (1 + math.cos(math.pi * step / steps)) / 2, rtol=1e-6)
    warm = make_schedule("constant", peak, steps, warmup_steps=10)
    np.testing.assert_allclose([warm(0), warm(5), warm(10), warm(99)], [0, peak / 2, peak, peak], rtol=1e-6)
    assert float(make_schedule("constant", peak, steps)(7)) == peak
    for warmup, top in ((0, 30), (10, 10)):
        rates = np.array([make_schedule("one_cycle", peak, steps, warmup)(step) for step in range(steps)])
        assert rates.argmax() == top
        np.testing.assert_allclose([rates[0], rates[top]], [peak / 25, peak], rtol=1e-6)
        assert rates[-1] < peak / 100


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
        assert_same(train(make_ensemble_optimizer(0.1, clip), 4), train(make_optimizer("adam", 0.1, clip=clip), 4))
    with pytest.raises(ValueError, match=r"^clip=0\.0 is out of range; allowed: above 0, or None\.$"):
        make_ensemble_optimizer(0.1, clip=0.0)
