"""Claims about greedy decoding and beam search."""

import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax.models import EncoderDecoder, attention_map, beam_search, greedy
from rnn_jax.models.decoding import END
from rnn_jax.tasks import task
from tests import reference

B, T, V, STEPS = 3, 5, 3, 3
SOURCES = np.random.default_rng(0).integers(0, 6, (B, T)).astype(np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)


def make(attention="additive", vocabulary=V, **kwargs):
    kwargs = {"attention": attention, "param_dtype": jnp.float64, **kwargs}
    return reference.drawn(
        lambda: EncoderDecoder("elman", 6, vocabulary, 3, 4, **kwargs, rngs=nnx.Rngs(0)), seed=7, scale=1.0
    )


@pytest.fixture(scope="module")
def model():
    return make()


def log_probability(model, answers):
    """Returns log p, `[B, N]`, of answers `[B, N, U]`, by teacher forcing and NumPy.

    `END` and what stands behind it are as the searches give them.
    """
    answers = np.asarray(answers)
    count = answers.shape[1]
    sources, lengths = np.repeat(SOURCES, count, axis=0), np.repeat(LENGTHS, count)
    before_end = np.cumsum(answers == END, axis=-1) - (answers == END) == 0
    forced = np.where(before_end, answers, -1).reshape(B * count, -1)
    logits = reference.quick_jit(lambda model: model(sources, lengths, answer=forced)[0])(model)
    logits = np.asarray(logits).reshape(*answers.shape, -1)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.where(before_end, np.take_along_axis(log_p, answers[..., None], axis=-1)[..., 0], 0.0).sum(axis=-1)


def test_end_is_the_end_of_the_tasks():
    assert task.END == END


def test_a_beam_of_one_is_greedy():
    wide = make(vocabulary=9)
    one, scores = beam_search(wide, SOURCES, LENGTHS, beam=1, steps=8, length_penalty=0.7)
    answers = greedy(wide, SOURCES, LENGTHS, 8)
    np.testing.assert_array_equal(one[:, 0], answers)
    assert len(np.unique(answers)) > 2
    assert scores.shape == (B, 1)


def test_scores_of_a_beam_are_the_log_probabilities_of_its_answers():
    wide = make(vocabulary=9)
    answers, scores = beam_search(wide, SOURCES, LENGTHS, beam=4, steps=6)
    assert np.all(np.diff(scores, axis=1) <= 0)
    np.testing.assert_allclose(scores, log_probability(wide, answers), rtol=1e-9)
    ended = np.cumsum(np.asarray(answers) == END, axis=-1) > 0
    np.testing.assert_array_equal(np.asarray(answers)[ended], END)


def test_a_beam_that_holds_all_answers_ranks_them_as_enumeration_does(model):
    """All answers of up to 3 tokens, `END` among them, that are different to the end."""
    everything = {
        tuple(np.where(np.cumsum(np.array(a) == END) - (np.array(a) == END) > 0, END, a).tolist())
        for a in itertools.product(range(V), repeat=STEPS)
    }
    everything = np.array(sorted(everything))
    lengths = np.where(np.any(everything == END, axis=1), np.argmax(everything == END, axis=1) + 1, STEPS)
    expected = log_probability(model, np.tile(everything, (B, 1, 1))) / ((5 + lengths) / 6) ** 1.5
    answers, scores = beam_search(model, SOURCES, LENGTHS, beam=len(everything) + 2, steps=STEPS, length_penalty=1.5)
    order = np.argsort(-expected, axis=1)
    np.testing.assert_allclose(scores[:, :-2], np.take_along_axis(expected, order, axis=1), rtol=1e-9)
    np.testing.assert_array_equal(answers[:, :-2], everything[order])
    np.testing.assert_array_equal(scores[:, -2:], -np.inf)


class Chain(NamedTuple):
    """A model whose token depends on the one before alone: log p of a token, `[V, V]`, by the one before."""

    log_p: jax.Array

    def start(self, inputs, lengths=None):
        return jnp.zeros(inputs.shape[:1]), None

    def next(self, carry, tokens, context):
        return carry, self.log_p[tokens], jnp.zeros((*tokens.shape, 1))


@pytest.mark.parametrize(("length_penalty", "first"), [(0.0, [0, 0]), (4.0, [0, 0]), (5.0, [1, 0])])
def test_a_length_penalty_lets_a_longer_answer_win_where_its_formula_says(length_penalty, first):
    """log 0.6 against (log 0.4 + log 0.9) / (7 / 6)^alpha: the longer one wins from alpha = 4.5 on."""
    chain = Chain(jax.device_put(np.log([[0.6, 0.4], [0.9, 0.1]])))
    answers, scores = beam_search(chain, SOURCES, None, beam=3, steps=2, length_penalty=length_penalty)
    assert np.asarray(answers[0, 0]).tolist() == first
    expected = {(0, 0): np.log(0.6), (1, 0): np.log(0.36) / (7 / 6) ** length_penalty}
    np.testing.assert_allclose(scores[0, 0], expected[tuple(first)], rtol=1e-9)


@pytest.mark.parametrize(
    ("attention", "kwargs"),
    [("none", {}), ("additive", {"bidirectional": True}), ("dot", {})],
)
def test_decoding_step_by_step_is_teacher_forcing(attention, kwargs):
    model = make(attention, vocabulary=7, **kwargs)
    answer = np.random.default_rng(1).integers(1, 7, (B, 4)).astype(np.int32)

    def step_by_step(model):
        carry, context = model.start(SOURCES, LENGTHS)
        token, logits, weights = jnp.full((B,), END, jnp.int32), [], []
        for u in range(4):
            carry, one, some = model.next(carry, token, context)
            token = answer[:, u]
            logits.append(one)
            weights.append(some)
        return jnp.stack(logits, axis=1), jnp.stack(weights, axis=1)

    def run(model):
        return model(SOURCES, LENGTHS, answer=answer)[0], *step_by_step(model)

    forced, logits, weights = jax.device_get(reference.quick_jit(run)(model))
    reference.assert_close(logits, forced, 1e-12)
    np.testing.assert_allclose(attention_map(model, SOURCES, LENGTHS, answer), weights, rtol=1e-12)
    true = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_array_equal(np.asarray(weights)[~np.broadcast_to(true[:, None], weights.shape)], 0.0)
    np.testing.assert_allclose(weights.sum(axis=-1), 0.0 if attention == "none" else 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"beam": 0}, "beam=0 is out of range; allowed: 1 or more."),
        ({"steps": 0}, "steps=0 is out of range; allowed: 1 or more."),
        ({"length_penalty": -1.0}, "length_penalty=-1.0 is out of range; allowed: a finite number, 0 or more."),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(model, kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        beam_search(model, SOURCES, LENGTHS, **{"beam": 1, "steps": 1, **kwargs})
