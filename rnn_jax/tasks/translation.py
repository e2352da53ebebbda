"""Pairs of texts in, a task of sequences for sequences out: translation, character by character or in subwords."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.sources import RaggedSource
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.text import encode_text
from rnn_jax.tasks.vocabulary import Vocabulary

Pair = tuple[str, str]  # a source and its answer


def translation(
    *,
    splits: Mapping[str, Sequence[Pair]],
    vocabulary: Vocabulary | SubwordVocabulary,
    answer_vocabulary: Vocabulary | SubwordVocabulary,
    packages: Sequence[str],
    exact: bool,
    **fields: Any,
) -> task.Task:
    """Makes the task of writing the answer to a source: "tokens" is `[T]`, "labels" `[U]`, `END` last.

    The baseline of an exact match is the commonest answer of the test split itself, which no constant answer beats.
    That of bits per token knows how frequent each token is in the answers of the training split, one added to each
    count.

    Args:
      splits: pairs of "train", "validation" and "test".
      vocabulary, answer_vocabulary: of sources and answers, made from the training split.
      packages: whose versions the fingerprint notes, as pip knows them.
      exact: whether the score is the share of answers that greedy decoding finds, every token of them; else it is bits
        per token of the true answers.
      **fields: of the `Task`: name, description, source, license.

    Raises:
      ValueError: if a split is empty.
    """
    for split, pairs in splits.items():
        if not pairs:
            raise ValueError(f"the {split} split of the task {fields['name']!r} is empty; allowed: at least one pair.")
    sources = {split: _as_source(vocabulary, answer_vocabulary, pairs) for split, pairs in splits.items()}
    judged: dict[str, Any]
    if exact:
        _, counts = np.unique([answer for _, answer in splits["test"]], return_counts=True)
        judged = {
            "score": task.exact_match,
            "metric": "exact match",
            "higher_is_better": True,
            "baseline_score": float(counts.max() / counts.sum()),
        }
    else:
        counts = np.bincount(_answers(sources["train"]), minlength=len(answer_vocabulary)) + 1
        judged = {
            "score": task.bits,
            "metric": "bits per token",
            "higher_is_better": False,
            "baseline_score": float(-np.mean(np.log2(counts / counts.sum())[_answers(sources["test"])])),
        }
    return task.Task(
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        kind=task.Kind.SEQUENCE,
        seq_len=int(max(source.lengths.max() for source in sources.values())),
        answer_len=max(len(labels) for source in sources.values() for labels in source.sequences["labels"]),
        reads_tokens=True,
        in_features=len(vocabulary),
        out_features=len(answer_vocabulary),
        loss=task.cross_entropy,
        fingerprint=fingerprint(sources["train"], sources["test"], packages, validation=sources["validation"]),
        vocabulary=vocabulary,
        answer_vocabulary=answer_vocabulary,
        **judged,
        **fields,
    )


def _as_source(
    vocabulary: Vocabulary | SubwordVocabulary,
    answer_vocabulary: Vocabulary | SubwordVocabulary,
    pairs: Sequence[Pair],
) -> RaggedSource:
    end = np.array([task.END], np.int32)
    return RaggedSource(
        {
            "tokens": [encode_text(vocabulary, source) for source, _ in pairs],
            "labels": [np.concatenate([answer_vocabulary.encode(answer), end]) for _, answer in pairs],
        }
    )


def _answers(source: RaggedSource) -> np.ndarray:
    return np.concatenate(source.sequences["labels"])
