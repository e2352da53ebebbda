"""How text becomes subwords: byte-pair encoding, learned and applied by the package tokenizers."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from rnn_jax.tasks.vocabulary import PADDING, RESERVED, UNKNOWN, Vocabulary

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an unknown character is decoded to
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how tokenizers writes the blank before a word


@dataclasses.dataclass(frozen=True)
class SubwordVocabulary:
    """Numbers the pieces of a text, which are words or parts of them, as `rnn_jax.tasks.Vocabulary` does its symbols.

    Token 0 is padding and token 1 unknown: a character that the training texts do not have. Text is in normalization
    form C. Blanks at both ends, and all but one of several in a row, are lost.

    Attributes:
      content: the tokenizer as JSON, as `tokenizers.Tokenizer.to_str` writes it.
      languages: what a source may be marked with, by a token in front: "fi" for `<fi>`. They are the tokens behind
        unknown.

    References:
      Sennrich, Haddow, Birch 2016, "Neural machine translation of rare words with subword units", arXiv 1508.07909.
    """

    content: str
    languages: tuple[str, ...] = ()

    kind = "subword"

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, int32 `[T]`."""
        return np.array(self._tokenizer.encode(" ".join(text.split())).ids, np.int32)

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """Returns the text of tokens `[T]`: U+FFFD for unknown, nothing for padding and marks of a language."""
        shown = [int(token) for token in tokens if token == UNKNOWN or token > UNKNOWN + len(self.languages)]
        pieces = (_REPLACEMENT if token == UNKNOWN else self.symbols[token] for token in shown)
        return "".join(pieces).replace(_SPACE, " ").strip()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as JSON, which `tokenizers.Tokenizer.from_file` reads, too."""
        pathlib.Path(path).write_text(self.content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SubwordVocabulary":
        """Reads what `save` has written.

        Raises:
          ValueError: if the file is no such tokenizer, or the package tokenizers is not installed.
        """
        _require()
        content = pathlib.Path(path).read_text(encoding="utf-8").rstrip("\n")
        try:
            special = [token["content"] for token in json.loads(content)["added_tokens"] if token["special"]]
            if tuple(special[:2]) != RESERVED:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{os.fspath(path)!r} is no vocabulary; allowed: a file that SubwordVocabulary.save wrote."
            ) from None
        return cls(content, tuple(mark[1:-1] for mark in special[2:]))

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """The pieces of a text that the tokens 0, 1, ... stand for, the blank before a word a low block."""
        return tuple(self._tokenizer.id_to_token(token) for token in range(len(self)))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import tokenizers  # here: not everybody has it

        return tokenizers.Tokenizer.from_str(self.content)


def build_subwords(texts: Iterable[str], size: int, languages: Iterable[str] = ()) -> SubwordVocabulary:
    """Learns subwords from texts: of the training split, as what the test split holds must not be known before.

    Args:
      texts: without marks of a language.
      size: symbols in all, padding, unknown, languages and single characters among them. If single characters alone
        are more, all of them are kept.
      languages: that may stand in front of a source, as `<fi>`.

    Raises:
      ValueError: if the package tokenizers is not installed, or the size leaves no room for a symbol.
    """
    languages = tuple(languages)
    _require()
    if size < len(RESERVED) + len(languages) + 1:
        raise ValueError(f"vocab_size={size} is out of range; allowed: {len(RESERVED) + len(languages) + 1} or more.")
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=RESERVED[UNKNOWN]))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    marks = [f"<{language}>" for language in languages]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*RESERVED, *marks], min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator((" ".join(text.split()) for text in texts), trainer)
    assert tokenizer.token_to_id(RESERVED[PADDING]) == PADDING
    return SubwordVocabulary(tokenizer.to_str(), languages)


def _require() -> None:
    """Raises ValueError, with the command that helps, unless the package tokenizers is installed."""
    if importlib.util.find_spec("tokenizers") is None:
        raise ValueError(
            "subwords need the package tokenizers, which is not installed; run: pip install 'tokenizers==0.23.*'"
        )


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary | SubwordVocabulary:
    """Reads what `save` of either kind of vocabulary has written.

    Raises:
      ValueError: if the file is no vocabulary.
    """
    with open(path, encoding="utf-8") as file:
        subwords = '"added_tokens"' in file.read()
    return SubwordVocabulary.load(path) if subwords else Vocabulary.load(path)
