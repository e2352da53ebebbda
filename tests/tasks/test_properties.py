"""Labels of properties, against marks below the text."""

import importlib

import numpy as np

from rnn_jax.tasks.properties import PROPERTIES, UNLABELED, shown_symbols
from rnn_jax.tasks.vocabulary import build_vocabulary

grammar = importlib.import_module("rnn_jax.tasks.agreement")


def check(name, text, marks):
    """Marks are labels, "." for 0."""
    expected = [0 if mark == "." else int(mark) for mark in marks]
    np.testing.assert_array_equal(PROPERTIES[name].read(list(text)), expected, err_msg=text)


def test_quotes_open_and_close_and_apostrophes_do_not():
    check("inside_quotes", "say 'no' now", "....111.....")
    check("inside_quotes", "don't, the \"dog's\" tail", "...........111111......")
    check("inside_quotes", "'open\nclosed", "11111.......")


def test_brackets_are_counted_and_an_empty_line_ends_them():
    check("inside_brackets", "f(a[1], b) c", ".11111111...")
    check("inside_brackets", ") (\n\n) a", "..11....")


def test_line_positions_begin_again_at_each_line_and_capitals_are_seen():
    check("line_position", "x" * 42 + "\n" + "y" * 41, "." * 39 + "111" + "." * 40 + "11")
    check("upper_case", "a B1 Ä", "..1..1")


def test_the_subject_is_found_in_every_sentence_and_labeled_from_its_last_word_on():
    for sentence in grammar.draw_sentences("test", 300, 20, (0, 0)):
        assert grammar.find_subject(sentence.words) == sentence.subject
        start, stop = sentence.subject
        plural, woman = (PROPERTIES[name].read(sentence.words) for name in ("plural_subject", "woman"))
        assert set(plural[: stop - 1]) <= {UNLABELED}
        assert set(plural[stop - 1 :]) == {int(sentence.answer == 2)}
        known = {UNLABELED} if sentence.answer == 2 else {int(sentence.answer == 0)}
        assert set(woman[start:]) == known
    assert grammar.find_subject(("the", "dogs")) is None
    assert grammar.find_subject(("alice", "and")) == (0, 1)


def test_bytes_are_shown_as_characters():
    vocabulary = build_vocabulary([], "byte")
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert shown_symbols(vocabulary, vocabulary.encode("a(é")) == ["a", "(", unknown, unknown]
    assert shown_symbols(None, np.array([3, 12])) == ["3", "12"]
