"""Claims about the word problem of S5."""

import itertools

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, s5
from tests.tasks import worked_example


def matrix(name):
    """The permutation as a matrix: e_i P = e_{p(i)}, so that a product of matrices, left to right, is `first, then`."""
    return np.eye(5, dtype=int)[[int(digit) for digit in name]]


def name_of(product):
    return "".join(str(row.argmax()) for row in product)


@pytest.mark.parametrize("seq_len", [1, 2, 30])
def test_the_answer_is_the_product_of_permutation_matrices(seq_len):
    task = s5(seq_len, test_size=100)
    batch = as_batch(task.test)
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        product = np.eye(5, dtype=int)
        for token, label in zip(tokens, labels):
            product = product @ matrix(task.class_names[token])
            assert task.class_names[label] == name_of(product)


def test_the_classes_are_all_permutations_in_order():
    names = s5().class_names
    assert list(names) == sorted("".join(order) for order in itertools.permutations("01234"))


def test_every_permutation_is_read_and_asked():
    batch = as_batch(s5(20, test_size=500).test)
    for values in batch.values():
        counts = np.bincount(values.ravel(), minlength=120)
        # Chi-square of 119 degrees of freedom: 205 is exceeded once in a million seeds.
        expected = values.size / 120
        assert np.sum((counts - expected) ** 2) / expected < 205


def test_the_worked_example_is_one():
    (tokens,), (labels,) = worked_example.rows(s5, "tokens", "labels")
    products = itertools.accumulate((matrix(word) for word in tokens), np.matmul)
    assert [name_of(product) for product in products] == labels
