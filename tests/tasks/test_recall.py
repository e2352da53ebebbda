"""Claims about multi-query associative recall."""

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, associative_recall
from tests.tasks import worked_example


def recalled(tokens, is_key, is_value):
    """Reads with a dictionary: a key with a value behind it is learned, a key it knows is answered."""
    known, answers = {}, []
    for token, following in zip(tokens, [*tokens[1:], None]):
        answers.append(known.get(token) if is_key(token) else None)
        if is_key(token) and following is not None and is_value(following):
            known[token] = following
    return answers


@pytest.mark.parametrize(("seq_len", "pairs", "alphabet"), [(64, 8, 32), (24, 8, 8), (3, 1, 2), (100, 3, 5)])
def test_the_answer_is_what_a_dictionary_says(seq_len, pairs, alphabet):
    batch = as_batch(associative_recall(seq_len, pairs, alphabet, test_size=100).test)
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        answers = recalled(tokens, lambda token: token < alphabet, lambda token: alphabet <= token < 2 * alphabet)
        assert labels == [-1 if answer is None else answer - alphabet for answer in answers]
        assert len(set(tokens[: 2 * pairs : 2])) == pairs
        assert sorted(token for token in tokens[2 * pairs :] if token != 2 * alphabet) == sorted(
            tokens[: 2 * pairs : 2]
        )


def test_every_step_is_as_likely_to_ask_for_any_of_the_pairs():
    batch = as_batch(associative_recall(16, pairs=3, alphabet=3, test_size=6000).test)
    asked_at = [[0] * 10 for _ in range(3)]
    for tokens in batch["tokens"].tolist():
        for pair, key in enumerate(tokens[0:6:2]):
            asked_at[pair][tokens.index(key, 6) - 6] += 1
    # Each is binomial, 6000 times 1 / 10.
    assert np.all(np.abs(np.array(asked_at) - 600) < 4.5 * np.sqrt(6000 / 10 * 9 / 10))


def test_keys_and_values_are_uniform():
    tokens_BT = as_batch(associative_recall(32, pairs=4, alphabet=8, test_size=4000).test)["tokens"]
    for column in tokens_BT[:, :8].T:
        counts = np.bincount(column % 8, minlength=8)
        # Chi-square of 7 degrees of freedom: 41 is exceeded once in a million seeds.
        assert np.sum((counts - 500) ** 2) / 500 < 41


def test_the_worked_example_is_one():
    (tokens,), (labels,) = worked_example.rows(associative_recall, "tokens", "labels")
    assert [answer or "." for answer in recalled(tokens, str.isalpha, str.isdigit)] == labels
