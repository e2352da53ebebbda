"""Claims about induction heads."""

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, induction
from tests.tasks import worked_example


def induced(tokens, sign):
    assert tokens.count(sign) == 2
    assert tokens[-1] == sign
    return tokens[tokens.index(sign) + 1]


@pytest.mark.parametrize(("seq_len", "alphabet"), [(64, 16), (3, 2), (256, 15)])
def test_the_answer_is_the_symbol_behind_the_first_sign(seq_len, alphabet):
    batch = as_batch(induction(seq_len, alphabet, test_size=100).test)
    for tokens, label in zip(batch["tokens"].tolist(), batch["label"].tolist()):
        assert label == induced(tokens, alphabet)
        assert label < alphabet


def test_every_step_but_the_last_two_can_bear_the_first_sign():
    batch = as_batch(induction(12, 4, test_size=5000).test)
    counts = np.bincount(np.argmax(batch["tokens"] == 4, axis=1), minlength=10)
    assert len(counts) == 10
    # Chi-square of 9 degrees of freedom: 45 is exceeded once in a million seeds.
    assert np.sum((counts - 500) ** 2) / 500 < 45


def test_the_worked_example_is_one():
    (line,) = worked_example.rows(induction, "tokens")[0]
    *tokens, word, label = line
    assert word == "label"
    assert induced(tokens, "!") == label
