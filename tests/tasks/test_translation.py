"""Claims about tasks of translation: what their data are, how they are split, what the baseline gets."""

import collections
import datetime
import re

import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks.dates import FORMATS, LANGUAGES
from rnn_jax.tasks.subwords import SubwordVocabulary, build_subwords, load_vocabulary
from rnn_jax.tasks.task import END, NOT_ASKED
from rnn_jax.tasks.translation import corpus_scores
from rnn_jax.tasks.vocabulary import build_vocabulary


def read(task, split):
    """Returns the sources and answers of a split as text, and how long the answers are in tokens."""
    source = getattr(task, split)
    pairs = []
    for k in range(len(source)):
        answer = source[k]["answer"]
        (ends,) = np.nonzero(answer == END)
        assert len(ends) == 1
        assert np.all(answer[ends[0] + 1 :] == NOT_ASKED)
        assert np.all(answer[: ends[0]] > END)
        pairs.append((task.vocabulary.decode(source[k]["tokens"]), task.answer_vocabulary.decode(answer[: ends[0]])))
    return pairs


@pytest.fixture(scope="module")
def dates():
    return tasks.make_task("dates")


@pytest.fixture(scope="module")
def django():
    return tasks.make_task("django_translation")


def test_dates_have_one_answer_each_and_are_split_by_date(dates):
    splits = {split: read(dates, split) for split in ("train", "validation", "test")}
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 14000, "validation": 2000, "test": 4000}
    assert len({source for pairs in splits.values() for source, _ in pairs}) == 20_000  # each once: none is ambiguous
    days = {split: {answer for _, answer in pairs} for split, pairs in splits.items()}
    assert not days["train"] & days["test"]
    assert not days["train"] & days["validation"]
    assert not days["validation"] & days["test"]
    every = set().union(*days.values())
    parsed = sorted(datetime.date.fromisoformat(day) for day in every)
    assert (parsed[0].year, parsed[-1].year) == (1950, 2049)
    assert (dates.seq_len, dates.answer_length, dates.in_features, dates.out_features) == (35, 11, 57, 13)


def test_all_ways_to_write_any_two_dates_differ():
    """Over all 36,525 dates no text stands for two of them, in any language or format."""
    from babel.dates import format_date

    owner = {}
    for day in range(0, 36_525, 7):  # a seventh, in which every month and day of the month occurs
        date = datetime.date(1950, 1, 1) + datetime.timedelta(day)
        for language in LANGUAGES:
            for form in FORMATS:
                assert owner.setdefault(format_date(date, form, locale=language), date) == date


def test_the_baseline_of_an_exact_match_is_the_commonest_answer_of_the_test_split(dates):
    counts = collections.Counter(answer for _, answer in read(dates, "test"))
    assert dates.baseline_score == counts.most_common(1)[0][1] / 4000
    assert dates.baseline_score < 0.002


def test_sizes_and_seed_are_those_asked_for():
    small, other = (tasks.dates(train_size=20, test_size=7, seed=seed) for seed in (0, 1))
    assert (len(small.train), len(small.validation), len(small.test)) == (20, 3, 7)
    assert small.fingerprint["train_sha256"] != other.fingerprint["train_sha256"]


def test_messages_are_split_by_the_english_one_and_marked_with_a_language(django):
    splits = {split: read(django, split) for split in ("train", "validation", "test")}
    sources = {split: {source for source, _ in pairs} for split, pairs in splits.items()}
    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["validation"]
    marks = collections.Counter(int(django.train[k]["tokens"][0]) for k in range(len(django.train)))
    languages = ("de", "es", "et", "fi", "fr", "it", "nl", "sv")
    assert sorted(marks) == [2 + k for k in range(8)]
    assert django.vocabulary.symbols[2:10] == tuple(f"<{language}>" for language in languages)
    assert all(300 < count < 700 for count in marks.values())
    assert ("Change password", "Vaihda salasana") in [pair for pairs in splits.values() for pair in pairs]
    assert 4000 < len(splits["train"]) + len(splits["validation"]) + len(splits["test"]) < 7000


def test_the_baseline_of_bits_per_token_knows_how_frequent_each_token_is(django):
    train, test = (
        np.concatenate([array[array != NOT_ASKED] for array in getattr(django, split).arrays["answer"]])
        for split in ("train", "test")
    )
    counts = np.bincount(train, minlength=django.out_features) + 1
    expected = np.mean([-np.log2(counts[token] / counts.sum()) for token in test])
    assert django.baseline_score == pytest.approx(expected)
    assert 6 < expected < np.log2(django.out_features)


def test_languages_that_django_has_not_are_refused():
    with pytest.raises(ValueError, match=r"^languages has 'xx', which Django has not; it has: af, ar, .*zh_Hant\.$"):
        tasks.django_translation(languages="fi,xx")


