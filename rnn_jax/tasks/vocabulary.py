"""How text becomes tokens: words, characters or bytes, numbered by their frequency in the training split."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

PADDING, UNKNOWN = 0, 1  # the first two tokens of every vocabulary
RESERVED = ("<padding>", "<unknown>")  # neither is a character, nor a word as `_words` cuts them
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an unknown token is decoded to


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Numbers the pieces of a text: token k stands for `symbols[k]`.

    Attributes:
      kind: "word": lower-cased words and punctuation marks; "character": Unicode characters; "byte": those of UTF-8.
        Words and characters are in normalization form C, so that an accent is one thing however it was typed.
      symbols: of the tokens 0, 1, ...: padding, unknown, and then what occurs. A byte is written "0x41".

    Raises:
      ValueError: if the kind is unknown, or the symbols are not that.
    """

    kind: str
    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.symbols[:2] != RESERVED:
            raise ValueError(f"the symbols of a vocabulary start with {self.symbols[:2]}; allowed: {RESERVED}.")
        if len(self._tokens) != len(self.symbols):
            repeated = [symbol for symbol, n in collections.Counter(self.symbols).items() if n > 1]
            raise ValueError(f"the symbol {repeated[0]!r} stands in a vocabulary twice; allowed: once.")

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, int32 `[T]`."""
        return np.array([self._tokens.get(symbol, UNKNOWN) for symbol in split_text(text, self.kind)], np.int32)

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """Returns the text of tokens `[T]`: words spaced by blanks, U+FFFD for unknown, nothing for padding."""
        shown = [int(token) for token in tokens if token != PADDING]
        if self.kind == "byte":
            return b"".join(
                _REPLACEMENT.encode() if token == UNKNOWN else bytes([int(self.symbols[token], 16)]) for token in shown
            ).decode("utf-8", errors="replace")
        separator = " " if self.kind == "word" else ""
        return separator.join(_REPLACEMENT if token == UNKNOWN else self.symbols[token] for token in shown)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON: {"kind": ..., "symbols": [...]}."""
        pathlib.Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` has written.

        Raises:
          ValueError: if the file is no vocabulary.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            kind, symbols = content["kind"], tuple(content["symbols"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} is no vocabulary; allowed: a file that Vocabulary.save wrote."
            ) from error
        return cls(kind, symbols)

    @functools.cached_property
    def _tokens(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(self.symbols)}


def build_vocabulary(texts: Iterable[str], kind: str = "character", size: int | None = None) -> Vocabulary:
    """Returns the vocabulary of texts: of the training split, as what the test split holds must not be known before.

    Args:
      texts: what to count in.
      kind: "word", "character" or "byte".
      size: symbols to keep at most, the commonest, padding and unknown among them; None keeps all. All 256 bytes
        are always kept: with padding and unknown 258 symbols, and no byte is ever unknown.

    Returns:
      Symbols by falling frequency; those of one frequency in the order of their code points.

    Raises:
      ValueError: if the kind is unknown, or the size leaves no room for a symbol or cuts off bytes.
    """
    check_kind(kind)
    if kind == "byte":
        symbols = [f"0x{byte:02x}" for byte in range(256)]
        if size not in (None, 258):
            raise ValueError(f"vocab_size={size} is out of range for byte tokens; allowed: 258, as all bytes are kept.")
        return Vocabulary(kind, (*RESERVED, *symbols))
    if size is not None and size < 3:
        raise ValueError(f"vocab_size={size} is out of range; allowed: 3 or more, as padding and unknown take two.")
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(split_text(text, kind))
    symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    return Vocabulary(kind, (*RESERVED, *symbols[: None if size is None else size - 2]))


def split_text(text: str, kind: str) -> Sequence[str]:
    """Cuts a text into the symbols of one kind of vocabulary."""
    return _SPLITTERS[kind](text)


def check_kind(kind: str) -> None:
    """Raises ValueError unless there are tokens of this kind."""
    if kind not in _SPLITTERS:
        raise ValueError(f"tokens={kind!r} is unknown; allowed: {', '.join(_SPLITTERS)}.")


def _words(text: str) -> list[str]:
    return _word_pattern().findall(unicodedata.normalize("NFC", text.lower()))


def _characters(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _bytes(text: str) -> list[str]:
    return [f"0x{byte:02x}" for byte in text.encode("utf-8", errors="replace")]


_SPLITTERS: Mapping[str, Callable[[str], Sequence[str]]] = {"word": _words, "character": _characters, "byte": _bytes}


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    r"""Letters, digits and their marks, apostrophes within, or else one sign.

    `\w` alone cuts Hindi, Tamil or vowelled Arabic at every vowel, for these are marks and not letters to `re`.
    """
    # The other 14 of the 17 planes of Unicode hold ideographs or nothing, and would take most of the time.
    with_marks = (chr(0x10000 * plane + code) for plane in (0, 1, 14) for code in range(0x10000))
    marks = "".join(sign for sign in with_marks if unicodedata.category(sign)[0] == "M")
    letter = rf"[\w\u200c\u200d{marks}]"  # the two joiners between letters, of Persian and Indic scripts
    return re.compile(rf"\w{letter}*(?:['\u2019]{letter}+)*|[^\w\s]")
