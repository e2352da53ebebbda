"""Claims about pretrained embeddings from text files."""

import numpy as np
import pytest

from rnn_jax.tasks.embeddings import load_embeddings
from rnn_jax.tasks.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(["the cat sat on the mat ."], "word")
GLOVE = "the 1 2 3\n. 4 5.5 -6\ndog 7 8 9\ncat 1e-1 0 -2\n"


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "vectors.txt"
    path.write_bytes(text.encode(encoding))
    return path


def row(matrix, word):
    return matrix[VOCABULARY.symbols.index(word)].tolist()


@pytest.mark.parametrize(
    "text",
    [
        GLOVE,
        "4 3\n" + GLOVE,  # word2vec says how many words, and how many numbers
        GLOVE.replace("\n", " \n"),  # and leaves a blank behind the last
        GLOVE.replace("\n", "\r\n"),
        "\ufeff" + GLOVE,
        GLOVE.rstrip("\n"),
    ],
)
def test_rows_are_those_of_the_words(tmp_path, text):
    matrix, share = load_embeddings(write(tmp_path, text), VOCABULARY)
    assert (matrix.shape, matrix.dtype) == ((len(VOCABULARY), 3), np.float32)
    assert row(matrix, "the") == [1, 2, 3]
    assert row(matrix, ".") == [4, 5.5, -6]
    np.testing.assert_array_equal(row(matrix, "cat"), np.array([0.1, 0, -2], np.float32))
    assert share == 3 / 6  # the, cat, .; not sat, on, mat


def test_words_not_found_are_drawn_at_the_scale_of_those_found_and_always_the_same(tmp_path):
    words = [f"w{k}" for k in range(400)]
    vocabulary = build_vocabulary([" ".join(words)], "word")
    rows = np.random.default_rng(1).normal(0, 0.3, (200, 50))
    lines = [" ".join([word, *map(str, numbers)]) for word, numbers in zip(words, rows)]
    path = write(tmp_path, "\n".join(lines))
    matrix, share = load_embeddings(path, vocabulary)
    assert share == 0.5
    drawn = matrix[[vocabulary.symbols.index(word) for word in words[200:]]]
    assert drawn.std() == pytest.approx(0.3, rel=0.03)
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    np.testing.assert_array_equal(load_embeddings(path, vocabulary)[0], matrix)
    np.testing.assert_array_equal(matrix[0], np.zeros(50))


def test_a_word_may_contain_blanks_and_the_first_of_two_counts(tmp_path):
    matrix, share = load_embeddings(write(tmp_path, "the 1 2\n. . . 3 4\nat cat 5 6\ncat 7 8\ncat 9 9\n"), VOCABULARY)
    assert row(matrix, "cat") == [7, 8]
    assert share == 2 / 6


def test_a_line_separator_within_a_word_ends_no_line(tmp_path):
    matrix, share = load_embeddings(write(tmp_path, "a\u2028b\x85c\x0bd 1 2\ncat 3 4\n"), VOCABULARY)
    assert row(matrix, "cat") == [3, 4]
    assert share == 1 / 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "the 1 2 3\ncat 1 2\n",
            r"vectors\.txt, line 2: 2 numbers behind 'cat'; allowed: 3, as on the lines before\.$",
        ),
        ("the 1 2 3\ncat 1 2 3 4\n", r"vectors\.txt, line 2: 4 numbers behind 'cat'; allowed: 3, as on"),
        ("the 1 2 3\n\ncat 1 2 3\n", r"vectors\.txt, line 2: 0 numbers behind ''; allowed: 3, as on"),
        ("the\n", r"vectors\.txt, line 1: 0 numbers behind 'the'; allowed: 1 or more\.$"),
        ("the 1 2 3\ncat 1 x 3\n", r"vectors\.txt, line 2: 'x' is no finite number\.$"),
        ("the 1 2 3\ncat 1 nan 3\n", r"vectors\.txt, line 2: 'nan' is no finite number\.$"),
        ("3 2\nthe 1 2\ncat 3 4\n", r"vectors\.txt, line 3: the file ends after 2 words; its first line says 3\.$"),
        ("dog 1 2\n", r"has none of the vocabulary's 6 word symbols; allowed: a file of the same language, for word"),
        ("", r"has none of the vocabulary's 6 word symbols"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_embeddings(write(tmp_path, text), VOCABULARY)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^embeddings='.*nosuch' cannot be read: No such file or directory\.$"):
        load_embeddings(tmp_path / "nosuch", VOCABULARY)
