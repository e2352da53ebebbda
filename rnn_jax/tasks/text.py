"""Text classification: texts and labels in, a task of tokens out, and the baseline that reads no order."""

from collections.abc import Sequence

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.vocabulary import UNKNOWN, Vocabulary, build_vocabulary

Split = tuple[Sequence[str], np.ndarray]  # N texts and their labels, int32 [N]


def text_classification(
    *,
    name: str,
    description: str,
    source: str,
    licence: str,
    train: Split,
    validation: Split | None,
    test: Split,
    class_names: Sequence[str],
    packages: Sequence[str],
    tokens: str = "character",
    vocab_size: int | None = None,
    max_length: int | None = None,
) -> task.Task:
    """Makes the task of saying the class of a text: "tokens" is `[T]`, of a length of its own, "label" its class.

    The vocabulary is that of the training split. A text without a token, such as an empty one, becomes one unknown
    token. The trivial strategy answers the commonest class of the training split.

    Args:
      name, description, source, licence, class_names: as in `Task`.
      train, validation, test: texts and labels; there may be no validation split.
      packages: whose versions the fingerprint notes, as pip knows them.
      tokens: "word", "character" or "byte".
      vocab_size: symbols to keep at most, the commonest; all by default.
      max_length: tokens to keep of each text at most, the first; all by default.

    Raises:
      ValueError: if an argument is out of range, a split is empty or its texts and labels do not match.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length} is out of range; allowed: 1 or more.")
    splits = {"train": train, "validation": validation, "test": test}
    for split, content in splits.items():
        if content is not None:
            _check_split(name, split, *content, len(class_names))
    vocabulary = build_vocabulary(train[0], tokens, vocab_size)
    sources = {
        split: _as_source(vocabulary, *content, max_length) for split, content in splits.items() if content is not None
    }
    labels = {split: source.arrays["label"] for split, source in sources.items()}
    commonest = np.bincount(labels["train"]).argmax()
    return task.Task(
        name=name,
        description=description,
        source=source,
        licence=licence,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources["test"],
        seq_len=int(max(source.lengths.max() for source in sources.values())),
        reads_tokens=True,
        in_features=len(vocabulary),
        out_features=len(class_names),
        loss=task.cross_entropy,
        score=task.accuracy,
        metric="accuracy",
        higher_is_better=True,
        trivial_score=float(np.mean(labels["test"] == commonest)),
        fingerprint=task.fingerprint(sources["train"], sources["test"], packages, validation=sources.get("validation")),
        class_names=tuple(class_names),
        vocabulary=vocabulary,
    )


def encode_text(vocabulary: Vocabulary, text: str, max_length: int | None = None) -> np.ndarray:
    """Returns the first tokens of a text, int32 `[T]`, at least one: the unknown, where the text has none."""
    encoded = vocabulary.encode(text)[:max_length]
    return encoded if len(encoded) else np.array([UNKNOWN], np.int32)


def _as_source(
    vocabulary: Vocabulary, texts: Sequence[str], labels: np.ndarray, max_length: int | None
) -> task.RaggedSource:
    sequences = [encode_text(vocabulary, text, max_length) for text in texts]
    return task.RaggedSource({"tokens": sequences}, label=np.asarray(labels, np.int32))


def _check_split(name: str, split: str, texts: Sequence[str], labels: np.ndarray, classes: int) -> None:
    if not len(texts):
        raise ValueError(f"the {split} split of the task {name!r} is empty; allowed: at least one text.")
    if np.shape(labels) != (len(texts),):
        raise ValueError(
            f"the {split} split of the task {name!r} has {len(texts)} texts and labels of shape {np.shape(labels)};"
            " allowed: one label for each text."
        )
    if not 0 <= np.min(labels) <= np.max(labels) < classes:
        raise ValueError(
            f"the {split} split of the task {name!r} has labels {np.min(labels)} to {np.max(labels)};"
            f" allowed: 0 to {classes - 1}, one for each class."
        )
