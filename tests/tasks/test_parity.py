"""Claims about parity."""

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, parity
from tests.tasks import worked_example


@pytest.mark.parametrize("seq_len", [1, 2, 40])
def test_the_answer_is_the_number_of_ones_modulo_two(seq_len):
    task = parity(seq_len, test_size=200)
    batch = as_batch(task.test)
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        for step, label in enumerate(labels):
            assert task.class_names[label] == ("odd" if tokens[: step + 1].count(1) % 2 else "even")
    assert set(np.unique(batch["tokens"])) == {0, 1}


def test_any_one_bit_turns_all_answers_from_it_on():
    bits = np.random.Philox(key=np.array((1, 2), np.uint64)).random_raw(20)
    example = parity(20).train.example
    before = example(bits)["labels"]
    for step in range(20):
        turned = bits.copy()
        turned[step] ^= np.uint64(1)
        changed = example(turned)["labels"] != before
        np.testing.assert_array_equal(changed, np.arange(20) >= step)


def test_the_worked_example_is_one():
    (tokens,), (labels,) = worked_example.rows(parity, "tokens", "labels")
    assert [tokens[: step + 1].count("1") % 2 for step in range(8)] == [int(word) for word in labels]