# ------------------------------------------------------------------------------------------------------------- pairs


def write(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("tokens", ["subword", "character", "byte"])  # that know all digits
def test_a_file_of_pairs_is_read_whole_and_split_by_source(tmp_path, tokens):
    rows = [f"the number {k}\tluku {k * k}\tAnna" for k in range(40)] + ["the number 7\tseitsemän\tBo", ""]
    task = tasks.make_task(f"pairs:{write(tmp_path / 'own.tsv', rows)}", tokens=tokens)
    splits = {split: read(task, split) for split in ("train", "validation", "test")}
    assert [len({source for source, _ in splits[split]}) for split in ("validation", "test")] == [4, 4]
    assert sum(map(len, splits.values())) == 41
    assert len({frozenset(source for source, _ in pairs) for pairs in splits.values()}) == 3
    own = [split for split, pairs in splits.items() if "the number 7" in {source for source, _ in pairs}]
    assert len(own) == 1
    assert ("the number 5", "luku 25") in splits["train"] + splits["validation"] + splits["test"]


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (["a\tb", "only one"], {}, "{path}, line 2: there is one column; needed: a source, a tab and its answer."),
        (["a\tb", "\tb"], {}, "{path}, line 2: the source is empty; needed: a source, a tab and its answer."),
        (["a\t "], {}, "{path}, line 1: the answer is empty; needed: a source, a tab and its answer."),
        ([""], {}, "{path} has no pairs; needed: lines of a source, a tab and its answer."),
        (["a\tb", "b\tc", "a\tc"], {}, "{path} has 2 different sources; needed: 3 or more, one for each split."),
        (["a\tb"], {"tokens": "letter"}, "tokens='letter' is unknown; allowed: subword, word, character, byte."),
        (["a\tb"], {"max_length": 0}, "max_length=0 is out of range; allowed: 1 or more."),
        (
            [f"{k} a b c d e f g\tx" for k in range(10)],
            {"tokens": "character", "max_length": 3},
            "the train split of the task 'pairs:{path}' is empty; allowed: at least one pair.",
        ),
        (
            [f"{k}\t{k}" for k in range(9)],
            {"vocab_size": 2},
            "vocab_size=2 is out of range; allowed: 3 or more.",
        ),
    ],
)
def test_a_file_of_no_pairs_is_refused_in_one_sentence(tmp_path, rows, options, sentence):
    path = write(tmp_path / "own.tsv", rows)
    with pytest.raises(ValueError, match="^" + re.escape(sentence.format(path=path)) + "$"):
        tasks.make_task(f"pairs:{path}", **options)


def test_a_missing_file_of_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        tasks.make_task(f"pairs:{tmp_path / 'none.tsv'}")


# ----------------------------------------------------------------------------------------------------------- subwords


def test_subwords_give_a_text_back_and_are_the_same_when_learned_and_read_again(tmp_path):
    texts = ["vaihda salasana", "salasanan vaihto", "salasana vaihdettu", "anna salasana"]
    vocabulary = build_subwords(texts, 40, ["fi"])
    assert vocabulary == build_subwords(texts, 40, ["fi"])
    assert len(vocabulary) == len(vocabulary.symbols) <= 40
    for text in texts:
        tokens = vocabulary.encode(text)
        assert tokens.dtype == np.int32
        assert len(tokens) < len(text)
        assert vocabulary.decode(tokens) == text
        assert vocabulary.decode([2, *tokens, 0, 0]) == text
    np.testing.assert_array_equal(vocabulary.encode("<fi> anna")[1:], vocabulary.encode("anna"))
    assert vocabulary.encode("<fi> anna")[0] == 2
    assert vocabulary.decode(vocabulary.encode("ж anna")) == "\ufffd anna"
    vocabulary.save(tmp_path / "vocabulary.json")
    assert load_vocabulary(tmp_path / "vocabulary.json") == vocabulary
    characters = build_vocabulary(texts)
    characters.save(tmp_path / "characters.json")
    assert load_vocabulary(tmp_path / "characters.json") == characters
    with pytest.raises(ValueError, match="is no vocabulary; allowed: a file that SubwordVocabulary"):
        SubwordVocabulary.load(tmp_path / "characters.json")


def test_scores_of_a_corpus_are_100_for_the_references_and_0_for_other_letters():
    answers = ["vaihda salasana nyt heti", "anna uusi salasana kahdesti"]
    for given, score in ((answers, 100.0), (["", "xqxq"], 0.0)):
        scores = corpus_scores(given, answers)
        assert set(scores) == {"chrF", "BLEU"}
        assert [float(text.split()[0]) for text in scores.values()] == [score, score]
