"""Images in, a task of captions out: the answers, how much of a caption is right, and baselines.

An image is "xs" `[rows, columns, channels]`, pixels 0 to 1; or, of a larger encoder, its features `[L, D]` at L places.
The answer is the words of the caption, as tokens, `END` behind.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.task import END, NOT_ASKED
from rnn_jax.tasks.text import encode_answer, pad_answer
from rnn_jax.tasks.vocabulary import UNKNOWN, build_vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned:
    """Images and a caption of each.

    Attributes:
      images: M images, uint8 `[M, rows, columns, channels]`; or their features, float32 `[M, L, D]`.
      captions: N texts.
      image_of: the number of the image of each caption, int `[N]`: an image may have several.
    """

    images: np.ndarray
    captions: Sequence[str]
    image_of: np.ndarray


class CaptionSource:
    """A `Source` of images and one caption each; an image that has several is kept once, in bytes.

    Args:
      images, image_of: as in `Captioned`.
      answers: captions in tokens, int32 `[N, U]`.
    """

    lengths: np.ndarray | None = None

    def __init__(self, images: np.ndarray, image_of: np.ndarray, answers: np.ndarray):
        self.images, self.image_of, self.answers = images, image_of, answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"xs": pixels(self.images[self.image_of[index]]), "answer": self.answers[index]}


def pixels(images: np.ndarray) -> np.ndarray:
    """Returns images as a model reads them, float32, bytes as 0 to 1."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)


def caption_task(
    *,
    name: str,
    description: str,
    source: str,
    license: str,
    train: Captioned,
    validation: Captioned,
    test: Captioned,
    packages: Sequence[str],
    vocab_size: int | None = None,
) -> task.Task:
    """Makes the task of writing the caption of an image, word by word.

    Words are those of the training split (`rnn_jax.tasks.vocabulary`, kind "word"). The score is the word overlap of
    the caption that a model gives by `greedy`. The baseline always says the commonest words of the training split,
    as many of them as have the largest overlap with that split. The reference is the caption of the
    image of the training split whose pixels are nearest (`nearest_neighbors`).

    Args:
      name, description, source, license: as in `Task`.
      train, validation, test: images and captions.
      packages: whose versions the fingerprint notes, as pip knows them.
      vocab_size: max number of words to keep, the commonest; all by default.

    Raises:
      ValueError: if `vocab_size` is out of range, or a split is empty.
    """
    splits = {"train": train, "validation": validation, "test": test}
    for split, content in splits.items():
        if not len(content.captions):
            raise ValueError(f"the {split} split of {name!r} is empty; needed: an image or more.")
    vocabulary = build_vocabulary(train.captions, "word", vocab_size)
    ended = {split: [encode_answer(vocabulary, text) for text in content.captions] for split, content in splits.items()}
    length = max(len(answer) for answers in ended.values() for answer in answers)
    answers = {split: np.stack([pad_answer(answer, length) for answer in ended[split]]) for split in splits}
    sources = {
        split: CaptionSource(content.images, content.image_of, answers[split]) for split, content in splits.items()
    }
    features = train.images.shape[2:]
    return task.Task(
        name=name,
        description=description,
        source=source,
        license=license,
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        kind=task.Kind.SEQUENCE,
        seq_len=train.images.shape[1],
        in_features=features[0] if len(features) == 1 else features,
        out_features=len(vocabulary),
        loss=task.answer_cross_entropy,
        score=word_overlap,
        metric="word overlap",
        higher_is_better=True,
        baseline_score=_constant_score(answers["train"], answers["test"], len(vocabulary)),
        fingerprint=fingerprint(sources["train"], sources["test"], packages, validation=sources["validation"]),
        answer_length=length,
        answer_vocabulary=vocabulary,
        references=partial(_references, sources["train"], sources["test"]),
    )


def word_overlap(model: Any, batch: task.Batch) -> task.Score:
    """Sums, over the captions of a batch, the words that two captions share over the words in either; and counts them.

    That is the Jaccard index of the set of words that `model.greedy` gives and that of the answer. All words
    that the vocabulary does not know count as one, which is never shared.

    Args:
      model: as `rnn_jax.tasks.task.exact_match`.
      batch: with "answer".
    """
    overlap = overlap_of(task.greedy_answer(model, batch), jnp.asarray(batch["answer"]))
    return jnp.sum(overlap), jnp.asarray(overlap.size, jnp.int32)


def overlap_of(said: jax.Array | np.ndarray, answer: jax.Array | np.ndarray) -> jax.Array:
    """Returns the Jaccard index of the words of two captions, int32 `[B, U]` each: float32 `[B]`.

    Words end where `END` or `NOT_ASKED` stands first. Two captions without a word have an overlap of 1.
    """
    # No table of the vocabulary: a word counts where it stands first in its caption.
    said, answer = jnp.asarray(said), jnp.asarray(answer)
    first_said, first_answer = _first_of_its_kind(said), _first_of_its_kind(answer)
    same = (said[..., :, None] == answer[..., None, :]) & (said[..., :, None] != UNKNOWN)
    shared = jnp.sum(same & first_said[..., :, None] & first_answer[..., None, :], axis=(-2, -1), dtype=jnp.int32)
    either = jnp.sum(first_said, -1, dtype=jnp.int32) + jnp.sum(first_answer, -1, dtype=jnp.int32) - shared
    return jnp.where(either > 0, shared / jnp.maximum(either, 1), 1).astype(jnp.float32)


