"""A language model's text: the docstrings of Python's standard library, one after another."""

import os

from rnn_jax.tasks import task
from rnn_jax.tasks.docstrings import load_docstrings
from rnn_jax.tasks.text import language_modeling

_TRAIN_SHARE, _VALIDATION_SHARE = 0.8, 0.1


def stdlib_text(
    seq_len: int = 128,
    tokens: str = "character",
    vocab_size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> task.Task:
    """The docstrings of the standard library as one text of about 1.8 million characters; say what comes next.

    "tokens" are pieces of the text, `[seq_len]`, and "labels" the tokens one step on; a batch goes on where the one
    before it ended. Files in the order of their names, docstrings in the order of their lines, each text once, an
    empty line between. The first 80 % are for training, the next 10 % for validation, the last for the test; no file
    is cut in two. The text depends on the version of Python, which the fingerprint notes.

    What to expect: the frequencies of characters alone give the baseline score, about 4.7 bits; `xz -9` packs the whole
    into about 1.9 bits per character.

    Args:
      seq_len: steps in a piece.
      tokens, vocab_size: as `rnn_jax.tasks.text.text_classification`.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Python Software Foundation. The Python Standard Library, https://docs.python.org/3/library.
    """
    texts, paths = load_docstrings(data_dir)
    total, position = sum(map(len, texts)), 0
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    split_of: dict[str, str] = {}
    for text, path in zip(texts, paths):
        share = position / total
        where = (
            "train" if share < _TRAIN_SHARE else "validation" if share < _TRAIN_SHARE + _VALIDATION_SHARE else "test"
        )
        splits[split_of.setdefault(path, where)].append(text)
        position += len(text)
    return language_modeling(
        name="stdlib_text",
        description="What comes next in the docstrings of Python's standard library.",
        source="Python Software Foundation, the Python standard library, https://docs.python.org/3/library",
        license="PSF-2.0",
        **{split: "\n\n".join(texts) for split, texts in splits.items()},
        packages=("python", "numpy", "grain", "tensorflow-datasets", "array-record"),
        seq_len=seq_len,
        tokens=tokens,
        vocab_size=vocab_size,
    )
