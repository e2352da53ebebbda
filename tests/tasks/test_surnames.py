"""Claims about Faker's lists of surnames as a task."""

import itertools

import numpy as np
import pytest
from faker import Faker

from rnn_jax.tasks.surnames import LOCALE_LISTS, read_surnames, surnames
from rnn_jax.tasks.text import tfidf_baseline


@pytest.fixture(scope="module")
def task(data_dir):
    return surnames(data_dir=data_dir)


def test_every_name_stands_on_one_side(task):
    names = [
        [task.vocabulary.decode(source[i]["tokens"]) for i in range(len(source))]
        for source in (task.train, task.validation, task.test)
    ]
    for one, other in itertools.combinations(map(set, names), 2):
        assert not one & other
    assert sum(map(len, names)) == len(read_surnames())


def test_the_names_are_as_measured(task):
    lengths = np.concatenate([source.lengths for source in (task.train, task.validation, task.test)])
    assert (lengths.min(), np.median(lengths), lengths.max()) == (2, 7, 40)
    assert len(lengths) == pytest.approx(17_900, abs=200)
    assert task.out_features == len(LOCALE_LISTS) == 23
    assert task.baseline_score == pytest.approx(0.135, abs=0.005)


def test_every_list_has_names_in_every_split(task):
    totals = sum(np.bincount(s.arrays["label"], minlength=23) for s in (task.train, task.validation, task.test))
    assert totals.min() >= 100
    for source in (task.train, task.validation, task.test):
        assert np.bincount(source.arrays["label"], minlength=23).min() >= 10


def test_names_are_those_that_faker_gives():
    names = read_surnames()
    faker = Faker("it_IT")
    faker.seed_instance(0)
    drawn = [faker.last_name() for _ in range(500)]
    lists = [names[name] for name in drawn if name in names]
    assert set(lists) == {"it_IT"}
    assert len(lists) > 400  # the others stand in another list, too


@pytest.mark.slow
def test_the_baseline_is_as_measured(task):
    assert tfidf_baseline(task)["character 1-3-grams"] == pytest.approx(0.78, abs=0.015)