def _first_of_its_kind(tokens: jax.Array) -> jax.Array:
    """Returns which of `tokens [B, U]` are words of a caption that do not stand in it before."""
    within = jnp.cumsum((tokens == END) | (tokens == NOT_ASKED), axis=-1, dtype=jnp.int32) == 0
    steps = tokens.shape[-1]
    before = jnp.asarray(np.tri(steps, k=-1, dtype=bool)).reshape((1,) * (tokens.ndim - 1) + (steps, steps))
    seen = jnp.any((tokens[..., :, None] == tokens[..., None, :]) & before, axis=-1)
    return within & ~seen


def nearest_neighbors(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns for each of `asked [N, ...]` the number of the array of `known [M, ...]` at the smallest distance."""
    known, asked = (pixels(array).reshape(len(array), -1) for array in (known, asked))
    half_squares = np.sum(known**2, axis=1) / 2
    return np.concatenate([
        np.argmin(half_squares - asked[start : start + 1024] @ known.T, axis=1) for start in range(0, len(asked), 1024)
    ])  # fmt: skip


def nearest_answers(train: CaptionSource, test: CaptionSource) -> np.ndarray:
    """Returns for each caption of `test` that of the nearest image of `train`, int32 `[N, U]`."""
    owner = np.full(len(train.images), len(train))
    np.minimum.at(owner, train.image_of, np.arange(len(train)))  # the first caption of each image
    return train.answers[owner[nearest_neighbors(train.images, test.images)]][test.image_of]


def _references(train: CaptionSource, test: CaptionSource) -> Mapping[str, float]:
    return {"nearest neighbor": float(np.mean(overlap_of(nearest_answers(train, test), test.answers)))}


def _constant_score(train: np.ndarray, test: np.ndarray, vocabulary_size: int) -> float:
    """Returns the overlap with the test split of the commonest words of the training split.

    Of as many of them as have the largest overlap with that.
    """
    known, asked = _different_words(train), _different_words(test)
    counts = np.bincount(known[known != NOT_ASKED], minlength=vocabulary_size)
    counts[UNKNOWN] = -1
    rank = np.argsort(np.argsort(-counts, kind="stable"))

    def overlap(commonest: int, words: np.ndarray) -> float:
        shared = np.sum((words != NOT_ASKED) & (rank[words] < commonest), axis=1)
        return float(np.mean(shared / (commonest + np.sum(words != NOT_ASKED, axis=1) - shared)))

    sizes = range(1, train.shape[1])
    return overlap(max(sizes, key=lambda size: overlap(size, known)), asked)


def _different_words(answers: np.ndarray) -> np.ndarray:
    """Returns each word of `answers [N, U]` once, and `NOT_ASKED` elsewhere."""
    words = np.sort(answers, axis=1)
    repeated = np.diff(words, axis=1, prepend=NOT_ASKED) == 0
    return np.where(repeated | (words == END), NOT_ASKED, words)


def caption_scores(given: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns BLEU-4 (0 to 100), exact match and word overlap (0 to 1) of captions.

    BLEU is that of the corpus, by sacrebleu, with all answers of an image as references. An exact match is one with any
    answer of the image; the word overlap is the mean over its answers.

    Args:
      given: a caption of each image, words with blanks between them.
      answers: one or more right ones of each image.

    Raises:
      ValueError: if the package sacrebleu is not installed.

    References:
      Papineni, Roukos, Ward, Zhu 2002, "BLEU: a method for automatic evaluation of machine translation", ACL.
      Post 2018, "A call for clarity in reporting BLEU scores", arXiv 1804.08771.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError(
            "BLEU needs the package sacrebleu, which is not installed; run: pip install 'sacrebleu>=2.5,<3'"
        )
    from sacrebleu.metrics import BLEU  # here: half a second of import that only this needs

    references = list(itertools.zip_longest(*answers))  # the first of each image, the second, ...: None for no more
    overlaps = [np.mean([_text_overlap(text, answer) for answer in right]) for text, right in zip(given, answers)]
    return {
        "BLEU-4": float(BLEU(tokenize="none").corpus_score(list(given), [list(r) for r in references]).score),
        "exact match": float(np.mean([text in right for text, right in zip(given, answers)])),
        "word overlap": float(np.mean(overlaps)),
    }


def _text_overlap(a: str, b: str) -> float:
    one, other = set(a.split()), set(b.split())
    return len(one & other) / len(one | other) if one | other else 1.0
