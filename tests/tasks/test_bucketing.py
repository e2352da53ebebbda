"""Claims about batches of sequences of similar length."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_jax import tasks
from rnn_jax.tasks.bucketing import bucket_boundaries, padding_share, width_count

LENGTHS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6])  # 23, a prime number


def ragged(lengths):
    """Sequence i is full of i + 1, so that a batch shows which examples it holds; its label is i."""
    tokens = [np.full(length, i + 1, np.int32) for i, length in enumerate(lengths)]
    return tasks.RaggedSource({"tokens": tokens}, label=np.arange(len(lengths), dtype=np.int32))


def labels(iterator, count):
    return [batch["label"].tolist() for batch in itertools.islice(iterator, count)]


def padding(lengths, boundaries):
    return sum(min(width for width in boundaries if width >= length) - length for length in lengths)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 4))
def test_boundaries_need_the_least_padding_of_all_choices(lengths, count):
    boundaries = bucket_boundaries(np.array(lengths), count)
    assert boundaries[-1] == max(lengths)
    assert len(boundaries) <= count
    assert list(boundaries) == sorted(set(boundaries))
    smallest = min(
        padding(lengths, (*chosen, max(lengths)))
        for size in range(count)
        for chosen in itertools.combinations(range(1, max(lengths)), size)
    )
    assert padding(lengths, boundaries) == smallest


def test_boundaries_of_very_many_lengths_are_close_to_the_best():
    lengths = np.arange(1, 5001)
    boundaries = bucket_boundaries(lengths, 5)
    np.testing.assert_allclose(boundaries, [1000, 2000, 3000, 4000, 5000], atol=20)


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40).map(np.array),
    data=st.data(),
    seed=st.integers(0, 2**70),
)
def test_every_example_is_seen_once_an_epoch(lengths, data, seed):
    batch_size = data.draw(st.integers(1, len(lengths)))
    # After B epochs no example waits, and each has been seen B times.
    batches = tasks.batches(ragged(lengths), batch_size, seed, widths=bucket_boundaries(lengths, 3))
    stream = list(itertools.chain.from_iterable(labels(batches, len(lengths))))
    assert np.bincount(stream).tolist() == [batch_size] * len(lengths)
    # On the way, none is ahead of another by more than the epoch that is under way and the one that waits.
    for seen in range(batch_size, len(stream), batch_size):
        counts = np.bincount(stream[:seen], minlength=len(lengths))
        assert counts.max() - counts.min() <= 2


def test_an_epoch_of_whole_batches_holds_every_example_once():
    stream = list(
        itertools.chain.from_iterable(labels(tasks.batches(ragged(LENGTHS[:20]), 4, 0, widths=(3, 6, 9)), 15))
    )
    for epoch in range(3):
        assert sorted(stream[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_batches_hold_their_sequences_padded_to_a_boundary():
    boundaries = (2, 5, 9)
    for batch in itertools.islice(tasks.batches(ragged(LENGTHS), 4, 0, widths=boundaries), 50):
        tokens, lengths = batch["tokens"], batch["lengths"]
        assert tokens.shape[1] in boundaries
        np.testing.assert_array_equal(lengths, LENGTHS[batch["label"]])
        steps = np.arange(tokens.shape[1])
        expected = np.where(steps < lengths[:, None], batch["label"][:, None] + 1, 0)
        np.testing.assert_array_equal(tokens, expected.astype(np.int32), strict=True)


def test_a_batch_is_no_wider_than_needed_but_for_what_a_narrower_bucket_could_not_fill():
    # 12 sequences of length 2, 12 of 5 and 12 of 9, in batches of 4: nothing is left over.
    lengths = np.repeat([2, 5, 9], 12)
    for batch in itertools.islice(tasks.batches(ragged(lengths), 4, 3, widths=(2, 5, 9)), 18):
        assert np.all(batch["lengths"] == batch["tokens"].shape[1])


def test_a_seed_decides_the_batches_and_every_epoch_has_its_own_order():
    first, again, other = (labels(tasks.batches(ragged(LENGTHS), 4, seed, widths=(5, 9)), 20) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    epochs = labels(tasks.batches(ragged(LENGTHS), 23, 0, widths=(9,)), 5)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # Not the composition alone: long and short batches take turns differently.
    widths = [
        tuple(batch["tokens"].shape[1] for batch in itertools.islice(batches, 20))
        for batches in (tasks.batches(ragged(np.repeat([2, 5], 40)), 4, seed, widths=(2, 5)) for seed in range(5))
    ]
    assert len(set(widths)) == 5


@pytest.mark.parametrize("read", [0, 1, 5, 17])
def test_a_restored_iterator_gives_the_next_batch(read):
    iterator = tasks.batches(ragged(LENGTHS), 4, 0)
    labels(iterator, read)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(12)]
    for resumed in (iterator, tasks.batches(ragged(LENGTHS), 4, 0)):
        resumed.set_state(state)
        for batch in expected:
            for name, array in next(resumed).items():
                np.testing.assert_array_equal(array, batch[name], strict=True)


def test_a_step_is_compiled_once_for_each_boundary():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    boundaries = bucket_boundaries(lengths)
    assert len(boundaries) == 8
    traced = []

    @jax.jit
    def step(batch):
        traced.append(batch["tokens"].shape)
        return batch["tokens"].max(axis=1) - batch["lengths"]

    for batch in itertools.islice(tasks.batches(ragged(lengths), 16, 0), 3 * 500 // 16):
        step(batch)
    assert sorted(traced) == [(16, width) for width in boundaries]


@pytest.mark.parametrize(
    ("steps", "count"), [(1, 2), (200, 2), (201, 3), (300, 3), (700, 7), (701, 8), (800, 8), (10**6, 8)]
)
def test_a_short_run_has_fewer_widths(steps, count):
    assert width_count(steps) == count


def test_batches_have_the_widths_asked_for():
    batches = itertools.islice(tasks.batches(ragged(LENGTHS), 4, 0, widths=(5, 11)), 40)
    assert {batch["tokens"].shape[1] for batch in batches} == {5, 11}


def test_buckets_lower_the_share_of_padding():
    lengths = np.ceil(np.random.default_rng(0).lognormal(3.2, 0.8, 3000)).astype(int)
    alone = padding_share(lengths, 32, [lengths.max()])
    assert alone == pytest.approx(1 - lengths[: 3000 // 32 * 32].mean() / lengths.max(), rel=0.01)
    shares = [alone, *(padding_share(lengths, 32, bucket_boundaries(lengths, count)) for count in (2, 4, 8))]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < alone / 3


def test_the_share_of_padding_is_that_of_the_batches():
    boundaries = bucket_boundaries(LENGTHS, 3)
    steps = true_steps = 0
    for batch in itertools.islice(tasks.batches(ragged(LENGTHS), 4, 7, widths=boundaries), 23 // 4):
        steps += batch["tokens"].size
        true_steps += np.count_nonzero(batch["tokens"])
    assert padding_share(LENGTHS, 4, boundaries, seed=7) == pytest.approx(1 - true_steps / steps)


def test_what_cannot_be_batched_is_refused_in_one_sentence():
    source = ragged(LENGTHS)
    with pytest.raises(ValueError, match=r"^count=0 is out of range for bucket boundaries; allowed: 1 or more\.$"):
        bucket_boundaries(LENGTHS, 0)
    with pytest.raises(ValueError, match=r"^steps=0 is out of range for a number of widths; allowed: 1 or more\.$"):
        width_count(0)
    plain = tasks.ArraySource(tokens=np.zeros((8, 5), np.int32))
    with pytest.raises(ValueError, match=r"^the argument widths is for sequences of different lengths; .*: None\.$"):
        tasks.batches(plain, 4, 0, widths=(5,))
    for boundaries in ((), (5, 8), (9, 5), (5, 5, 9)):
        sentence = re.escape(f"widths={boundaries} do not hold sequences of up to 9 steps; allowed: ascending numbers")
        with pytest.raises(ValueError, match=f"^{sentence}, the last 9 or more\\.$"):
            tasks.batches(source, 4, 0, widths=boundaries)
    with pytest.raises(ValueError, match=r"^batch_size=24 is out of range; allowed: 1 to 23, the examples there are"):
        tasks.batches(source, 24, 0, widths=(9,))
    with pytest.raises(ValueError, match=r"^seed=-1 is out of range; allowed: 0 or more\.$"):
        tasks.batches(source, 4, -1)
