"""Claims about selective copy."""

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, selective_copy
from tests.tasks import worked_example


def selected(tokens, alphabet):
    """Drops the blanks, and says the rest where the signs are."""
    heard = [token for token in tokens if token < alphabet]
    return [heard.pop(0) if token == alphabet + 1 else -1 for token in tokens]


@pytest.mark.parametrize(("seq_len", "alphabet", "symbols"), [(128, 8, 8), (16, 2, 8), (2, 5, 1), (33, 3, 5)])
def test_the_answer_is_the_word_without_its_blanks(seq_len, alphabet, symbols):
    batch = as_batch(selective_copy(seq_len, alphabet, symbols, test_size=100).test)
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        assert labels == selected(tokens, alphabet)
        assert tokens[-symbols:] == [alphabet + 1] * symbols
        assert tokens.count(alphabet + 1) == symbols
        assert sum(token < alphabet for token in tokens) == symbols
        assert tokens.count(alphabet) == seq_len - 2 * symbols


def test_every_step_is_as_likely_to_hold_a_symbol():
    tokens_BT = as_batch(selective_copy(28, symbols=4, test_size=6000).test)["tokens"]
    counts = np.sum(tokens_BT[:, :24] < 8, axis=0)
    # Each is binomial, 6000 times 4 / 24: 1000, give or take 29.
    assert np.all(np.abs(counts - 1000) < 4.5 * np.sqrt(6000 / 6 * 5 / 6))


def test_the_worked_example_is_one():
    (tokens,), (labels,) = worked_example.rows(selective_copy, "tokens", "labels")
    code = {"a": 0, "b": 1, "c": 2, "_": 3, "!": 4, ".": -1}
    assert selected([code[word] for word in tokens], 3) == [code[word] for word in labels]
