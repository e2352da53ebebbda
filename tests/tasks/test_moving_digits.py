"""Claims about the digits that move."""

import itertools

import numpy as np
import pytest
import threadpoolctl
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from rnn_jax.tasks import as_batch, moving_digits


@pytest.fixture(scope="module")
def task(data_dir):
    return moving_digits(train_size=3000, test_size=1000, data_dir=data_dir)


@pytest.fixture(scope="module")
def batches(task):
    return {split: as_batch(getattr(task, split)) for split in ("train", "validation", "test")}


def digits_that_fit(xs, images):
    """The numbers of the images `[N, 8, 8]` of which all frames `[T, 16, 16]` show a part, found by trying all paths.

    An offset is known by its first value and its speed; which pixels a frame may show is then known, too.
    """
    fits = set()
    axes = list(itertools.product(range(9), (-2, -1, 1, 2)))
    for (row, down), (column, right) in itertools.product(axes, axes):
        candidates = np.arange(len(images))
        offsets = [row, column]
        speeds = [down, right]
        for frame in xs:
            window = frame[offsets[0] : offsets[0] + 8, offsets[1] : offsets[1] + 8]
            if np.count_nonzero(window) < np.count_nonzero(frame):
                break
            shown = images[candidates]
            candidates = candidates[np.all((window == 0) | (window == shown), axis=(1, 2))]
            if not len(candidates):
                break
            for axis in (0, 1):
                offsets[axis] += speeds[axis]
                if not 0 <= offsets[axis] <= 8:
                    offsets[axis] = -offsets[axis] if offsets[axis] < 0 else 16 - offsets[axis]
                    speeds[axis] = -speeds[axis]
        else:
            fits |= set(candidates.tolist())
    return fits


def test_every_sequence_is_a_real_digit_that_bounces_between_the_walls(batches):
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    for number in range(3):
        (digit,) = digits_that_fit(batches["test"]["xs"][number, ..., 0], images)
        assert labels[digit] == batches["test"]["label"][number]


def test_a_frame_shows_half_of_the_digit_and_all_frames_together_most_of_it(batches):
    pixels, _ = load_digits(return_X_y=True)
    xs = batches["train"]["xs"]
    assert xs.shape == (3000, 12, 16, 16, 1)
    assert np.unique(xs).tolist() == (np.arange(17) / 16).tolist()
    share = np.count_nonzero(xs) / xs.shape[0] / xs.shape[1] / np.count_nonzero(pixels) * len(pixels)
    assert share == pytest.approx(0.5, abs=0.01)


def test_an_example_depends_on_the_seed_and_its_number_alone(task, data_dir):
    again = moving_digits(train_size=10, test_size=4, data_dir=data_dir)
    other = moving_digits(train_size=10, test_size=4, seed=1, data_dir=data_dir)
    longer = moving_digits(train_size=10, test_size=4, test_seq_len=20, data_dir=data_dir)
    for index in (7, 0, 7):
        np.testing.assert_array_equal(again.train[index]["xs"], task.train[index]["xs"], strict=True)
        assert np.any(other.train[index]["xs"] != task.train[index]["xs"])
    assert (longer.seq_len, longer.test_seq_len) == (12, 20)
    np.testing.assert_array_equal(longer.train[3]["xs"], task.train[3]["xs"])
    assert longer.test[3]["xs"].shape == (20, 16, 16, 1)
    np.testing.assert_array_equal(longer.test[3]["xs"][:12], task.test[3]["xs"])
    assert longer.validation[3]["xs"].shape == (12, 16, 16, 1)


def test_examples_are_the_same_on_every_machine(data_dir):
    fingerprint = moving_digits(data_dir=data_dir).fingerprint
    assert (fingerprint["train_sha256"], fingerprint["test_sha256"]) == (
        "66a93cfb5256e8bd167a89fd6009d3e2cfcca23f0a95c9289a498857ee710ba5",
        "9f714bf93ed74a243b80acadb643e20962113eb3cc9619b84785e4b32ee37a84",
    )


def test_no_digit_is_in_two_splits(data_dir):
    task = moving_digits(data_dir=data_dir)
    images = {split: getattr(task, split).example.args[0] for split in ("train", "validation", "test")}
    assert {split: len(array) for split, array in images.items()} == {"train": 1150, "validation": 287, "test": 360}
    assert len({image.tobytes() for array in images.values() for image in array}) == 1797


def test_the_scores_are_those_that_the_docstring_says(task, batches):
    train, test = batches["train"], batches["test"]
    rng = np.random.default_rng(0)

    def half(images):
        repeated = np.repeat(images, 3, axis=0).reshape(-1, 64)
        return repeated * rng.integers(0, 2, repeated.shape)

    def percent(train_xs, train_label, test_xs, test_label):
        with threadpoolctl.threadpool_limits(1):  # matrices too small for threads, which would fight over the cores
            classifier = LogisticRegression(max_iter=300).fit(train_xs, train_label)
        return 100 * classifier.score(test_xs, test_label)

    (images, labels), (test_images, test_labels) = task.train.example.args, task.test.example.args
    last_frames, test_frames = (split["xs"][:, -1].reshape(-1, 256) for split in (train, test))
    assert percent(last_frames, train["label"], test_frames, test["label"]) == pytest.approx(12, abs=2)
    known_place = (half(images), np.repeat(labels, 3), half(test_images), np.repeat(test_labels, 3))
    assert percent(*known_place) == pytest.approx(73, abs=2)
    whole = (images.reshape(-1, 64), labels, test_images.reshape(-1, 64), test_labels)
    assert percent(*whole) == pytest.approx(97, abs=1)
    commonest = np.bincount(labels).argmax()
    assert task.baseline_score == pytest.approx(np.mean(test["label"] == commonest))
    assert task.baseline_score == pytest.approx(0.108)


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
    for options, sentence in (
        ({"seq_len": 0}, r"^seq_len=0 is out of range; allowed: 1 or more\.$"),
        ({"test_seq_len": -3}, r"^test_seq_len=-3 is out of range; allowed: 1 or more\.$"),
        ({"test_size": 0}, r"^test_size=0 is out of range; allowed: 1 or more\.$"),
        ({"seed": -1}, r"^seed=-1 is out of range; allowed: 0 to 2\*\*64 - 1\.$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            moving_digits(data_dir=tmp_path / "untouched", **options)
    assert not (tmp_path / "untouched").exists()
