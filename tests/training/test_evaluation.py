"""Mean scores over a split: of one model and of an ensemble, however answers are spread over sequences and batches."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.tasks.task import accuracy, cross_entropy, nats
from rnn_jax.training.evaluation import Evaluator
from tests import reference
from tests.training.small_runs import language, make_task


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def classifier(**kwargs):
    return reference.drawn(lambda: SequenceClassifier("elman", 7, 4, emb_size=5, **kwargs, rngs=nnx.Rngs(0)))


def test_scores_are_means_over_all_examples_of_any_length():
    rng = np.random.default_rng(0)
    lengths = rng.choice([1, 2, 9, 29], 45)
    texts = [rng.integers(0, 7, length).astype(np.int32) for length in lengths]
    source = tasks.RaggedSource({"tokens": texts}, label=rng.integers(0, 3, 45).astype(np.int32))
    model = classifier(out_features=3)
    for score in (accuracy, nats):
        task = make_task(source, out_features=3, score=score)
        score_one = jax.jit(score)
        one_by_one = [float(score_one(model, tasks.collate([source[k]], ragged=False))[0]) for k in range(45)]
        evaluate = Evaluator(task)
        evaluate._size = 16  # so that the last batch has to be filled up
        np.testing.assert_allclose(evaluate(model, source), np.mean(one_by_one), rtol=1e-5)
        assert evaluate._score_each._cache_size() <= 2


def test_scores_per_step_are_means_over_all_steps_asked():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (20, 6)).astype(np.int32)
    labels = rng.integers(-1, 3, (20, 6)).astype(np.int32)
    source = tasks.ArraySource(tokens=tokens, labels=labels)
    model = classifier(out_features=3, per_step=True)
    evaluate = Evaluator(make_task(source, out_features=3, score=nats, kind=tasks.Kind.ANSWER_A_STEP))
    evaluate._size = 8
    expected = jax.jit(cross_entropy)(model, tasks.as_batch(source))
    np.testing.assert_allclose(evaluate(model, source), expected, rtol=1e-5)


def test_a_language_model_is_scored_with_the_state_it_carries_over(monkeypatch):
    task, model = language()
    monkeypatch.setattr("rnn_jax.training.evaluation._STREAMS", 3)
    found = Evaluator(task)(model, task.test)
    nats = []

    @jax.jit
    def run(model, stream):
        return optax.losses.softmax_cross_entropy_with_integer_labels(model(stream[None, :-1])[0], stream[1:])

    for start, stop in ((0, 42), (42, 84), (84, 120)):  # 20 pieces of 6 in streams of 7
        stream = task.test.tokens[start : stop + 1]
        nats += np.asarray(run(model, stream)).tolist()
    assert len(nats) == 120
    np.testing.assert_allclose(found, np.mean(nats), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequences", "stream"])
def test_the_scores_of_an_ensemble_are_those_of_its_members(kind, monkeypatch):
    monkeypatch.setattr("rnn_jax.training.evaluation._STREAMS", 3)
    monkeypatch.setattr("rnn_jax.training.evaluation._SEQUENCES", 8)
    if kind == "stream":
        task, member = language()
    else:
        rng = np.random.default_rng(0)
        tokens, labels = (rng.integers(low, 7, (20, 6)).astype(np.int32) for low in (0, -1))
        source = tasks.ArraySource(tokens=tokens, labels=labels)
        task = make_task(source, out_features=7, score=nats, kind=tasks.Kind.ANSWER_A_STEP)
        member = classifier(out_features=7, per_step=True)
    members = [jax.tree.map(lambda leaf, k=k: k * np.asarray(leaf), member) for k in (1, 2, 3)]
    models = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    found = Evaluator(task, ensemble=True)(models, task.test)
    alone = Evaluator(task)
    np.testing.assert_allclose(found, [alone(member, task.test) for member in members], rtol=1e-5)
    assert found.dtype == np.float64
