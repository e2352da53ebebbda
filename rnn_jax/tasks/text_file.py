"""A text of the user's own, for a language model."""

import os
import pathlib
import unicodedata

from rnn_jax.tasks import task
from rnn_jax.tasks.text import language_modeling

_TRAIN_SHARE, _VALIDATION_SHARE = 0.8, 0.1


def text_file(path: str, seq_len: int = 128, tokens: str = "character", vocab_size: int | None = None) -> task.Task:
    """A text file of the user's own, in UTF-8; say what comes next.

    "tokens" are pieces of the text, `[seq_len]`, and "labels" the tokens one step on. The first 80 % of the characters
    are for training, the next 10 % for validation, the last for the test.

    Args:
      path: of the file.
      seq_len: steps in a piece.
      tokens, vocab_size: as `rnn_jax.tasks.text.text_classification`.

    Raises:
      ValueError: if the file cannot be read, is not UTF-8 or too short, or an argument is out of range.
    """
    file = pathlib.Path(path).expanduser()
    try:
        text = unicodedata.normalize("NFC", file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        raise ValueError(f"text:{path} cannot be read ({error.strerror}); allowed: a text file in UTF-8.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text:{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; allowed: a text file"
            " in UTF-8."
        ) from error
    first, second = (round(share * len(text)) for share in (_TRAIN_SHARE, _TRAIN_SHARE + _VALIDATION_SHARE))
    return language_modeling(
        name=f"text:{path}",
        description=f"What comes next in {file.name}.",
        source=os.fspath(file),
        license="the user's own",
        train=text[:first],
        validation=text[first:second],
        test=text[second:],
        packages=("python", "numpy", "grain"),
        seq_len=seq_len,
        tokens=tokens,
        vocab_size=vocab_size,
    )
