"""The update: the carry it goes on from, and what it draws at random."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import flow, tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.training.config import batches_of
from rnn_jax.training.update import initial_state, make_update
from tests import reference
from tests.training.small_runs import assert_same_weights, config, language, regression, small_model


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def with_dropout():
    """Returns a task, a model that drops units, a batch, and the update, which moves no weight."""
    task = regression()
    model = reference.drawn(lambda: SequenceClassifier("elman", 1, 16, 1, dropout=0.5, rngs=nnx.Rngs(0)))
    batch = tasks.collate([task.train[k] for k in range(8)])
    return task, model, batch, jax.jit(make_update(task, optax.sgd(0.0), config()))


def test_an_update_goes_on_from_the_carry_of_the_batch_before_and_begins_anew_with_each_pass():
    task, model = language()
    chosen = config(batch_size=4)
    optimizer = optax.sgd(0.0)
    update = jax.jit(make_update(task, optimizer, chosen))
    state, losses = initial_state(task, model, optimizer, chosen), []
    for _, batch in zip(range(6), batches_of(task, chosen)):  # a pass is five batches
        before = float(state.loss_sum)
        state, _ = update(state, batch)
        losses.append(float(state.loss_sum) - before)
    streams = task.train.tokens[:120].reshape(4, 30)
    targets = np.stack([task.train.tokens[30 * k + 1 : 30 * k + 31] for k in range(4)])

    @jax.jit
    def nats_of(model, streams):
        return optax.losses.softmax_cross_entropy_with_integer_labels(model(streams), targets)

    nats = nats_of(model, streams)
    expected = np.asarray(nats).reshape(4, 5, 6).mean(axis=(0, 2))
    np.testing.assert_allclose(losses, [*expected, expected[0]], rtol=1e-4)


def test_dropout_is_drawn_anew_at_each_step_and_the_same_in_each_run():
    task, model, batch, update = with_dropout()
    sums = []
    for _ in range(2):
        state, totals = initial_state(task, model, optax.sgd(0.0), config()), []
        for _ in range(3):
            state, _ = update(state, batch)
            totals.append(float(state.loss_sum))
        sums.append(np.diff(totals, prepend=0.0))
    np.testing.assert_array_equal(sums[0], sums[1])
    assert len({round(loss, 5) for loss in sums[0]}) == 3


def test_runs_of_other_seeds_drop_other_units_in_the_same_program():
    task, model, batch, update = with_dropout()
    programs, losses = set(), set()
    for seed in range(2):
        chosen = config(seed=seed)
        state = initial_state(task, model, optax.sgd(0.0), chosen)
        programs.add(jax.jit(make_update(task, optax.sgd(0.0), chosen)).lower(state, batch).as_text())
        losses.add(float(update(state, batch)[0].loss_sum))
    assert len(programs) == 1
    assert len(losses) == 2


@pytest.mark.parametrize("bad", [False, True])
def test_an_update_that_shows_its_gradient_flow_is_the_same_update_and_one_that_is_taken_may_be_bad(bad):
    task, model, optimizer = regression(), small_model(), optax.sgd(0.1)
    batch = dict(next(iter(batches_of(task, config()))))
    if bad:
        batch["target"] = np.full_like(batch["target"], np.inf)
    chosen = config(look="update", on_nonfinite="take")
    after, seen = jax.jit(make_update(task, optimizer, chosen))(initial_state(task, model, optimizer, chosen), batch)
    if bad:
        assert not np.isfinite(seen["loss"])
        assert not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after.model))
        return

    @jax.jit
    def plainly(model, batch):
        profile = flow.gradient_profile(task.loss, model, batch)
        return *jax.value_and_grad(task.loss)(model, batch), profile.log10_norm["rnn"]

    loss, grads, log10_norm = jax.device_get(plainly(model, batch))
    plain = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.1) * g, model, grads)
    assert_same_weights(after.model, plain, rtol=1e-5)
    np.testing.assert_allclose(seen["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(seen["log10_norm"]["rnn", ""], log10_norm, rtol=1e-4, atol=1e-4)
