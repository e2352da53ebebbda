"""Claims about what a language model says."""

import collections
import itertools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from rnn_jax.models import Sampling, generate, stream
from rnn_jax.models.generation import _step, restrict
from tests import reference
from tests.models.test_language_model import B, T, V, make, tokens

KEY = jax.random.key(0)


def test_the_likeliest_continuation_is_a_loop_that_reads_all_again():
    model, text = jax.tree.map(lambda x: 3.0 * np.asarray(x), make("gru", seed=4)), np.zeros((B, 12 + T), np.int32)
    model.head.bias = nnx.Param(np.zeros(V))  # or one token is the likeliest everywhere
    text[:, :T] = tokens()
    said = generate(model, text[:, :T], 12, jax.random.key(0), Sampling(temperature=0.0))
    run = reference.quick_jit(lambda text: model(text))
    for t in range(T, T + 12):
        text[:, t] = np.argmax(run(text)[:, t - 1], axis=-1)
    np.testing.assert_array_equal(said, text[:, T:])
    assert len(np.unique(said)) > 2


def test_tokens_are_drawn_with_the_probabilities_of_the_model():
    """Pearson's statistic of all texts of two tokens, each by the chain rule: above 60 in 1 of 10^4 keys."""
    model, count, start = make("gru"), 20_000, np.array([2, 1], np.int32)
    said = generate(model, np.tile(start, (count, 1)), 2, jax.random.key(0), Sampling(temperature=0.5))
    counted, statistic = collections.Counter(map(tuple, np.asarray(said).tolist())), 0.0
    texts = np.array([[*start, first] for first in range(V)], np.int32)
    logits = np.asarray(reference.quick_jit(model)(texts)) / 0.5
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for first in range(V):
        for second in range(V):
            expected = count * p[first, 1, first] * p[first, 2, second]
            statistic += (counted[first, second] - expected) ** 2 / expected
    assert statistic < 60.0


def test_equal_keys_say_equal_texts_for_any_batch_shape():
    model = make()
    one, same, other = (np.asarray(generate(model, tokens(), 20, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    assert generate(model, tokens(4), 3, jax.random.key(0)).shape == (3,)
    assert generate(model, tokens(2, 3, 4), 3, jax.random.key(0)).shape == (2, 3, 3)
    assert generate(model, tokens(), 0, jax.random.key(0)).shape == (B, 0)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7, top_k=3), Sampling(temperature=0.0)], ids=str)
def test_a_stream_is_what_is_generated_at_once(sampling):
    model, key = make(layers=2), jax.random.key(3)
    streamed = np.stack([*itertools.islice(stream(model, tokens(), key, sampling), 6)], axis=-1)
    np.testing.assert_array_equal(streamed, generate(model, tokens(), 6, key, sampling))


def test_a_token_of_a_stream_is_computed_from_the_carry_alone():
    """One program draws every token: it sees no array that grows with the text."""
    model, before = make(), _step._cache_size()
    for token in itertools.islice(stream(model, tokens(), KEY, Sampling(temperature=0.3)), 4):
        assert token.shape == (B,)
    assert _step._cache_size() == before + 1


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [(None, 0.6, 0.5), (3, 1.0, 1.0), (2, 0.9, 0.5), (1, 0.1, 1.0), (99, 0.999, 1.0)],
)
def test_the_distribution_is_cut_as_a_loop_over_sorted_tokens_cuts_it(top_k, top_p, temperature):
    logits = np.random.default_rng(0).normal(size=(4, 7)) * 2
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, excluded=(0, 4))
    cut = reference.quick_jit(lambda logits: jax.nn.softmax(restrict(logits, sampling), axis=-1))
    for row, found in zip(logits / temperature, np.asarray(cut(logits))):
        p = {token: np.exp(row[token]) for token in range(7) if token not in (0, 4)}
        p = {token: value / sum(p.values()) for token, value in p.items()}
        kept, mass = {}, 0.0
        for token in sorted(p, key=p.get, reverse=True)[:top_k]:
            if mass < top_p:
                kept[token], mass = p[token], mass + p[token]
        expected = [kept.get(token, 0.0) / mass for token in range(7)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_excluded_tokens_are_never_drawn():
    said = generate(make(), tokens(64, 3), 20, jax.random.key(0), Sampling(excluded=(0, 3)))
    assert set(np.unique(said)) == {1, 2, 4}


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (lambda: generate(make(), tokens(B, 0), 3, KEY), "prompt has shape (2, 0); allowed: [*batch, time], at"),
        (lambda: next(stream(make(), tokens(B, 0), KEY)), "prompt has shape (2, 0); allowed: [*batch, time], at"),
        (lambda: generate(make(), tokens(), -1, KEY), "steps=-1 is out of range; allowed: 0 or more."),
        (lambda: Sampling(temperature=-0.5), "temperature=-0.5 is out of range; allowed: a finite number, 0 or more."),
        (lambda: Sampling(top_k=0), "top_k=0 is out of range; allowed: 1 or more."),
        (lambda: Sampling(top_p=0.0), "top_p=0.0 is out of range; allowed: above 0, and 1 or less."),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_sentence(refused, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        refused()
