"""Claims about the adding problem."""

import itertools

import numpy as np
import pytest

from rnn_jax.tasks import adding, as_batch, batches


@pytest.mark.parametrize("seq_len", [2, 3, 7, 100])
def test_the_target_is_the_value_times_the_marker(seq_len):
    batch = as_batch(adding(seq_len, test_size=50).test)
    values_BT, markers_BT = batch["xs"][..., 0], batch["xs"][..., 1]
    np.testing.assert_array_equal(batch["target"][:, 0], np.sum(values_BT * markers_BT, axis=1))


@pytest.mark.parametrize("seq_len", [2, 3, 7, 8])
def test_every_step_of_a_half_can_bear_its_one_marker(seq_len):
    markers_BT = as_batch(adding(seq_len, test_size=300).test)["xs"][..., 1]
    half = seq_len // 2
    assert set(np.unique(markers_BT)) <= {0, 1}
    for markers in (markers_BT[:, :half], markers_BT[:, half:]):
        np.testing.assert_array_equal(markers.sum(axis=1), 1)
        assert np.all(markers.sum(axis=0) > 300 / markers.shape[1] / 2)


def test_values_are_uniform_and_independent():
    values_BT = as_batch(adding(100, test_size=1000).test)["xs"][..., 0].astype(np.float64)
    assert values_BT.min() >= 0
    assert values_BT.max() < 1
    counts, _ = np.histogram(values_BT, bins=20, range=(0, 1))
    # Chi-square of 19 degrees of freedom: 60 is exceeded once in 300,000 seeds, and the seed is fixed.
    assert np.sum((counts - 5000) ** 2) / 5000 < 60
    for left, right in ((values_BT[:-1], values_BT[1:]), (values_BT[:, :-1], values_BT[:, 1:])):
        n = left.size
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / np.sqrt(n)


def test_no_example_is_drawn_twice():
    """Not within a split, between the splits, or between seeds."""
    sources = [source for seed in (0, 1) for task in [adding(10, 200, 200, seed)] for source in (task.train, task.test)]
    examples = [source[index]["xs"].tobytes() for source in sources for index in range(200)]
    assert len(set(examples)) == 800


def test_an_example_depends_on_its_number_alone():
    task, larger = adding(10, test_size=5), adding(10, test_size=50)
    for index in (4, 0, 4):
        np.testing.assert_array_equal(task.test[index]["xs"], larger.test[index]["xs"])


def test_examples_are_the_same_on_every_machine():
    """Frozen on purpose: a run made elsewhere, or last year, must have seen these numbers."""
    xs = adding(4, seed=7).train[3]["xs"]
    assert (xs[:, 0] * 2**24).tolist() == [4533140, 14696844, 1016643, 5662607]
    assert xs[:, 1].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("constant", [0.9, 1.0, 1.2])
def test_a_constant_scores_as_derived_and_none_beats_one(constant):
    task = adding(20, test_size=4000)
    batch = as_batch(task.test)
    score = np.divide(*task.score(lambda xs: np.full((len(xs), 1), constant, np.float32), batch))
    # x = U + V - 1 is triangular on [-1, 1]: E x^2 = 1/6, E x^4 = 1/15; the error is (x - d)^2, d = c - 1.
    d = constant - 1
    variance = 1 / 15 - 1 / 36 + 4 * d**2 / 6
    assert abs(score - (1 / 6 + d**2)) < 4 * np.sqrt(variance / 4000)
    assert task.baseline_score == pytest.approx(1 / 6)
    assert not task.higher_is_better


def test_a_trillion_examples_cost_no_memory():
    task = adding(10, train_size=10**12)
    assert len(task.train) == 10**12
    assert task.train[10**12 - 1]["xs"].shape == (10, 2)


def test_a_hundred_million_examples_are_shuffled():
    first, second = (next(batches(adding(10, train_size=10**8).train, 8, seed)) for seed in (0, 1))
    assert not np.array_equal(first["target"], second["target"])


def test_a_source_ends():
    source = adding(4, train_size=3).train
    assert len(list(itertools.islice(source, 10))) == 3
    with pytest.raises(IndexError):
        source[-1]


def test_the_fingerprint_tells_seeds_and_lengths_apart():
    digests = {adding(**kwargs).fingerprint["train_sha256"] for kwargs in ({}, {"seed": 1}, {"seq_len": 99})}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"seq_len": 1}, r"seq_len=1 is out of range; allowed: 2 or more, one step for each marker\."),
        ({"train_size": 0}, r"train_size=0 is out of range; allowed: 1 or more\."),
        ({"test_size": -2}, r"test_size=-2 is out of range; allowed: 1 or more\."),
        ({"seed": -1}, r"seed=-1 is out of range; allowed: 0 to 2\*\*64 - 1\."),
        ({"seed": 2**64}, r"seed=18446744073709551616 is out of range; allowed: 0 to 2\*\*64 - 1\."),
    ],
)
def test_an_argument_out_of_range_is_refused_in_one_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        adding(**kwargs)
