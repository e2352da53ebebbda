"""Claims about the batches of a source."""

import itertools
import json

import numpy as np
import pytest

from rnn_jax import tasks

_N = 10


@pytest.fixture
def source():
    """Ten examples of three steps; example i is full of i, so that a batch shows which examples it holds."""
    label = np.arange(_N, dtype=np.int32)
    return tasks.ArraySource(xs=np.tile(label[:, None, None].astype(np.float32), (1, 3, 1)), label=label)


def _labels(iterator, n_batches):
    return [batch["label"].tolist() for batch in itertools.islice(iterator, n_batches)]


def test_a_seed_decides_the_batches(source):
    first, again, other = (_labels(tasks.batches(source, 4, seed), 10) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("batch_size", [1, 3, _N])
def test_every_example_is_seen_once_an_epoch(source, batch_size):
    epochs = 3
    read = _labels(tasks.batches(source, batch_size, 0), epochs * _N // batch_size)
    stream = list(itertools.chain.from_iterable(read))
    for epoch in range(epochs):
        assert sorted(stream[epoch * _N : (epoch + 1) * _N]) == list(range(_N))


def test_every_epoch_has_its_own_order(source):
    assert len({tuple(epoch) for epoch in _labels(tasks.batches(source, _N, 0), 5)}) == 5


def test_batches_stack_examples_and_keep_their_dtype(source):
    batch = next(tasks.batches(source, 4, 0))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "xs": ((4, 3, 1), np.float32),
        "label": ((4,), np.int32),
    }
    np.testing.assert_array_equal(batch["xs"][:, 0, 0], batch["label"])


def test_a_restored_iterator_gives_the_next_batch(source):
    iterator = tasks.batches(source, 3, 0)
    _labels(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = _labels(iterator, 5)
    iterator.set_state(state)
    assert _labels(iterator, 5) == expected
    another = tasks.batches(source, 3, 0)
    another.set_state(state)
    assert _labels(another, 5) == expected


@pytest.mark.parametrize("batch_size", [-1, 0, _N + 1])
def test_a_batch_of_impossible_size_is_refused(source, batch_size):
    with pytest.raises(ValueError, match=rf"^batch_size={batch_size} is out of range; allowed: 1 to 10, .*\.$"):
        tasks.batches(source, batch_size, 0)


def test_a_negative_seed_is_refused(source):
    with pytest.raises(ValueError, match=r"^seed=-1 is out of range; allowed: 0 or more\.$"):
        tasks.batches(source, 1, -1)


def test_as_batch_holds_all_examples_in_order(source):
    batch = tasks.as_batch(source)
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(batch[name], array, strict=True)


def test_streams_go_on_where_their_batch_before_ended_and_begin_anew_with_each_pass():
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)  # 20 pieces, in streams of 6 for 3 rows
    iterator = tasks.stream_batches(source, 3)
    two_passes = [next(iterator) for _ in range(12)]
    for first_batch in (0, 6):
        one_pass = two_passes[first_batch : first_batch + 6]
        assert [bool(batch["first"]) for batch in one_pass] == [True] + 5 * [False]
        read = np.concatenate([batch["tokens"] for batch in one_pass], axis=1)
        np.testing.assert_array_equal(read, 30 * np.arange(3)[:, None] + np.arange(30))
        asked = np.concatenate([batch["labels"] for batch in one_pass], axis=1)
        np.testing.assert_array_equal(asked, read + 1)


def test_streams_resume_at_any_batch():
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)
    iterator = tasks.stream_batches(source, 3)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = tasks.stream_batches(source, 3)
    resumed.set_state(state)
    for _ in range(8):
        expected, found = next(iterator), next(resumed)
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("batch_size", [0, 21])
def test_more_streams_than_pieces_are_refused(batch_size):
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)
    with pytest.raises(ValueError, match=f"^batch_size={batch_size} is out of range; allowed: 1 to 20, the pieces"):
        tasks.stream_batches(source, batch_size)
