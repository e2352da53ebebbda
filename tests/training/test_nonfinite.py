"""Numbers that are not finite: where they began is found, in words."""

import dataclasses
import re

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.training import checkpoints
from rnn_jax.training.loop import train
from rnn_jax.training.nonfinite import NotFinite, describe_diverged, finite_members, layer_of, parameter_names
from rnn_jax.training.update import initial_state
from tests import reference
from tests.training.small_runs import (
    assert_same_weights,
    config,
    make_task,
    metrics,
    new_run,
    numbers,
    regression,
    small_model,
)


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_parameters_have_the_names_of_their_layers():
    kwargs = {"emb_size": 5, "layers": 2, "bidirectional": True}
    model = jax.eval_shape(lambda: SequenceClassifier("gru", 7, 4, 3, **kwargs, rngs=nnx.Rngs(0)))
    names = parameter_names(model)
    assert len(names) == len(jax.tree.leaves(model))
    layers = {"embedding", "head"} | {f"rnn/layers/{k}/{way}_rnn" for k in (0, 1) for way in ("forward", "backward")}
    assert {layer_of(name) for name in names} == layers


def poisoned(**where):
    """Batches of 8 in order, with examples that are not finite in these arrays."""
    arrays = numbers()
    for name, example in where.items():
        arrays[name][example] = np.nan
    return make_task(tasks.ArraySource(**arrays), tasks.ArraySource(**numbers()))


def in_order(source, batch_size, seed, augment=None, widths=None):
    return iter(grain.MapDataset.source(source).repeat().batch(batch_size, batch_fn=tasks.collate).to_iter_dataset())


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "batches", in_order)
    task = poisoned(xs=1, target=[9, 17])
    result = train(
        task,
        model := small_model(),
        optax.sgd(0.1),
        run_dir := new_run(tmp_path),
        config(on_nonfinite="skip", look_every=0),
    )
    assert result.skipped == 9  # three batches in four, of twelve
    plain, grads_of = jax.tree.map(np.asarray, model), jax.jit(jax.grad(task.loss))
    for k, batch in zip(range(12), in_order(task.train, 8, 0)):
        if k % 4 == 3:
            grads = jax.device_get(grads_of(plain, batch))
            plain = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, plain, grads)
    assert_same_weights(result.model, plain, rtol=1e-5)
    assert metrics(run_dir)[12, "train/skipped"] == 9
    assert all(np.isfinite(value) for value in metrics(run_dir).values())


def test_a_batch_that_is_not_finite_stops_the_run_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "batches", in_order)
    sentence = "^Stopped at step 3: the batch is not finite, in 'xs', .*; no checkpoint has been written yet.$"
    with pytest.raises(NotFinite, match=sentence):
        train(poisoned(xs=17), small_model(), optax.sgd(0.1), new_run(tmp_path), config(look_every=0))


def test_a_layer_whose_outputs_overflow_stops_the_run_and_is_named_with_the_last_good_checkpoint(tmp_path):
    task, run_dir = regression(), new_run(tmp_path)

    def update(grads, state, params=None):
        del params
        count = state + 1  # the sixth update makes the rectifiers of the recurrent layer overflow
        return jax.tree.map(lambda g: jnp.where(count == 6, 1e30, 0.0) * jnp.ones_like(g), grads), count

    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    sentence = (
        "Stopped at step 7: the loss is (nan|inf), first in layer 'rnn', parameter 'rnn/cell/[a-z_]+'; "
        f"the last good checkpoint is {re.escape(str(run_dir))}/checkpoints/last, of step 4."
    )
    with pytest.raises(NotFinite, match=f"^{sentence}$"):
        train(task, small_model("irnn"), optimizer, run_dir, config(look_every=0))
    note = checkpoints.load_note(run_dir, "last")
    assert note["step"] == 4


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_an_update_that_makes_weights_that_are_not_finite_stops_the_run_before_it_is_taken(tmp_path):
    """Loss and gradient are finite; the learning rate is infinite in float32."""
    run_dir = new_run(tmp_path)
    sentence = (
        "^Stopped at step 1: the update makes weights that are not finite, first in layer 'head', parameter"
        " 'head/.*'; no checkpoint has been written yet.$"
    )
    with pytest.raises(NotFinite, match=sentence):
        train(regression(), small_model(), optax.sgd(1e39), run_dir, config(steps=1, eval_every=1, look_every=0))
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_weights_that_are_not_finite_are_never_the_best_though_their_score_is(tmp_path):
    def score(model, batch):  # like an accuracy, whose argmax of NaN is the first class
        return 1.0 + 0.0 * jnp.sum(jnp.isnan(model(batch["xs"]))), 1.0

    optimizer = optax.sgd(lambda step: jnp.where(step < 4, 0.0, jnp.inf))
    chosen = config(on_nonfinite="take", look_every=0)
    run_dir = new_run(tmp_path)
    result = train(regression(score=score, higher_is_better=True), small_model(), optimizer, run_dir, chosen)
    assert (result.step, result.steps) == (4, 12)
    assert_same_weights(result.model, small_model())
    assert not finite_members(jax.tree.map(lambda leaf: leaf[None], checkpoints.restore_checkpoint(
        run_dir, "last", initial_state(regression(), small_model(), optimizer, chosen)
    ).model)).all()  # fmt: skip
    with pytest.raises(
        NotFinite, match="'model/seed0' ended at step 1 without a best model: no evaluation was of finite"
    ):
        train(regression(), small_model(), optax.sgd(1e39), new_run(tmp_path, "one"), dataclasses.replace(
            chosen, steps=1, eval_at=frozenset()
        ))  # fmt: skip


def test_members_that_diverged_are_named_and_if_there_is_no_other_there_is_no_result():
    assert describe_diverged({"gru": [True, True]}, 3) == ""
    assert describe_diverged({"gru": [True, False], "lstm": [True]}, 3).endswith(" not finite, of: gru/seed4.")
    with pytest.raises(NotFinite, match="of all 2 members diverged: the weights of 'gru/seed3'"):
        describe_diverged({"gru": [False], "lstm": [False]}, 3)


def test_a_gradient_that_is_not_finite_is_followed_back_to_the_layer_next_to_the_loss(tmp_path):
    @jax.custom_vjp
    def spoil(x):
        return x

    spoil.defvjp(lambda x: (x, None), lambda _, ct: (ct * jnp.nan,))

    class Spoiled(SequenceClassifier):
        def _embed(self, inputs):
            return super()._embed(inputs) + 0 * spoil(jnp.sum(self.rnn.layers[0].cell.bias[...]))

    model = reference.drawn(lambda: Spoiled("elman", 1, 4, 1, layers=2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        NotFinite, match=r"Stopped at step 1: a gradient .* layer 'rnn/layers/0', parameter 'rnn/layers/0/cell/bias'"
    ):
        train(regression(), model, optax.sgd(0.1), new_run(tmp_path), config(look_every=0))
