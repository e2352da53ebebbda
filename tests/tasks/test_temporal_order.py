"""Claims about temporal order."""

import itertools

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, temporal_order
from tests.tasks import worked_example

_LETTERS = "abcdXYEB"


def word(tokens):
    return "".join(letter for letter in (_LETTERS[token] for token in tokens) if letter in "XY")


@pytest.mark.parametrize(("seq_len", "symbols"), [(10, 2), (10, 3), (19, 3), (20, 3), (29, 3), (100, 2), (101, 3)])
def test_the_label_is_the_word_that_the_signs_form(seq_len, symbols):
    task = temporal_order(seq_len, symbols, test_size=300)
    words = ["".join(letters) for letters in itertools.product("XY", repeat=symbols)]
    assert list(task.class_names) == words
    batch = as_batch(task.test)
    for tokens, label in zip(batch["tokens"].tolist(), batch["label"].tolist()):
        assert len(word(tokens)) == symbols
        assert words.index(word(tokens)) == label
        assert _LETTERS[tokens[0]] == "E"
        assert _LETTERS[tokens[-1]] == "B"
        assert set(tokens[1:-1]) <= set(range(6))
    assert set(batch["label"].tolist()) == set(range(2**symbols))


@pytest.mark.parametrize(("symbols", "windows"), [(2, [(10, 20), (50, 60)]), (3, [(10, 20), (33, 43), (66, 76)])])
def test_the_signs_stand_where_hochreiter_and_schmidhuber_put_them(symbols, windows):
    tokens_BT = as_batch(temporal_order(100, symbols, test_size=2000).test)["tokens"]
    rows, steps = np.nonzero((tokens_BT == 4) | (tokens_BT == 5))
    steps_BK = steps.reshape(2000, symbols)
    np.testing.assert_array_equal(rows.reshape(2000, symbols)[:, 0], np.arange(2000))
    for (first, last), steps_B in zip(windows, steps_BK.T):
        assert (steps_B.min(), steps_B.max()) == (first, last)
        counts = np.bincount(steps_B - first, minlength=11)
        # Chi-square of 10 degrees of freedom: 47 is exceeded once in a million seeds.
        assert np.sum((counts - 2000 / 11) ** 2) / (2000 / 11) < 47


def test_the_worked_examples_are_ones():
    (lines,) = worked_example.rows(temporal_order, "tokens")
    assert len(lines) == 2
    for line in lines:
        letters, (said, _, label) = line[:12], [words.strip(":,") for words in line[12:15]]
        spelled = "".join(letter for letter in letters if letter in "XY")
        assert spelled == said
        assert ["XX", "XY", "YX", "YY"].index(spelled) == int(label)
        assert letters[0] == "E"
        assert letters[-1] == "B"
        first, second = (step for step, letter in enumerate(letters) if letter in "XY")
        assert first in (1, 2)
        assert second in (6, 7)
