"""Claims about addition."""

import numpy as np
import pytest

from rnn_jax.tasks import addition, as_batch
from tests.tasks import worked_example


def number(digits):
    return int("".join(str(digit) for digit in digits))


@pytest.mark.parametrize(("digits", "lowest_first"), [(1, False), (4, True), (15, False), (40, False)])
def test_the_answer_is_the_sum_in_all_its_places(digits, lowest_first):
    batch = as_batch(addition(digits, test_size=200, lowest_first=lowest_first).test)
    turn = -1 if lowest_first else 1
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        first, second = tokens[:digits], tokens[digits + 1 : 2 * digits + 1]
        assert tokens[digits] == 10
        assert tokens[2 * digits + 1 :] == [10] * (digits + 2)
        assert labels[: 2 * digits + 2] == [-1] * (2 * digits + 2)
        said = labels[2 * digits + 2 :]
        assert len(said) == digits + 1
        assert number(first[::turn]) + number(second[::turn]) == number(said[::turn])


@pytest.mark.parametrize(("digits", "test_seq_len"), [(1, None), (2, None), (5, 6)])
def test_the_baseline_is_the_share_of_places_that_are_zero(digits, test_seq_len):
    """All sums of numbers of the test split's length, written out."""
    task = addition(digits, test_seq_len=test_seq_len)
    places = (task.test_seq_len or task.seq_len) // 3
    one = np.arange(10 ** (places - 1))
    sums = (one[:, None] + one[None, :]).ravel()
    by_place = [np.mean(sums // 10**place % 10 == 0) for place in range(places)]
    assert task.baseline_score == pytest.approx(np.mean(by_place), rel=1e-12)


def test_the_worked_examples_are_sums():
    for first, read in (("tokens", 1), ("lowest", -1)):
        ((words,), labels) = worked_example.rows(addition, first, "labels")
        said = [word for word in labels[0 if read == 1 else 1] if word != "."]
        one, two = ([word for word in words if word != "-"][k : k + 3] for k in (0, 3))
        assert number(one[::read]) + number(two[::read]) == number(said[::read])
        assert len(words) == addition(3).seq_len


def test_a_length_says_how_many_digits_and_what_is_left_stands_in_front():
    assert addition(seq_len=48).seq_len == addition(15).seq_len == 48
    longer, exact = addition(3, test_seq_len=20).test[0], addition(5).test[0]
    for name, front in (("tokens", 10), ("labels", -1)):
        np.testing.assert_array_equal(longer[name], np.concatenate([[front, front], exact[name]]))
