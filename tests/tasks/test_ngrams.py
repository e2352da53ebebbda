"""Claims about the n-gram baseline."""

import collections
import math
import re

import numpy as np
import pytest

from rnn_jax.tasks.ngrams import ngram_bits, ngram_probabilities


def by_definition(train, text, vocabulary_size, order, position):
    """P of one token, by the recursion as it is written, over strings of tokens in a Counter."""
    grams = collections.Counter(
        tuple(train[start : start + n]) for n in range(1, order + 1) for start in range(len(train) - n + 1)
    )
    probability = 1 / vocabulary_size
    for k in range(min(order - 1, position) + 1):
        context = tuple(text[position - k : position])
        behind = {gram[-1]: count for gram, count in grams.items() if len(gram) == k + 1 and gram[:-1] == context}
        if behind:
            total, kinds = sum(behind.values()), len(behind)
            probability = (behind.get(text[position], 0) + kinds * probability) / (total + kinds)
    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_recursion_as_it_is_written(order):
    rng = np.random.default_rng(0)
    train, text = rng.choice(4, 60, p=[0.5, 0.3, 0.15, 0.05]), rng.integers(0, 6, 40)  # 4 and 5 are unseen
    expected = [by_definition(train.tolist(), text.tolist(), 6, order, position) for position in range(len(text))]
    np.testing.assert_allclose(ngram_probabilities(train, text, 6, order), expected, rtol=1e-13)


def test_a_text_whose_answer_is_known_by_hand():
    """Behind "ababab": n(a) = n(b) = 3; a is followed by b three times; b by a twice."""
    train, text = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 1])
    first = (3 + 2 * (1 / 2)) / (6 + 2)  # 1/2
    second = (3 + 1 * first) / (3 + 1)  # 7/8
    np.testing.assert_allclose(ngram_probabilities(train, text, 2, 2), [first, second], rtol=1e-15)
    assert math.isclose(ngram_bits(train, text, 2, 2), (1 - math.log2(7 / 8)) / 2)


def test_the_probabilities_of_all_tokens_sum_to_1():
    rng = np.random.default_rng(1)
    train, before = rng.integers(0, 5, 200), rng.integers(0, 6, 7)
    total = sum(ngram_probabilities(train, np.array([*before, token]), 6, 4)[-1] for token in range(6))
    assert math.isclose(total, 1.0, rel_tol=1e-13)


def test_a_periodic_text_is_known_once_its_context_is():
    """A period of 7 is known from three tokens before; the bits vanish as the training text grows."""
    period = np.array([0, 0, 1, 0, 2, 2, 1])
    text = np.tile(period, 50)
    assert ngram_bits(np.tile(period, 2000), text, 3, 4) < 0.01
    assert ngram_bits(np.tile(period, 2000), text, 3, 1) > 1.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0], [0], 1, 0), "order=0 is out of range; allowed: 1 or more."),
        (([], [0], 1, 2), "the training text has no tokens; allowed: one or more."),
    ],
)
def test_what_cannot_be_counted_is_refused_in_one_sentence(arguments, sentence):
    train, text, *rest = arguments
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ngram_probabilities(np.array(train, int), np.array(text, int), *rest)
