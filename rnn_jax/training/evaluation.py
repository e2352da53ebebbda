"""The mean score of a model, or of each member of an ensemble, over a whole split."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from rnn_jax import tasks
from rnn_jax.tasks.bucketing import bucket_boundaries
from rnn_jax.tasks.task import NOT_ASKED
from rnn_jax.training.ensemble import over_members
from rnn_jax.training.update import run_on

PyTree = Any

_LARGEST_BATCH = 2**19  # steps in a batch, and at most _SEQUENCES sequences
_SEQUENCES = 512
_STREAMS = 64  # into which the one stream of a language model's split is cut


class Evaluator:
    """The score of a model over a whole split, in one compilation for all splits, or two where lengths differ.

    Sequences go in by length, in batches of one size and of two widths, those that need the least padding. Each
    sequence is scored by itself, so that what fills up the last batch can be left out. The one stream of a language
    model is cut into several, side by side, of which each begins without a state.

    Args:
      task: whose score it is; its validation and test splits decide on the size of a batch.
      place: puts a batch on devices.
      ensemble: whether the models are `[S, ...]`.
    """

    def __init__(
        self,
        task: tasks.Task,
        place: Callable[[tasks.Batch], tasks.Batch] = lambda batch: batch,
        *,
        ensemble: bool = False,
    ):
        self.task, self._place = task, place
        splits = [split for split in (task.validation, task.test) if split is not None]
        lengths = [split.lengths for split in splits if split.lengths is not None]
        self._widths = bucket_boundaries(np.concatenate(lengths), 2) if lengths else None
        most = max(map(len, splits))
        self._size = max(1, min(_SEQUENCES, most, _LARGEST_BATCH // max(1, task.seq_len, task.test_seq_len or 0)))
        score_each, score_on = partial(_score_each, task.score), partial(_score_on, task.score)
        self._initial_carry = lambda model, streams: model.initialize_carry((streams,))
        if ensemble:
            self._score_each = over_members(score_each, in_axes=(0, None))
            self._score_on = over_members(score_on, in_axes=(0, 0, None))
            self._initial_carry = lambda models, streams: jax.vmap(lambda m: m.initialize_carry((streams,)))(models)
        else:
            self._score_each, self._score_on = jax.jit(score_each), jax.jit(score_on)

    def __call__(self, model: PyTree, source: tasks.Source) -> np.ndarray:
        """Returns the mean score over all answers of a split that count, float64: `[]`, of an ensemble `[S]`."""
        batches = self._stream(model, source) if self.task.kind is tasks.Kind.STREAM else self._sequences(model, source)
        scores = [(sums[..., :kept], counts[..., :kept]) for (sums, counts), kept in jax.device_get(list(batches))]
        total, count = (np.concatenate(arrays, axis=-1).astype(np.float64) for arrays in zip(*scores))
        return np.sum(total, axis=-1) / np.sum(count, axis=-1)

    def _sequences(self, model: PyTree, source: tasks.Source) -> Iterator[tuple[tasks.Score, int]]:
        """Yields sum and count of each sequence of a batch, `[..., B]`, and how many are not there to fill it up."""
        lengths = source.lengths
        order = np.arange(len(source)) if lengths is None else np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self._size):
            chosen = order[start : start + self._size]
            width = None
            if self._widths is not None:
                assert lengths is not None
                width = next(width for width in self._widths if width >= lengths[chosen[-1]])
            filled = np.resize(chosen, self._size)
            batch = tasks.collate([source[int(index)] for index in filled], lengths is not None, width)
            yield self._score_each(model, self._place(batch)), len(chosen)

    def _stream(self, model: PyTree, source: tasks.Source) -> Iterator[tuple[tasks.Score, int]]:
        """Yields sum and count of each batch of the stream, `[..., 1]`, and 1."""
        assert isinstance(source, tasks.StreamSource)
        streams = min(_STREAMS, len(source))
        carry = self._initial_carry(model, streams)
        for batch in _pass_over(source, streams):
            score, carry = self._score_on(model, carry, self._place(batch))
            yield score, 1


def _score_each(score: Callable[..., tasks.Score], model: PyTree, batch: tasks.Batch) -> tasks.Score:
    """Returns sum and count of each sequence, `[B]`: a score sees one at a time."""
    return jax.vmap(lambda example: score(model, jax.tree.map(lambda array: array[None], example)))(dict(batch))


def _score_on(
    score: Callable[..., tasks.Score], model: PyTree, carry: PyTree, batch: tasks.Batch
) -> tuple[tasks.Score, PyTree]:
    """Returns sum and count, `[1]`, of a model that goes on from a carry, and the new carry."""
    (total, count), carry = run_on(score, model, carry, batch)
    return (total[None], count[None]), carry


def _pass_over(source: tasks.StreamSource, streams: int) -> Iterator[tasks.Batch]:
    """One pass over all pieces, in streams side by side; what fills up the last stream asks for no answers."""
    pieces = -(-len(source) // streams)
    for index in range(pieces):
        rows = []
        for stream in range(streams):
            piece = stream * pieces + index
            row = source[min(piece, len(source) - 1)]
            rows.append(row if piece < len(source) else {**row, "labels": np.full_like(row["labels"], NOT_ASKED)})
        yield {**tasks.collate(rows, ragged=False), "first": np.asarray(index == 0)}
