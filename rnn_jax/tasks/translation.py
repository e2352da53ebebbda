"""Pairs of texts in, a task of sequences for sequences out: translation, character by character or in subwords."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.sources import RaggedSource
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.text import bits, encode_answer, encode_text, pad_answer
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
    """Makes the task of writing the answer to a source: "tokens" is `[T]`, "answer" `[U]`, `END` last.

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
    answers = {
        split: [encode_answer(answer_vocabulary, answer) for _, answer in pairs] for split, pairs in splits.items()
    }
    length = max(len(answer) for of_split in answers.values() for answer in of_split)
    sources = {
        split: RaggedSource(
            {"tokens": [encode_text(vocabulary, source) for source, _ in pairs]},
            answer=np.stack([pad_answer(answer, length) for answer in answers[split]]),
        )
        for split, pairs in splits.items()
    }
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
        counts = np.bincount(np.concatenate(answers["train"]), minlength=len(answer_vocabulary)) + 1
        judged = {
            "score": bits,
            "metric": "bits per token",
            "higher_is_better": False,
            "baseline_score": float(-np.mean(np.log2(counts / counts.sum())[np.concatenate(answers["test"])])),
        }
    return task.Task(
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        kind=task.Kind.SEQUENCE,
        seq_len=int(max(source.lengths.max() for source in sources.values())),
        answer_length=length,
        reads_tokens=True,
        in_features=len(vocabulary),
        out_features=len(answer_vocabulary),
        loss=task.answer_cross_entropy,
        fingerprint=fingerprint(sources["train"], sources["test"], packages, validation=sources["validation"]),
        vocabulary=vocabulary,
        answer_vocabulary=answer_vocabulary,
        **judged,
        **fields,
    )


def corpus_scores(given: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """Returns chrF and BLEU of translations against one reference each, 0 to 100, with sacrebleu's signature.

    Args:
      given: what a model wrote.
      answers: the references, in the same order.

    Raises:
      ValueError: if the package sacrebleu is not installed.

    References:
      Papineni, Roukos, Ward, Zhu 2002, "BLEU: a method for automatic evaluation of machine translation", ACL.
      Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation", WMT.
      Post 2018, "A call for clarity in reporting BLEU scores", arXiv 1804.08771.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError(
            "chrF and BLEU need the package sacrebleu, which is not installed; run: pip install 'sacrebleu>=2.5,<3'"
        )
    from sacrebleu.metrics import BLEU, CHRF  # here: not everybody has it

    scores = {}
    for name, metric in (("chrF", CHRF()), ("BLEU", BLEU())):
        score = metric.corpus_score(list(given), [list(answers)])
        scores[name] = f"{score.score:.1f}  ({metric.get_signature()})"
    return scores
