"""Pairs of texts of the user, a source and its answer, from a file with a tab between them."""

import os
import pathlib

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.splits import stratified_split
from rnn_jax.tasks.subwords import SubwordVocabulary, build_subwords
from rnn_jax.tasks.tables import decoded
from rnn_jax.tasks.translation import Pair, translation
from rnn_jax.tasks.vocabulary import Vocabulary, build_vocabulary

_TOKENS = ("subword", "word", "character", "byte")


def pairs(
    path: str | os.PathLike[str],
    *,
    tokens: str = "subword",
    vocab_size: int | None = None,
    max_length: int | None = None,
    split_seed: int = 0,
) -> task.Task:
    """Writes the answer to a source, from a file of the user: translation, or any other rewriting of short texts.

    The file is UTF-8, one pair a line: source, tab, answer. There is no row of names; what stands behind a second tab
    is not read (files of Tatoeba name the authors there); blank lines are skipped. A tenth of the different sources is
    drawn for testing and another tenth for validation, with all their answers.

    Args:
      path: of the file.
      tokens: "subword" (one vocabulary for both sides), "word", "character" or "byte".
      vocab_size: max number of symbols to keep, the commonest; of subwords 4000 by default, of others all.
      max_length: leaves out pairs with more tokens than this on a side; none by default.
      split_seed: of the splits.

    Raises:
      ValueError: if there is no such file, a line has one column or an empty one (named by its number), there are fewer
        than 3 different sources, no pair is left in a split, or an argument is out of range.
    """
    if tokens not in _TOKENS:
        raise ValueError(f"tokens={tokens!r} is unknown; allowed: {', '.join(_TOKENS)}.")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length} is out of range; allowed: 1 or more.")
    splits = split_pairs(read_pairs(path), split_seed, path)
    sources, answers = zip(*splits["train"])
    vocabulary: Vocabulary | SubwordVocabulary
    answer_vocabulary: Vocabulary | SubwordVocabulary
    if tokens == "subword":
        vocabulary = answer_vocabulary = build_subwords([*sources, *answers], vocab_size or 4000)
    else:
        vocabulary, answer_vocabulary = (build_vocabulary(texts, tokens, vocab_size) for texts in (sources, answers))
    if max_length is not None:
        for split, content in splits.items():
            splits[split] = [
                (source, answer)
                for source, answer in content
                if max(len(vocabulary.encode(source)), len(answer_vocabulary.encode(answer))) <= max_length
            ]
    return translation(
        name=f"pairs:{path}",
        description=f"The second column of {pathlib.Path(path).name} from the first.",
        source=f"{path}",
        license="the user's own data",
        splits=splits,
        vocabulary=vocabulary,
        answer_vocabulary=answer_vocabulary,
        packages=("numpy", "grain", *(("tokenizers",) if tokens == "subword" else ())),
        exact=False,
    )


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Returns the different pairs of a file, in its order.

    Raises:
      ValueError: if there is no such file, it is empty, or a line has one column or an empty one.
    """
    found: dict[Pair, None] = {}
    for number, line in enumerate(decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: there is one column; needed: a source, a tab and its answer.")
        if not columns[0] or not columns[1]:
            side = "source" if not columns[0] else "answer"
            raise ValueError(f"{path}, line {number}: the {side} is empty; needed: a source, a tab and its answer.")
        found[(columns[0], columns[1])] = None
    if not found:
        raise ValueError(f"{path} has no pairs; needed: lines of a source, a tab and its answer.")
    return list(found)


def split_pairs(found: list[Pair], split_seed: int, path: str | os.PathLike[str]) -> dict[str, list[Pair]]:
    """Returns the pairs of "train", "validation" and "test"; those of one source are in one split.

    Raises:
      ValueError: if the seed is out of range, or there are fewer than 3 different sources.
    """
    sources = list(dict.fromkeys(source for source, _ in found))
    if len(sources) < 3:
        raise ValueError(f"{path} has {len(sources)} different sources; needed: 3 or more, one for each split.")
    shares = {"validation": 0.1, "test": 0.1}
    drawn = stratified_split(np.zeros(len(sources), np.int32), ("pair",), shares, split_seed)
    split_of = {sources[k]: split for split, members in drawn.items() for k in members}
    splits: dict[str, list[Pair]] = {split: [] for split in drawn}
    for pair in found:
        splits[split_of[pair[0]]].append(pair)
    return splits
