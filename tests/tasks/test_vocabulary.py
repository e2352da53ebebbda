"""Claims about vocabularies."""

import collections
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN, Vocabulary, build_vocabulary, split_text

KINDS = ("word", "character", "byte")
TEXTS = ["Don't panic!", "the cat, the hat", "naïve café", "हिन्दी", ""]


@given(st.text())
def test_characters_come_back_in_normal_form(text):
    vocabulary = build_vocabulary([text])
    assert vocabulary.decode(vocabulary.encode(text)) == unicodedata.normalize("NFC", text)


@given(st.text())
def test_bytes_come_back_exactly_and_none_is_unknown(text):
    vocabulary = build_vocabulary([], "byte")
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    np.testing.assert_array_equal(tokens, np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 2)


@given(st.lists(st.text(), min_size=1))
def test_words_come_back_as_the_same_words(texts):
    vocabulary = build_vocabulary(texts, "word")
    for text in texts:
        tokens = vocabulary.encode(text)
        np.testing.assert_array_equal(vocabulary.encode(vocabulary.decode(tokens)), tokens)
        assert UNKNOWN not in tokens


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text())
def test_tokens_are_numbers_of_symbols_and_never_padding(kind, text):
    vocabulary = build_vocabulary(TEXTS, kind)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.ndim == 1
    assert np.all((tokens > PADDING) & (tokens < len(vocabulary)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_vocabulary_is_the_one_loaded(kind, tmp_path):
    vocabulary = build_vocabulary(TEXTS, kind)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    np.testing.assert_array_equal(loaded.encode("the café"), vocabulary.encode("the café"))


def test_the_commonest_symbols_are_kept():
    text = "abracadabra"
    vocabulary = build_vocabulary([text], size=4)
    assert vocabulary.symbols == ("<padding>", "<unknown>", "a", "b")  # b before r, which is as frequent
    assert [*vocabulary.encode(text)] == [{"a": 2, "b": 3}.get(letter, UNKNOWN) for letter in text]
    assert vocabulary.decode(vocabulary.encode(text)) == "ab\ufffda\ufffda\ufffdab\ufffda"
    assert len(build_vocabulary([text])) == 2 + len(set(text))


@given(st.lists(st.text(alphabet="abcdef", max_size=8)), st.integers(3, 8))
def test_symbols_stand_by_falling_frequency(texts, size):
    counts = collections.Counter("".join(texts))
    kept = build_vocabulary(texts, size=size).symbols[2:]
    assert [counts[symbol] for symbol in kept] == [n for _, n in counts.most_common(size - 2)]


def test_words_are_lower_cased_with_apostrophes_inside_and_marks_kept_on_their_letters():
    vocabulary = build_vocabulary(["Don't, he said; हिन्दी x2 e\u0301te\u0301"], "word")
    assert sorted(vocabulary.symbols[2:]) == sorted(["don't", ",", "he", "said", ";", "हिन्दी", "x2", "été"])


def test_every_mark_of_unicode_stays_in_its_word():
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    assert len(marks) > 2000
    text = " ".join(f"q{mark}q" for mark in marks)
    assert len(split_text(text, "word")) == len(marks)


def test_an_accent_is_one_character_however_it_was_typed():
    vocabulary = build_vocabulary(["é"])
    np.testing.assert_array_equal(vocabulary.encode("e\u0301"), vocabulary.encode("é"))


def test_padding_is_not_decoded():
    vocabulary = build_vocabulary(["ab"])
    assert vocabulary.decode(np.array([2, 0, 3, 0, 0], np.int32)) == "ab"


@pytest.mark.parametrize(
    ("kind", "size", "sentence"),
    [
        ("letter", None, r"^tokens='letter' is unknown; allowed: word, character, byte\.$"),
        ("word", 2, r"^vocab_size=2 is out of range; allowed: 3 or more, .*\.$"),
        ("byte", 100, r"^vocab_size=100 is out of range for byte tokens; allowed: 258, .*\.$"),
    ],
)
def test_an_impossible_vocabulary_is_refused(kind, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_vocabulary(TEXTS, kind, size)


def test_symbols_without_padding_or_given_twice_are_refused():
    with pytest.raises(ValueError, match=r"^the symbols of a vocabulary start with \('a', 'b'\); allowed: "):
        Vocabulary("character", ("a", "b"))
    with pytest.raises(ValueError, match=r"^the symbol 'a' stands in a vocabulary twice; allowed: once\.$"):
        Vocabulary("character", ("<padding>", "<unknown>", "a", "a"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "word"}', '{"kind": "word", "symbols": 3}'])
def test_a_file_that_is_no_vocabulary_is_refused(content, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json' is no vocabulary; allowed: a file that Vocabulary\.save"):
        Vocabulary.load(path)
