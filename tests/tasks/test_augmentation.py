"""Claims about texts that are changed again whenever they are read."""

import itertools

import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks.augmentation import make_augmentation
from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN

LENGTHS = np.array([1, 2, 5, 40, 17, 40, 3, 29])


def batch_of(lengths=LENGTHS, width=40):
    """Row b holds 100 b + 10, 100 b + 11, ..., so that a piece shows where it comes from."""
    steps = np.arange(width)
    tokens = 100 * np.arange(len(lengths))[:, None] + 10 + steps
    tokens = np.where(steps < lengths[:, None], tokens, PADDING).astype(np.int32)
    return {"tokens": tokens, "lengths": lengths.astype(np.int32), "label": np.arange(len(lengths))}


def test_half_of_the_texts_become_pieces_of_at_least_the_share_asked_at_any_place():
    batch = batch_of()
    augment = make_augmentation(0, crop=0.25)
    shares, places = [], []
    for number in range(500):
        after = augment(batch, number)
        assert after["tokens"].shape == batch["tokens"].shape
        assert after["tokens"].dtype == batch["tokens"].dtype
        np.testing.assert_array_equal(after["label"], batch["label"])
        for row, length in enumerate(after["lengths"]):
            piece, rest = np.split(after["tokens"][row], [length])
            first = piece[0] - batch["tokens"][row, 0]
            assert 1 <= length <= LENGTHS[row] - first
            np.testing.assert_array_equal(piece, batch["tokens"][row, first : first + length])
            np.testing.assert_array_equal(rest, PADDING)
            if LENGTHS[row] == 40:
                shares.append(length / 40)
                places.append(first / (40 - length) if length < 40 else np.nan)
    shares, places = np.array(shares), np.array(places)
    assert shares.min() == 0.275  # 11 of 40, the first above a quarter
    assert np.mean(shares == 1) == pytest.approx(0.5 + 0.5 / 30, abs=0.05)  # and what was rounded up
    assert np.mean(shares[shares < 1]) == pytest.approx(0.625, abs=0.03)
    assert np.nanmean(places) == pytest.approx(0.5, abs=0.04)
    assert np.nanmin(places) == 0
    assert np.nanmax(places) == 1


def test_tokens_become_unknown_at_the_rate_asked_and_padding_does_not():
    batch = batch_of()
    unknown = np.zeros(batch["tokens"].shape)
    for number in range(400):
        after = make_augmentation(3, token_dropout=0.2)(batch, number)
        np.testing.assert_array_equal(after["lengths"], LENGTHS)
        lost = after["tokens"] == UNKNOWN
        np.testing.assert_array_equal(np.where(lost, batch["tokens"], after["tokens"]), batch["tokens"])
        unknown += lost
    true_steps = np.arange(40) < LENGTHS[:, None]
    assert not unknown[~true_steps].any()
    np.testing.assert_allclose(unknown[true_steps] / 400, 0.2, atol=0.1)
    assert unknown[true_steps].mean() / 400 == pytest.approx(0.2, abs=0.01)


def test_what_is_drawn_hangs_on_the_seed_and_the_number_of_the_batch_alone():
    def read(seed, batch_seed=0):
        source = tasks.RaggedSource({"tokens": [np.arange(10, 10 + n) for n in LENGTHS]}, label=np.arange(len(LENGTHS)))
        return tasks.batches(source, 3, batch_seed, make_augmentation(seed, crop=0.1, token_dropout=0.1))

    def same(one, other):
        return all(np.array_equal(one[name], other[name]) for name in one)

    first = list(itertools.islice(read(0), 6))
    assert all(map(same, first, read(0)))
    assert not all(map(same, first, read(1)))
    resumed = read(0)
    for _ in range(4):
        next(resumed)
    state = resumed.get_state()
    resumed = read(0)
    resumed.set_state(state)
    assert same(next(resumed), first[4])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"crop": 0.0}, "crop=0.0 is out of range; allowed: above 0, and 1 at most."),
        ({"crop": 1.5}, "crop=1.5 is out of range; allowed: above 0, and 1 at most."),
        ({"token_dropout": 1.0}, "token_dropout=1.0 is out of range; allowed: 0 to below 1."),
        ({"token_dropout": -0.1}, "token_dropout=-0.1 is out of range; allowed: 0 to below 1."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make_augmentation(0, **arguments)


def test_sequences_of_one_length_are_not_augmented():
    source = tasks.ArraySource(tokens=np.zeros((4, 5), np.int32), label=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="augment is for sequences of different lengths"):
        tasks.batches(source, 2, 0, make_augmentation(0, crop=0.5))
