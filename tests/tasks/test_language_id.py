"""Claims about the translations of Django as a task."""

import itertools
import sys

import django
import numpy as np
import pytest
from django.conf import settings
from django.utils import translation

from rnn_jax.tasks import prepared
from rnn_jax.tasks.language_id import LANGUAGES, LanguageId, language_id, read_translations
from rnn_jax.tasks.text import tfidf_baseline


@pytest.fixture(scope="module")
def task(data_dir):
    return language_id(data_dir=data_dir)


def texts_of(task):
    return [
        {task.vocabulary.decode(source[i]["tokens"]) for i in range(len(source))}
        for source in (task.train, task.validation, task.test)
    ]


def test_no_english_message_is_translated_on_both_sides():
    translations = read_translations()
    messages = [{translations[text][1] for text, _ in pairs} for pairs in LanguageId.texts(None).values()]
    assert all(messages)
    for one, other in itertools.combinations(messages, 2):
        assert not one & other


def test_no_text_stands_on_both_sides(data_dir):
    texts = texts_of(language_id(tokens="byte", data_dir=data_dir))
    for one, other in itertools.combinations(texts, 2):
        assert not one & other
    assert set.union(*texts) == set(read_translations())


def test_the_messages_are_as_measured(task):
    lengths = np.concatenate([source.lengths for source in (task.train, task.validation, task.test)])
    assert 10_000 < len(lengths) < 11_500
    assert (lengths.min(), np.median(lengths)) == (10, pytest.approx(26, abs=1))
    assert lengths.max() == task.seq_len < 420
    assert task.out_features == len(task.class_names) == len(LANGUAGES) == 20
    assert task.baseline_score == pytest.approx(0.056, abs=0.003)
    shares = np.array([len(source) for source in (task.train, task.validation, task.test)]) / len(lengths)
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.02)
    for source in (task.train, task.validation, task.test):
        counts = np.bincount(source.arrays["label"], minlength=20) / len(source)
        assert counts.min() > 0.04
        assert counts.max() < 0.065


def test_placeholders_and_english_are_taken_out(task):
    assert not any(part in text for texts in texts_of(task) for text in texts for part in ("%s", "%(", "{name}"))


def test_a_message_is_what_django_shows_to_a_reader_of_the_language():
    if not settings.configured:
        settings.configure(USE_I18N=True, LOGGING_CONFIG=None)
        django.setup()
    translations = read_translations()
    with translation.override("fi"):
        assert translations[translation.gettext("Enter a valid value.")] == ("fi", "Enter a valid value.")


def test_reopening_changes_nothing(task, data_dir):
    again = language_id(data_dir=data_dir)
    assert again.fingerprint == task.fingerprint
    assert again.vocabulary == task.vocabulary
    assert {"train_sha256", "validation_sha256", "test_sha256", "django"} <= set(task.fingerprint)
    assert (data_dir / f"django-{task.fingerprint['django']}/language_id/1.0.0").is_dir()


def test_without_django_the_command_that_helps_is_told(data_dir, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "django", raising=False)
    with pytest.raises(
        ValueError, match=r"the package django, which is not installed; run: pip install 'django==5\.2\.\*'"
    ):
        language_id(data_dir=data_dir)


def test_the_hash_of_a_group_decides_its_split():
    splits = [prepared.split_of(f"group {number}") for number in range(10_000)]
    assert splits == [prepared.split_of(f"group {number}") for number in range(10_000)]
    shares = [splits.count(split) / len(splits) for split in prepared.SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.015)


@pytest.mark.slow
def test_the_baseline_is_as_measured(task):
    baseline = tfidf_baseline(task)
    assert baseline["character 1-3-grams"] == pytest.approx(0.93, abs=0.015)
    assert baseline["word 1-2-grams"] == pytest.approx(0.86, abs=0.02)
