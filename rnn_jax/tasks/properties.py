"""Properties of a text, token by token, that a state may hold: what probes are asked to read.

The label of a token is what holds behind it: behind an opening quotation mark the text is inside quotes, behind the
closing one no more.

References:
  Karpathy, Johnson, Fei-Fei 2015, "Visualizing and understanding recurrent networks", arXiv 1506.02078: units for
  quotes, brackets and the position in a line.
  Lakretz et al. 2019, "The emergence of number and syntax units in LSTM language models", arXiv 1903.07435.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rnn_jax.tasks.agreement import find_subject, is_woman
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.vocabulary import RESERVED, UNKNOWN, Vocabulary

UNLABELED = -1  # a token at which the property is not known

_QUOTES = "\"'"
_OPENING, _CLOSING = "([{", ")]}"
_LATE = 40  # characters of a line


@dataclasses.dataclass(frozen=True)
class Property:
    """A property of the tokens of a text.

    Attributes:
      description: what it says, in words.
      labels: names of the labels 0, 1, ...; with two labels, the second says that the property is there.
      read: returns the label of each token, int `[T]`, `UNLABELED` where it is not known, of the symbols of a text.
    """

    description: str
    labels: tuple[str, ...]
    read: Callable[[Sequence[str]], np.ndarray]


def shown_symbols(vocabulary: Vocabulary | SubwordVocabulary | None, tokens: np.ndarray) -> list[str]:
    """Returns the text of each token: of a byte its character in ASCII; the number, where there is no vocabulary."""
    if vocabulary is None:
        return [str(token) for token in tokens.tolist()]
    names = list(vocabulary.symbols)
    if vocabulary.kind == "byte":
        codes = [int(name, 16) if name not in RESERVED else 128 for name in names]
        names = [chr(code) if code < 128 else "\N{REPLACEMENT CHARACTER}" for code in codes]
    names[UNKNOWN] = "\N{REPLACEMENT CHARACTER}"
    return [names[token] for token in tokens.tolist()]


def _inside_quotes(symbols: Sequence[str]) -> np.ndarray:
    """A mark opens before a visible symbol and behind one that is no letter; an apostrophe does not. Lines end it."""
    labels, mark, before = np.zeros(len(symbols), int), "", " "
    for t, symbol in enumerate(symbols):
        behind = symbols[t + 1] if t + 1 < len(symbols) else " "
        if mark and symbol == mark and not behind.isalnum():
            mark = ""
        elif not mark and symbol in tuple(_QUOTES) and not before.isalnum() and not behind.isspace():
            mark = symbol
        elif symbol == "\n":
            mark = ""
        labels[t] = mark != ""
        before = symbol
    return labels


def _inside_brackets(symbols: Sequence[str]) -> np.ndarray:
    """Depth 1 or more; an empty line ends all brackets."""
    labels, depth, before = np.zeros(len(symbols), int), 0, ""
    for t, symbol in enumerate(symbols):
        depth = max(0, depth + (symbol in tuple(_OPENING)) - (symbol in tuple(_CLOSING)))
        if symbol == before == "\n":
            depth = 0
        labels[t] = depth > 0
        before = symbol
    return labels


def _line_position(symbols: Sequence[str]) -> np.ndarray:
    labels, position = np.zeros(len(symbols), int), 0
    for t, symbol in enumerate(symbols):
        position = 0 if symbol == "\n" else position + 1
        labels[t] = position >= _LATE
    return labels


def _upper_case(symbols: Sequence[str]) -> np.ndarray:
    return np.array([symbol[:1].isupper() for symbol in symbols], int)


def _plural_subject(symbols: Sequence[str]) -> np.ndarray:
    labels, subject = np.full(len(symbols), UNLABELED), find_subject(symbols)
    if subject is not None:
        labels[subject[1] - 1 :] = subject[1] - subject[0] > 1
    return labels


def _woman(symbols: Sequence[str]) -> np.ndarray:
    labels, subject = np.full(len(symbols), UNLABELED), find_subject(symbols)
    if subject is not None and subject[1] - subject[0] == 1:
        labels[subject[0] :] = is_woman(symbols[subject[0]])
    return labels


OF_TEXT = {
    "inside_quotes": Property("inside single or double quotes", ("outside", "inside"), _inside_quotes),
    "inside_brackets": Property("inside brackets, at any depth", ("outside", "inside"), _inside_brackets),
    "line_position": Property("40 characters or more since the line began", ("early", "late"), _line_position),
    "upper_case": Property("the token is an upper-case letter", ("no", "yes"), _upper_case),
}
OF_AGREEMENT = {
    "plural_subject": Property("the subject is two persons", ("singular", "plural"), _plural_subject),
    "woman": Property("the subject is one woman, or else one man", ("man", "woman"), _woman),
}
PROPERTIES = OF_TEXT | OF_AGREEMENT
