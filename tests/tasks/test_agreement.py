"""Claims about sentences whose pronoun takes up a subject far before it."""

import collections
import importlib

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from rnn_jax import tasks
from rnn_jax.tasks.prepared import split_of

grammar = importlib.import_module("rnn_jax.tasks.agreement")
WOMEN, MEN = grammar._WORDS["WOMAN"], grammar._WORDS["MAN"]


def sentences(split="train", size=3000, distance=15, seed=0):
    return grammar.draw_sentences(split, size, distance, (seed, 0))


def test_the_answer_is_the_pronoun_of_the_subject():
    for sentence in sentences():
        start, stop = sentence.subject
        subject = sentence.words[start:stop]
        if len(subject) == 3:
            assert subject[1] == "and"
            assert subject[0] != subject[2]
            assert sentence.answer == 2
        else:
            (name,) = subject
            assert name in (WOMEN, MEN)[sentence.answer]
        assert not {*sentence.words[:start]} & {*WOMEN, *MEN}
        assert sentence.words[-2:] == ("said", "that")
        assert 2 <= sentence.distance == len(sentence.words) - stop <= 15


def test_answers_are_equally_frequent_and_distances_all_occur():
    drawn = sentences()
    assert collections.Counter(sentence.answer for sentence in drawn) == {0: 1000, 1: 1000, 2: 1000}
    assert {sentence.distance for sentence in drawn} == set(range(2, 16))


def test_what_stands_behind_the_subject_does_not_tell_the_answer():
    """Logistic regression on words and pairs of words behind the subject answers by chance."""
    drawn = sentences(size=6000)
    texts = [" ".join(sentence.words[sentence.subject[1] :]) for sentence in drawn]
    labels = np.array([sentence.answer for sentence in drawn])
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression()).fit(texts[:4500], labels[:4500])
    assert abs(model.score(texts[4500:], labels[4500:]) - 1 / 3) < 4 * np.sqrt(2 / 9 / 1500)


def test_the_split_is_by_names():
    names = {}
    for split in ("train", "validation", "test"):
        names[split] = {grammar._names_of(sentence) for sentence in sentences(split, 900)}
        assert all(split_of(of_sentence) == split for of_sentence in names[split])
    pairs = {split: {tuple(text.split()) for text in texts} for split, texts in names.items()}
    assert not pairs["train"] & pairs["test"]


def test_the_task_has_words_and_longer_test_sentences_and_is_the_same_when_made_again():
    task = tasks.make_task("agreement", train_size=300, test_size=90, distance=6, test_distance=12)
    assert task.class_names == ("she", "he", "they")
    assert task.baseline_score == 1 / 3
    longest = {name: split.lengths.max() for name, split in (("train", task.train), ("test", task.test))}
    assert longest["train"] <= 3 + 3 + 6 < longest["test"] <= 3 + 3 + 12
    again = tasks.make_task("agreement", train_size=300, test_size=90, distance=6, test_distance=12)
    assert again.fingerprint == task.fingerprint


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"distance": 1}, "distance=1 is out of range; allowed: 2 to 1000, the words 'said that' among them"),
        ({"test_distance": 0}, "test_distance=0 is out of range"),
        ({"train_size": 2}, "train_size=2 is out of range; allowed: 3 to"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_what_is_out_of_range_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        tasks.make_task("agreement", **options)
