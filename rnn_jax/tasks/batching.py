"""How examples become batches: in an endless order that a seed draws, padded where lengths differ, or as streams."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from rnn_jax.tasks.bucketing import BucketOrder, bucket_boundaries
from rnn_jax.tasks.sources import Source, StreamSource
from rnn_jax.tasks.task import NOT_ASKED, Batch

_TIME_SERIES = ("xs", "tokens", "labels", "targets")  # parts of a batch whose second axis is time
_PADDING = {"labels": NOT_ASKED}  # 0 for every other part
_ENDLESS = 2**62  # batches; Grain wants a number
# One thread prepares the next batch while the model works on this one. More of them only contend for
# Python's lock: for examples that cost microseconds, Grain's default of 16 is slower than none at all.
_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    augment: Callable[[Batch, int], Batch] | None = None,
    widths: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """Endless batches, every example once an epoch, in an order drawn again for each epoch.

    Epochs follow each other without a gap: where the batch size does not divide the number of examples, a
    batch holds the last of one epoch and the first of the next, and no example is ever dropped. Sequences that
    differ in length come in batches of similar lengths, of a few widths (`rnn_jax.tasks.bucketing`).

    Args:
      source: the examples.
      batch_size: B, 1 to the number of examples.
      seed: of the order. Equal seeds give equal batches.
      augment: applied to each batch and its number, if the sequences differ in length: `rnn_jax.tasks.augmentation`.
      widths: T of the batches, ascending, if the sequences differ in length; by default the 8 with the smallest share
        of padding. `rnn_jax.tasks.bucketing.width_count` says how many a short run is to have.

    Returns:
      an iterator over `Batch`es of numpy arrays. `get_state()` is a small JSON-able dict; after
      `set_state`, an iterator made with the same arguments goes on with the batch that would have been next.

    Raises:
      ValueError: if the batch size or the seed is out of range, the widths do not hold all sequences, or there is
        nothing to augment or to pad.
    """
    _check_batching(source, batch_size, seed)
    if source.lengths is not None:
        widths = bucket_boundaries(source.lengths) if widths is None else widths
        order = BucketOrder(source.lengths, batch_size, seed, widths)

        def batch(number: int) -> Batch:
            examples, width = order[number]
            collated = collate([source[int(index)] for index in examples], ragged=True, width=width)
            return collated if augment is None else augment(collated, number)

        return iter(grain.MapDataset.range(_ENDLESS).map(batch).to_iter_dataset(_AHEAD))
    for name, value in (("widths", widths), ("augment", augment)):
        if value is not None:
            raise ValueError(
                f"the argument {name} is for sequences of different lengths; allowed for a source without lengths:"
                " None."
            )
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    stream = examples.batch(batch_size, drop_remainder=True, batch_fn=collate)
    return iter(stream.to_iter_dataset(_AHEAD))


def stream_batches(source: StreamSource, batch_size: int) -> grain.DatasetIterator:
    """Endless batches of one long sequence, cut into B streams side by side, for a model that carries its state over.

    Row b of a batch goes on where row b of the batch before it ended; a pass reads `len(source) // B` batches, and
    leaves out what does not fill one more.

    Args:
      source: the sequence, in pieces of T steps.
      batch_size: B, 1 to the number of pieces.

    Returns:
      an iterator over `Batch`es of "tokens", "labels" and "first". It has the `get_state` and `set_state` of
      `batches`.

    Raises:
      ValueError: if the batch size is out of range.
    """
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size={batch_size} is out of range; allowed: 1 to {len(source)}, the pieces of {source.seq_len}"
            " steps there are."
        )
    pieces = len(source) // batch_size

    def batch(index: int) -> Batch:
        rows = [source[stream * pieces + index] for stream in range(batch_size)]
        return {**collate(rows, ragged=False), "first": np.asarray(index == 0)}

    return iter(grain.MapDataset.range(pieces).map(batch).repeat().to_iter_dataset(_AHEAD))


def as_batch(source: Source) -> Batch:
    """Stacks all examples of a source in one batch, in their order: for a test split that fits in memory."""
    return collate([source[index] for index in range(len(source))], source.lengths is not None)


def collate(
    examples: Sequence[Mapping[str, np.ndarray]], ragged: bool | None = None, width: int | None = None
) -> Batch:
    """Stacks examples to a batch; where they differ in length, pads them behind and adds their "lengths".

    Args:
      examples: as a `Source` gives them.
      ragged: whether to pad and to add "lengths"; by default if the examples differ in length.
      width: T of the padded batch; the longest example's by default.

    Raises:
      ValueError: if there is no example.
    """
    if not examples:
        raise ValueError("examples is empty; allowed: one or more, to make a batch of.")
    time_series = [name for name in examples[0] if name in _TIME_SERIES]
    lengths = np.array([len(example[time_series[0]]) for example in examples], np.int32)
    width = int(lengths.max()) if width is None else width
    if ragged is None:
        ragged = bool((lengths != width).any())
    batch: Any = {}
    for name in examples[0]:
        arrays = [np.asarray(example[name]) for example in examples]
        if ragged and name in _TIME_SERIES:
            padded = np.full((len(arrays), width, *arrays[0].shape[1:]), _PADDING.get(name, 0), arrays[0].dtype)
            for row, array in zip(padded, arrays):
                row[: len(array)] = array
            batch[name] = padded
        else:
            batch[name] = np.stack(arrays)
    if ragged:
        batch["lengths"] = lengths
    return batch


def widen(batch: Batch, width: int) -> Batch:
    """Returns a padded batch with more padding, to T = `width` steps, which changes nothing where lengths are read."""
    wider: Any = dict(batch)
    for name in _TIME_SERIES:
        if name in wider:
            array = wider[name]
            margins = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
            wider[name] = np.pad(array, margins, constant_values=_PADDING.get(name, 0))
    return wider


def _check_batching(source: Source, batch_size: int, seed: int) -> None:
    """Raises ValueError unless there can be batches of this size in the order of this seed."""
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size={batch_size} is out of range; allowed: 1 to {len(source)}, the examples there are."
        )
    if seed < 0:
        raise ValueError(f"seed={seed} is out of range; allowed: 0 or more.")
