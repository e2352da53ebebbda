"""Claims about classes and stratified splits."""

import re

import numpy as np
import pytest

from rnn_jax.tasks.splits import class_names, stratified_split

_SHARES = {"validation": 0.1, "test": 0.1}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["4.5", "10", "0"], ("0", "4.5", "10")),
        (["10", "9", "none"], ("10", "9", "none")),
    ],
)
def test_numbers_are_ordered_as_numbers_and_words_as_words(labels, names):
    assert class_names(labels) == names


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_every_example_falls_into_one_part_and_every_class_has_its_share(seed):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 37, 3]))
    parts = stratified_split(labels, "abc", _SHARES, seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(140))
    counts = {part: np.bincount(labels[rows], minlength=3).tolist() for part, rows in parts.items()}
    assert counts == {"train": [80, 29, 1], "validation": [10, 4, 1], "test": [10, 4, 1]}
    assert all(np.all(np.diff(rows) > 0) for rows in parts.values())


def test_a_seed_decides_the_split():
    labels = np.repeat([0, 1], 50)
    first, again, other = (stratified_split(labels, "ab", _SHARES, seed)["test"].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_every_example_is_as_likely_as_any_other_to_be_tested():
    times = np.zeros(10)
    for seed in range(500):
        times[stratified_split(np.zeros(10, np.int32), "a", {"test": 0.3}, seed)["test"]] += 1
    # 500 draws of 3 in 10: a mean of 150 and a standard deviation of 10.2 for each.
    assert times.sum() == 1500
    assert np.all(abs(times - 150) < 45)


def test_a_class_too_small_for_all_parts_is_named():
    sentence = (
        "the class 'b' has too few examples to give one to each of train, validation, test: 2; needed: 3 or more."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        stratified_split(np.array([0, 1, 0, 1, 0]), "ab", _SHARES, 0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"^split_seed={seed} is out of range; allowed: 0 to 2\*\*64 - 1\.$"):
        stratified_split(np.zeros(9, np.int32), "a", _SHARES, seed)
