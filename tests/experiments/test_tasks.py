"""Claims about `python -m experiments.tasks`, through its command line."""

import re

import pytest

from rnn_jax import tasks
from tests.experiments.command import run


def show(*flags):
    done = run("tasks", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def listing(data_dir):
    return show(f"--data_dir={data_dir}")


def test_every_task_is_listed_with_its_size_score_and_license(listing, data_dir):
    lines = {line.split()[0]: line for line in listing.splitlines() if line}
    assert set(tasks.TASKS) <= set(lines)
    for name in ("adding", "digits", "parity", "surnames"):  # all are counted by the same lines
        task = tasks.make_task(name, data_dir=data_dir)
        for text in (f"{len(task.train):,}", f"{len(task.test):,}", task.metric, f"{task.baseline_score:.3f}"):
            assert re.search(rf"\s{re.escape(text)}\s", lines[name]), (text, lines[name])
        assert lines[name].endswith(task.license or "generated")
    for prefix in tasks.PREFIXES:
        assert f"{prefix}:..." in lines


def test_a_text_is_shown_as_text_with_its_class(data_dir):
    shown = show("--task=language_id", "--tokens=word", "--max_length=5", f"--data_dir={data_dir}")
    task = tasks.make_task("language_id", tokens="word", max_length=5, data_dir=data_dir)
    for index in range(3):
        example = task.train[index]
        text, name = task.vocabulary.decode(example["tokens"]), task.class_names[example["label"]]
        assert f"Example {index} of the training split:\n  {text!r}\n  -> {name}\n" in shown
    assert f"{task.in_features:,} words" in shown
    assert task.fingerprint["train_sha256"] in shown
    assert f"{task.baseline_score:.4f} for the input-independent baseline" in shown
    assert "--max_length" in shown


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--task=parity", "--seq_len=7"), r"tokens( +[01]){7}\n  labels( +[01]){7}\n"),
        (
            ("--task=adding", "--seq_len=3"),
            r"xs\[:, 0\]( +0\.\d{3}){3}\n  xs\[:, 1\]( +[01]\.000){3}\n  -> \d\.\d{3}\n",
        ),
        (("--task=sine", "--seq_len=4"), r"xs\[:, 0\]( +-?\d\.\d{3}){4}\n  targets( +-?\d\.\d{3}){4}\n"),
    ],
)
def test_numbers_are_shown_as_numbers(flags, expected):
    shown = show(*flags)
    assert len(re.findall(expected, shown)) == 3
    assert "license      none needed: the examples are generated" in shown


def test_ones_own_texts_are_shown_with_their_baseline(tmp_path):
    rows = [f"this is {word} number {k},{label}" for k in range(40) for word, label in (("good", "yes"), ("bad", "no"))]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["what,topic", *rows]))
    shown = show(f"--task=csv:{path}", "--text_column=what", "--label_column=topic", "--baseline", "--batch=8")
    assert "1.0000 by logistic regression on the TF-IDF of word 1-2-grams" in shown
    assert "1.0000 by logistic regression on the TF-IDF of character 1-3-grams" in shown
    assert "% of the steps of batches of 8" in shown
