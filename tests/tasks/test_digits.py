"""Claims about the digits of scikit-learn as a task."""

import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import threadpoolctl
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from rnn_jax.tasks import as_batch, digits
from rnn_jax.tasks.digits import SklearnDigits
from tests.experiments.command import fork

_TRAIN_SHARD = "sklearn_digits-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder prepared once, which tests read and leave as it is."""
    path = tmp_path_factory.mktemp("tfds")
    digits(data_dir=path)
    return path


@pytest.fixture(scope="module")
def splits(data_dir):
    task = digits(data_dir=data_dir)
    return as_batch(task.train), as_batch(task.test)


def _files(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_the_content_is_scikit_learns_up_to_order(splits):
    pixels, labels = load_digits(return_X_y=True)
    expected = {(*row, label) for row, label in zip(pixels / 16, labels, strict=True)}
    assert len(expected) == 1797  # no image occurs twice, so sets compare everything
    ours = [
        (*xs.astype(np.float64), label)
        for split in splits
        for xs, label in zip(split["xs"][..., 0], split["label"], strict=True)
    ]
    assert len(ours) == 1797
    assert set(ours) == expected


def test_the_split_is_disjoint_and_stratified(splits):
    train, test = splits
    assert (len(train["label"]), len(test["label"])) == (1437, 360)
    images = [{xs.tobytes() for xs in split["xs"]} for split in splits]
    assert not images[0] & images[1]
    of_class = np.bincount(train["label"]) + np.bincount(test["label"])
    assert np.all(abs(np.bincount(test["label"]) - of_class * 360 / 1797) < 1)


def test_blanks_are_exact_zeros_behind_the_pixels(data_dir, splits):
    task = digits(blanks=5, data_dir=data_dir)
    assert (task.seq_len, task.in_features, task.out_features) == (69, 1, 10)
    for split, plain in zip((task.train, task.test), splits, strict=True):
        batch = as_batch(split)
        np.testing.assert_array_equal(batch["xs"][:, :64], plain["xs"])
        np.testing.assert_array_equal(batch["xs"][:, 64:], np.zeros((len(split), 5, 1)))
        np.testing.assert_array_equal(batch["label"], plain["label"])


def test_the_test_split_alone_may_have_other_blanks(data_dir, splits):
    task = digits(blanks=2, test_seq_len=80, data_dir=data_dir)
    assert (task.seq_len, task.test_seq_len) == (66, 80)
    assert (
        task.description
        == "Which handwritten digit was read, pixel by pixel, 2 blank steps ago. Tested on sequences of 80 steps."
    )
    assert task.fingerprint["train_sha256"] == digits(blanks=2, data_dir=data_dir).fingerprint["train_sha256"]
    assert task.fingerprint["test_sha256"] == digits(blanks=16, data_dir=data_dir).fingerprint["test_sha256"]
    assert task.baseline_score == digits(data_dir=data_dir).baseline_score
    batch = as_batch(task.test)
    np.testing.assert_array_equal(batch["xs"][:, :64], splits[1]["xs"])
    np.testing.assert_array_equal(batch["xs"][:, 64:], np.zeros((360, 16, 1)))


def test_a_row_of_pixels_a_step_is_the_same_images_in_the_same_order(data_dir, splits):
    task = digits(blanks=3, rows=True, data_dir=data_dir)
    assert (task.seq_len, task.in_features) == (11, 8)
    assert task.description == "Which handwritten digit was read, row by row, 3 blank steps ago."
    for split, plain in zip((task.train, task.test), splits, strict=True):
        batch = as_batch(split)
        for row in range(8):
            np.testing.assert_array_equal(batch["xs"][:, row], plain["xs"][:, 8 * row : 8 * row + 8, 0])
        np.testing.assert_array_equal(batch["xs"][:, 8:], np.zeros((len(split), 3, 8)))
        np.testing.assert_array_equal(batch["label"], plain["label"])
    assert digits(seq_len=11, rows=True, data_dir=data_dir).fingerprint == task.fingerprint
    assert digits(rows=False, data_dir=data_dir).fingerprint == digits(data_dir=data_dir).fingerprint


def test_the_baseline_score_is_reached_by_answering_the_commonest_class(data_dir, splits):
    train, test = splits
    task = digits(data_dir=data_dir)
    logits = np.bincount(train["label"], minlength=10).astype(np.float32)
    score = np.divide(*task.score(lambda xs: np.tile(logits, (len(xs), 1)), test))
    assert float(score) == pytest.approx(task.baseline_score, abs=1e-7)
    assert 0.09 < task.baseline_score < 0.11


@pytest.mark.parametrize(("last", "percent"), [(64, 96.7), (48, 94.7), (32, 84.4), (16, 61.4), (8, 50.0)])
def test_logistic_regression_gets_what_the_docstring_says(splits, last, percent):
    (train_xs, train_label), (test_xs, test_label) = (
        (split["xs"][:, -last:, 0].astype(np.float64), split["label"]) for split in splits
    )
    with threadpoolctl.threadpool_limits(1):  # matrices too small for threads, which would fight over the cores
        classifier = LogisticRegression(max_iter=2000).fit(train_xs, train_label)
    assert 100 * classifier.score(test_xs, test_label) == pytest.approx(percent, abs=0.6)  # two images of 360


def test_reopening_changes_neither_content_nor_files(data_dir):
    first, files = digits(data_dir=data_dir), _files(data_dir)
    assert digits(data_dir=data_dir).fingerprint == first.fingerprint
    assert _files(data_dir) == files


def test_another_preparation_has_the_same_fingerprint(data_dir, tmp_path):
    assert digits(data_dir=tmp_path).fingerprint == digits(data_dir=data_dir).fingerprint


def test_the_fingerprint_tells_blanks_apart(data_dir):
    digests = {digits(blanks, data_dir).fingerprint["train_sha256"] for blanks in (0, 1, 2)}
    assert len(digests) == 3


def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digits()
    assert (tmp_path / "cache/rnn_jax/tfds/sklearn_digits/1.0.0").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    digits()
    assert (tmp_path / ".cache/rnn_jax/tfds/sklearn_digits/1.0.0").is_dir()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    digits(data_dir="~/data")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_preparing_leaves_stdout_to_the_caller(tmp_path, capfd):
    digits(data_dir=tmp_path)
    assert capfd.readouterr().out == ""


_DAMAGE = {
    "no metadata": lambda folder: [file.unlink() for file in folder.glob("*.json")],
    "half the metadata": lambda folder: os.truncate(folder / "dataset_info.json", 100),
    "no records": lambda folder: (folder / _TRAIN_SHARD).unlink(),
    "half the records": lambda folder: os.truncate(folder / _TRAIN_SHARD, 70_000),
    "empty records": lambda folder: os.truncate(folder / _TRAIN_SHARD, 0),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_folder_is_prepared_again(data_dir, tmp_path, damage):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    _DAMAGE[damage](tmp_path / "sklearn_digits/1.0.0")
    assert digits(data_dir=tmp_path).fingerprint == digits(data_dir=data_dir).fingerprint
    files = _files(tmp_path)
    digits(data_dir=tmp_path)
    assert _files(tmp_path) == files


def prepare_and_die(folder):
    whole = SklearnDigits._generate_examples

    def killed(self, *args):
        for n, example in enumerate(whole(self, *args)):
            if n == 100:
                os.kill(os.getpid(), signal.SIGKILL)
            yield example

    SklearnDigits._generate_examples = killed
    digits(data_dir=folder)


def test_a_killed_preparation_is_cleared_away_and_made_again(data_dir, tmp_path):
    process = fork(prepare_and_die, tmp_path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / "sklearn_digits"
    assert [path.name.split(".")[0] for path in folder.iterdir()] == ["incomplete"]
    assert digits(data_dir=tmp_path).fingerprint == digits(data_dir=data_dir).fingerprint
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]


def prepare_at_a_word(folder, pipe):
    pipe.send("ready")
    pipe.recv()
    pipe.send(digits(data_dir=folder).fingerprint)


def test_two_processes_that_prepare_at_once_both_succeed(data_dir, tmp_path):
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    for _, there in pipes:
        fork(prepare_at_a_word, tmp_path, there)
        there.close()  # here, so that an end of the process is an end of the pipe
    for here, _ in pipes:
        assert here.recv() == "ready"
    for here, _ in pipes:
        here.send("go")
    assert [here.recv() for here, _ in pipes] == [digits(data_dir=data_dir).fingerprint] * 2


def test_negative_blanks_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^blanks=-1 is out of range; allowed: 0 or more\.$"):
        digits(blanks=-1, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seq_len": 7, "rows": True}, r"seq_len=7 is out of range for the task 'digits'; allowed: 8 or more\."),
        ({"seq_len": 63}, r"seq_len=63 is out of range for the task 'digits'; allowed: 64 or more\."),
        ({"seq_len": 9, "blanks": 2, "rows": True}, r"seq_len=9 and blanks=2 contradict .*, seq_len = 8 \+ blanks\."),
    ],
)
def test_a_length_that_no_blanks_give_is_refused_in_one_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        digits(data_dir=tmp_path, **options)
