"""Claims about copy and delayed copy."""

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, copy, delayed_copy
from tests.tasks import worked_example


def copied(tokens, alphabet):
    """What a listener says: what was said before the sign, word for word, once the sign has come."""
    heard = [token for token in tokens if token < alphabet]
    after_sign = len(tokens) - tokens.index(alphabet + 1) - 1
    return [-1] * (len(tokens) - after_sign) + heard[:after_sign]


@pytest.mark.parametrize(("seq_len", "alphabet", "symbols"), [(120, 8, 10), (21, 2, 10), (3, 5, 1), (30, 3, 4)])
def test_the_answer_is_what_was_said_before_the_sign(seq_len, alphabet, symbols):
    batch = as_batch(copy(seq_len, alphabet, symbols, test_size=100).test)
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        assert labels == copied(tokens, alphabet)
        assert tokens.count(alphabet + 1) == 1
        assert sum(token < alphabet for token in tokens) == symbols
        assert max(tokens[:symbols]) < alphabet


def test_the_layout_is_that_of_the_paper():
    """T = 100: 10 symbols of 8, T - 1 blanks, the sign, 10 blanks; the answer is due in the last 10 of T + 20 steps."""
    batch = as_batch(copy(seq_len=100 + 20, test_size=20).test)
    assert np.all(batch["tokens"][:, :10] < 8)
    assert np.all(batch["tokens"][:, 10:109] == 8)
    assert np.all(batch["tokens"][:, 109] == 9)
    assert np.all(batch["tokens"][:, 110:] == 8)
    assert np.all(batch["labels"][:, :110] == -1)
    np.testing.assert_array_equal(batch["labels"][:, 110:], batch["tokens"][:, :10])


def test_every_symbol_is_asked_at_the_lag_that_is_said():
    tokens, labels = (as_batch(copy(60, 4, 5, test_size=50).test)[name] for name in ("tokens", "labels"))
    lag = 60 - 5
    np.testing.assert_array_equal(labels[:, lag:], tokens[:, :-lag])


def test_the_papers_trivial_loss_follows_from_ours():
    """Blanks predicted exactly, symbols guessed: 10 ln 8 / (T + 20) over all steps, ln 8 over those asked here."""
    task = copy(seq_len=120, test_size=50)
    batch = as_batch(task.test)

    def guess(tokens):
        return np.zeros((*tokens.shape, 8), np.float32)

    ours = float(task.loss(guess, batch))
    assert ours == pytest.approx(np.log(8), rel=1e-6)
    assert ours * 10 / 120 == pytest.approx(10 * np.log(8) / (100 + 20), rel=1e-6)


@pytest.mark.parametrize(("seq_len", "delay", "alphabet"), [(100, 10, 8), (5, 4, 3), (2, 1, 2), (40, 1, 26)])
def test_every_symbol_is_asked_once_the_delay_has_passed(seq_len, delay, alphabet):
    batch = as_batch(delayed_copy(seq_len, delay, alphabet, test_size=100).test)
    assert set(np.unique(batch["tokens"])) == set(range(alphabet))
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        memory = []
        for token, label in zip(tokens, labels):
            assert label == (memory.pop(0) if len(memory) == delay else -1)
            memory.append(token)


def test_the_worked_examples_are_ones():
    (tokens,), (labels,) = worked_example.rows(copy, "tokens", "labels")
    code = {"a": 0, "b": 1, "c": 2, "_": 3, "!": 4, ".": -1}
    assert copied([code[word] for word in tokens], 3) == [code[word] for word in labels]
    (tokens,), (labels,) = worked_example.rows(delayed_copy, "tokens", "labels")
    assert labels == ["."] * 3 + tokens[:-3]
