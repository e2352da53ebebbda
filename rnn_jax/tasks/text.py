"""Text in, a task of tokens out: classification, and its baseline that reads little order; language modelling."""

from collections.abc import Sequence

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.ngrams import ngram_bits
from rnn_jax.tasks.sources import RaggedSource, StreamSource
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.vocabulary import UNKNOWN, Vocabulary, build_vocabulary

Split = tuple[Sequence[str], np.ndarray]  # N texts and their labels, int32 [N]


def text_classification(
    *,
    name: str,
    description: str,
    source: str,
    license: str,
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
    token. The baseline answers the commonest class of the training split.

    Args:
      name, description, source, license, class_names: as in `Task`.
      train, validation, test: texts and labels; there may be no validation split.
      packages: whose versions the fingerprint notes, as pip knows them.
      tokens: "word", "character" or "byte".
      vocab_size: max number of symbols to keep, the commonest; all by default.
      max_length: max number of tokens to keep of each text, the first; all by default.

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
        license=license,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources["test"],
        kind=task.Kind.ONE_ANSWER,
        seq_len=int(max(source.lengths.max() for source in sources.values())),
        reads_tokens=True,
        in_features=len(vocabulary),
        out_features=len(class_names),
        loss=task.cross_entropy,
        score=task.accuracy,
        metric="accuracy",
        higher_is_better=True,
        baseline_score=float(np.mean(labels["test"] == commonest)),
        fingerprint=fingerprint(sources["train"], sources["test"], packages, validation=sources.get("validation")),
        class_names=tuple(class_names),
        vocabulary=vocabulary,
    )


def language_modeling(
    *,
    name: str,
    description: str,
    source: str,
    license: str,
    train: str,
    validation: str,
    test: str,
    packages: Sequence[str],
    seq_len: int,
    tokens: str = "character",
    vocab_size: int | None = None,
) -> task.Task:
    """Makes the task of saying the next token of a long text: "tokens" is `[seq_len]`, "labels" are one step on.

    The vocabulary is that of the training split. The score is in bits per token, log2 of how many tokens one would
    have to guess among, were all alike. The baseline knows how frequent each token of the vocabulary is in the
    training split, one added to each count; `references` has the interpolated 5-gram (`rnn_jax.tasks.ngrams`).

    Args:
      name, description, source, license: as in `Task`.
      train, validation, test: the texts.
      packages: whose versions the fingerprint notes, as pip knows them.
      seq_len: steps in a piece.
      tokens: "word", "character" or "byte".
      vocab_size: max number of symbols to keep, the commonest; all by default.

    Raises:
      ValueError: if an argument is out of range, or a text has not the tokens for one piece.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len={seq_len} is out of range; allowed: 1 or more.")
    vocabulary = build_vocabulary([train], tokens, vocab_size)
    sources = {}
    for split, text in (("train", train), ("validation", validation), ("test", test)):
        encoded = vocabulary.encode(text)
        if len(encoded) <= seq_len:
            raise ValueError(
                f"seq_len={seq_len} is out of range for the {split} split of the task {name!r};"
                f" allowed: less than its {len(encoded)} tokens."
            )
        sources[split] = StreamSource(encoded, seq_len)
    counts = np.bincount(sources["train"].tokens, minlength=len(vocabulary)) + 1
    asked = sources["test"].tokens[1 : len(sources["test"]) * seq_len + 1]

    def references() -> dict[str, float]:
        return {"interpolated 5-gram": ngram_bits(sources["train"].tokens, asked, len(vocabulary), 5)}

    return task.Task(
        name=name,
        description=description,
        source=source,
        license=license,
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        kind=task.Kind.STREAM,
        seq_len=seq_len,
        reads_tokens=True,
        in_features=len(vocabulary),
        out_features=len(vocabulary),
        loss=task.cross_entropy,
        score=bits,
        metric=f"bits per {tokens}",
        higher_is_better=False,
        baseline_score=float(-np.mean(np.log2(counts / counts.sum())[asked])),
        fingerprint=fingerprint(sources["train"], sources["test"], packages, validation=sources["validation"]),
        vocabulary=vocabulary,
        references=references,
    )


def bits(model: task.Model, batch: task.Batch) -> task.Score:
    """The score whose mean is that of -log2 p(label)."""
    total, count = task.nats(model, batch)
    return total / float(np.log(2)), count


def tfidf_baseline(classification: task.Task) -> dict[str, float]:
    """Fits logistic regression on the TF-IDF of n-grams, which see little of the order, to a task on text.

    It reads what a network reads: the training split, through the task's vocabulary.

    Returns:
      the accuracy on the test split under the name of the features: "character 1-3-grams", "word 1-2-grams".

    Raises:
      ValueError: if the task is no classification of text.
    """
    if classification.vocabulary is None or classification.kind is not task.Kind.ONE_ANSWER:
        raise ValueError(f"the task {classification.name!r} has no TF-IDF baseline; allowed: classification of text.")
    # A second of import that only the baseline needs.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = {}, {}
    for split, source in (("train", classification.train), ("test", classification.test)):
        examples = [source[number] for number in range(len(source))]
        texts[split] = [classification.vocabulary.decode(example["tokens"]) for example in examples]
        labels[split] = [int(example["label"]) for example in examples]
    scores = {}
    for name, analyzer, largest in (("character 1-3-grams", "char", 3), ("word 1-2-grams", "word", 2)):
        features = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, largest), lowercase=analyzer == "word")
        classifier = make_pipeline(features, LogisticRegression(C=10, max_iter=1000))
        scores[name] = float(classifier.fit(texts["train"], labels["train"]).score(texts["test"], labels["test"]))
    return scores


def encode_text(vocabulary: Vocabulary | SubwordVocabulary, text: str, max_length: int | None = None) -> np.ndarray:
    """Returns the first tokens of a text, int32 `[T]`, at least one: the unknown, where the text has none."""
    encoded = vocabulary.encode(text)[:max_length]
    return encoded if len(encoded) else np.array([UNKNOWN], np.int32)


def encode_answer(vocabulary: Vocabulary | SubwordVocabulary, text: str) -> np.ndarray:
    """Returns the tokens of an answer that is a sequence, int32 `[T]`, `END` last."""
    return np.append(vocabulary.encode(text), np.int32(task.END))


def pad_answer(answer: np.ndarray, length: int) -> np.ndarray:
    """Returns an answer `[T]` with `NOT_ASKED` behind it, `[length]`."""
    return np.pad(answer, (0, length - len(answer)), constant_values=task.NOT_ASKED)


def _as_source(
    vocabulary: Vocabulary, texts: Sequence[str], labels: np.ndarray, max_length: int | None
) -> RaggedSource:
    sequences = [encode_text(vocabulary, text, max_length) for text in texts]
    return RaggedSource({"tokens": sequences}, label=np.asarray(labels, np.int32))


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
