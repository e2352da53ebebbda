"""Pretrained word embeddings, read from a text file as GloVe or word2vec write them."""

import os
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from rnn_jax.tasks.vocabulary import PADDING, Vocabulary

_LARGEST = float(np.finfo(np.float32).max) / 2**64  # so that sums of them do not overflow either
_SEED = 0  # of the rows of words that the file does not have


def load_embeddings(path: str | os.PathLike[str], vocabulary: Vocabulary) -> tuple[np.ndarray, float]:
    """Reads the embeddings of a vocabulary's words, a line each: the word and E numbers with blanks between.

    A first line of two whole numbers, of words and of E, is word2vec's. A word may contain blanks, as some of GloVe do;
    of a word that comes twice, the first line counts. Words that the file has not, and the unknown one, are drawn from
    a normal distribution of the standard deviation of those found, always the same; padding is 0.

    Args:
      path: of the file, in UTF-8.
      vocabulary: whose symbols to look for, as they are: words are lower-cased.

    Returns:
      the matrix, float32 `[V, E]`, and the share of the vocabulary, padding and unknown aside, that the file has.

    Raises:
      ValueError: if the file cannot be read, a line is malformed (it is named by its number), the file ends before it
        should, or has no word of the vocabulary.

    References:
      J. Pennington, R. Socher, C. Manning (2014). GloVe: Global vectors for word representation. EMNLP.
      T. Mikolov, K. Chen, G. Corrado, J. Dean (2013). Efficient estimation of word representations in vector space.
        arXiv:1301.3781.
    """
    name = os.fspath(path)
    wanted = {symbol: token for token, symbol in enumerate(vocabulary.symbols) if token > 1}
    rows: dict[int, list[float]] = {}
    try:
        # Only \n ends a line: words may hold other characters that Python would end one at.
        with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, word, fields in _lines(file, name):
                token = wanted.get(word)
                if token is not None and token not in rows:
                    rows[token] = _floats(fields, f"{name}, line {number}")
    except OSError as error:
        raise ValueError(f"embeddings={name!r} cannot be read: {error.strerror}.") from error
    if not rows:
        raise ValueError(
            f"embeddings={name!r} has none of the vocabulary's {len(wanted)} {vocabulary.kind} symbols;"
            " allowed: a file of the same language, for word tokens."
        )
    found = np.array(list(rows.values()), np.float32)
    matrix = np.random.default_rng(_SEED).standard_normal((len(vocabulary), found.shape[1]), np.float32) * found.std()
    matrix[list(rows)] = found
    matrix[PADDING] = 0
    return matrix, len(rows) / len(wanted)


def _lines(file: TextIO, name: str) -> Iterator[tuple[int, str, list[str]]]:
    """The number, the word and the E fields behind it of each line."""
    size = promised = None
    count = number = 0
    for number, line in enumerate(file, start=1):
        fields = line.rstrip("\r\n ").split(" ")
        if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
            promised, size = map(int, fields)
            continue
        if size is None:
            size = len(fields) - 1
        # More fields than numbers are a word with blanks, unless they are numbers themselves.
        if size < 1 or len(fields) <= size or (len(fields) > size + 1 and all(map(_is_number, fields[1:-size]))):
            raise ValueError(
                f"{name}, line {number}: {len(fields) - 1} numbers behind {fields[0][:40]!r};"
                f" allowed: {max(size, 1)}{' or more' if size < 1 else ', as on the lines before'}."
            )
        count += 1
        yield number, " ".join(fields[:-size]), fields[-size:]
    if promised not in (None, count):
        raise ValueError(f"{name}, line {number}: the file ends after {count} words; its first line says {promised}.")


def _floats(fields: list[str], where: str) -> list[float]:
    for field in fields:
        if not _is_number(field) or not np.isfinite(float(field)):
            raise ValueError(f"{where}: {field[:40]!r} is no finite number.")
        if abs(float(field)) > _LARGEST:
            raise ValueError(f"{where}: {field[:40]!r} is too large; allowed: numbers that float32 holds.")
    return [float(field) for field in fields]


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
