"""What a task is: splits of examples, a loss, a score, and the baseline score.

A task is one file beside this one: a function that returns a `Task`, with the functions below as its parts.

Shapes: B sequences of T steps in a batch. A sequence is read as "xs", float32 `[T, F]`, or as "tokens", int32 `[T]`.
It has one answer, "label" (int32) or "target" (float32 `[out_features]`), or one at every step, "labels" (int32
`[T]`, -1 where nothing is asked) or "targets" (float32 `[T, out_features]`). Where sequences differ in length, a batch
is padded behind the last true step of each, and "lengths", int32 `[B]`, says where that is.
"""

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

if TYPE_CHECKING:
    from rnn_jax.tasks.vocabulary import Vocabulary

Batch = Mapping[str, Any]  # of arrays, [B, ...] each
# (xs [B, T, F] or tokens [B, T], lengths [B] if sequences differ) -> ys, [B, out_features] or [B, T, out_features]
Model = Callable[..., jax.Array]
# The sum over all answers that count, in float32 at least, and how many these are, int32.
Score = tuple[jax.Array, jax.Array]

NOT_ASKED = -1  # in "labels": a step whose answer does not count
_PADDING = {"labels": NOT_ASKED}  # 0 for every other name
_TIME_SERIES = ("xs", "tokens", "labels", "targets")  # arrays whose first axis is time


class Source(Protocol):
    """Examples by their number, 0 to len - 1: in memory, on disk, or made on the spot.

    Every example is a dict of the arrays that the head of this file names, less the batch axis, without "lengths".

    Attributes:
      lengths: true steps of every example, int `[N]`; None if all have the same.
    """

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


# Compared and hashed as an object: sources hold arrays, and `==` on arrays answers no yes or no.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One thing to learn from sequences.

    Attributes:
      name: what `rnn_jax.tasks.make_task` calls it.
      description: one sentence for a person who reads a plot.
      source: where the data come from, as a citation.
      license: of the data; "" for generated ones.
      train, validation, test: the splits. Training may look at the validation split (to stop, to choose a
        checkpoint), never at the test split; None where none was set apart.
      seq_len: steps in the longest sequence.
      reads_tokens: whether sequences are "tokens", not "xs".
      in_features: F, size of the last axis of "xs"; for tokens, how many there are.
      out_features: size of the last axis of what a model returns: classes, or components of the target.
      per_step: whether there is an answer at every step ("labels", "targets").
      stateful: whether a split is one long stream (`StreamSource`): a batch goes on where the one before it
        ended, so a model may carry its state over.
      loss: `(model, batch) -> scalar`, what training lowers. The model is any callable as `Model` says.
      score: `(model, batch) -> (sum, count)`, the metric summed over all answers of the batch that count, and how many
        these are: a mean over several batches is the sum of their sums over the sum of their counts.
      metric: what the score is called: "accuracy", "mse", "bits per character", ...
      higher_is_better: whether a larger score is a better one.
      baseline_score: the score of the best answer that ignores the input. A curve that does not leave it has
        learned nothing.
      fingerprint: versions of packages and SHA-256 of the content, for the `config.json` of a run.
      class_names: of the classes, in the order of their labels; () if they have none.
      vocabulary: how text becomes tokens; None for other tasks.
    """

    name: str
    description: str
    source: str
    train: Source
    test: Source
    seq_len: int
    in_features: int
    out_features: int
    loss: Callable[[Model, Batch], jax.Array]
    score: Callable[[Model, Batch], Score]
    metric: str
    higher_is_better: bool
    baseline_score: float
    fingerprint: dict[str, str]
    license: str = ""
    validation: Source | None = None
    reads_tokens: bool = False
    per_step: bool = False
    stateful: bool = False
    class_names: tuple[str, ...] = ()
    vocabulary: "Vocabulary | None" = None


class ArraySource:
    """A `Source` over arrays in memory, [N, ...] each, which it makes read-only."""

    lengths: np.ndarray | None = None

    def __init__(self, **arrays: np.ndarray):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the arrays of a source must have one length; got {lengths}.")
        self.arrays = arrays
        for array in arrays.values():
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index, ...] for name, array in self.arrays.items()}


class RaggedSource:
    """A `Source` over sequences of different lengths.

    Args:
      sequences: "xs", "tokens", "labels" or "targets": a list of N arrays `[T, ...]` for each.
      **arrays: one entry an example, `[N, ...]` each: "label", "target".
    """

    def __init__(self, sequences: Mapping[str, Sequence[np.ndarray]], **arrays: np.ndarray):
        self.sequences = {name: list(values) for name, values in sequences.items()}
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        counts = {name: len(values) for name, values in self.sequences.items()}
        counts |= {name: len(array) for name, array in self.arrays.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"the arrays of a source must have one length; got {counts}.")
        self.lengths = np.array([len(sequence) for sequence in next(iter(self.sequences.values()))])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        whole = {name: array[index, ...] for name, array in self.arrays.items()}
        return {name: sequences[index] for name, sequences in self.sequences.items()} | whole


class StreamSource:
    """One long sequence of tokens, to be predicted one after another: a `Source` of its pieces.

    Piece k is read as tokens k T to (k + 1) T - 1, and asked for the token behind each.

    Args:
      tokens: int32 `[N]`.
      seq_len: T.
    """

    lengths: np.ndarray | None = None

    def __init__(self, tokens: np.ndarray, seq_len: int):
        self.tokens = tokens
        self.seq_len = seq_len

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        start, stop = index * self.seq_len, (index + 1) * self.seq_len
        return {"tokens": self.tokens[start:stop], "labels": self.tokens[start + 1 : stop + 1]}


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
      batch_size: B, at most as many as there are examples.
      seed: of the order. Equal seeds give equal batches.
      augment: applied to each batch and its number, if the sequences differ in length: `rnn_jax.tasks.augmentation`.
      widths: T of the batches, ascending, if the sequences differ in length; by default the 8 that need the least
        padding. `rnn_jax.tasks.bucketing.width_count` says how many a short run is to have.

    Returns:
      an iterator over dicts of numpy arrays, [B, ...] each. `get_state()` is a small JSON-able dict; after
      `set_state`, an iterator made with the same arguments goes on with the batch that would have been next.

    Raises:
      ValueError: if the batch size or the seed is out of range, the widths do not hold all sequences, or there is
        nothing to augment or to pad.
    """
    check_batching(source, batch_size, seed)
    if source.lengths is not None:
        from rnn_jax.tasks import bucketing  # here: it builds on this file

        widths = bucketing.bucket_boundaries(source.lengths) if widths is None else widths
        return bucketing.bucketed_batches(source, batch_size, seed, widths, augment)
    if widths is not None:
        raise ValueError("widths are for sequences of different lengths; allowed for a source without lengths: None.")
    if augment is not None:
        raise ValueError("augment is for sequences of different lengths; allowed for a source without lengths: None.")
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    stream = examples.batch(batch_size, drop_remainder=True, batch_fn=collate)
    # One thread prepares the next batch while the model works on this one. More of them only contend for
    # Python's lock: for examples that cost microseconds, grain's default of 16 is slower than none at all.
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def stream_batches(source: StreamSource, batch_size: int) -> grain.DatasetIterator:
    """Endless batches of one long sequence, cut into B streams side by side, for a model that carries its state over.

    Row b of a batch goes on where row b of the batch before it ended; a pass reads `len(source) // B` batches, and
    leaves out what does not fill one more.

    Args:
      source: the sequence, in pieces of T steps.
      batch_size: B, at most as many as there are pieces.

    Returns:
      an iterator over dicts of "tokens" and "labels", int32 `[B, T]`, and "first", bool `[]`: whether a pass begins,
      so that there is no state to go on with. It has the `get_state` and `set_state` of `batches`.

    Raises:
      ValueError: if the batch size is out of range.
    """
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size={batch_size} is out of range; allowed: 1 to {len(source)}, the pieces of {source.seq_len}"
            " steps there are."
        )
    pieces = len(source) // batch_size

    def batch(index: int) -> dict[str, np.ndarray]:
        rows = [source[stream * pieces + index] for stream in range(batch_size)]
        return {**collate(rows, ragged=False), "first": np.asarray(index == 0)}

    stream = grain.MapDataset.range(pieces).map(batch).repeat()
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def check_batching(source: Source, batch_size: int, seed: int) -> None:
    """Raises ValueError unless there can be batches of this size in the order of this seed."""
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size={batch_size} is out of range; allowed: 1 to {len(source)}, the examples there are."
        )
    if seed < 0:
        raise ValueError(f"seed={seed} is out of range; allowed: 0 or more.")


def as_batch(source: Source) -> dict[str, np.ndarray]:
    """Stacks all examples of a source in one batch, in their order: for a test split that fits in memory."""
    return collate([source[index] for index in range(len(source))], source.lengths is not None)


def collate(
    examples: Sequence[Mapping[str, np.ndarray]], ragged: bool | None = None, width: int | None = None
) -> dict[str, np.ndarray]:
    """Stacks examples to a batch; where they differ in length, pads them behind and adds their "lengths".

    Args:
      examples: as a `Source` gives them.
      ragged: whether to pad and to add "lengths"; by default if the examples differ in length.
      width: T of the padded batch; the longest example's by default.
    """
    time_series = [name for name in examples[0] if name in _TIME_SERIES]
    lengths = np.array([len(example[time_series[0]]) for example in examples], np.int32)
    width = int(lengths.max()) if width is None else width
    if ragged is None:
        ragged = bool((lengths != width).any())
    batch = {}
    for name in examples[0]:
        arrays = [np.asarray(example[name]) for example in examples]
        if ragged and name in _TIME_SERIES:
            padded = np.full((len(arrays), width, *arrays[0].shape[1:]), _PADDING.get(name, 0), arrays[0].dtype)
            for row, array in zip(padded, arrays):
                row[: len(array)] = array
            batch[name] = padded
        else:
            batch[name] = np.stack(arrays)
    return batch | ({"lengths": lengths} if ragged else {})


def cross_entropy(model: Model, batch: Batch) -> jax.Array:
    """Mean of -log p(label), in nats, where the model returns logits: over the batch, or over the steps asked.

    Raises:
      ValueError: if the model returns another shape: outputs at every step for one answer, or the reverse.
    """
    return _mean(*_nats(model, batch))


def mean_squared_error(model: Model, batch: Batch) -> jax.Array:
    """Mean over batch, true steps (if there is a target for each) and components of (output - target)^2.

    Raises:
      ValueError: if the model returns another shape than the target's.
    """
    return _mean(*_squared_errors(model, batch))


def nats(model: Model, batch: Batch) -> Score:
    """The score whose mean is `cross_entropy`.

    Raises:
      ValueError: as `cross_entropy`.
    """
    return _sum_and_count(*_nats(model, batch))


def accuracy(model: Model, batch: Batch) -> Score:
    """Counts the sequences, or the steps asked, whose largest logit is the label's, and how many there are.

    Raises:
      ValueError: as `cross_entropy`.
    """
    logits, label, asked = _logits(model, batch)
    return _sum_and_count(jnp.argmax(logits, axis=-1).astype(label.dtype) == label, asked)


def squared_error(model: Model, batch: Batch) -> Score:
    """The score whose mean is `mean_squared_error`: it counts sequences or true steps, not components.

    Raises:
      ValueError: as `mean_squared_error`.
    """
    return _sum_and_count(*_squared_errors(model, batch))


def run_model(model: Model, batch: Batch) -> jax.Array:
    """The model's outputs, at least float32 so that a low-precision model is judged in full precision."""
    inputs = batch["tokens"] if "tokens" in batch else batch["xs"]
    ys = jnp.asarray(model(inputs, batch["lengths"]) if "lengths" in batch else model(inputs))
    return ys if ys.dtype == jnp.float64 else ys.astype(jnp.float32)


def _logits(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns logits `[..., classes]`, labels `[...]`, and which of them count (None: all)."""
    per_step = "labels" in batch
    label = jnp.asarray(batch["labels" if per_step else "label"])
    logits = run_model(model, batch)
    _check_shape(logits, (*label.shape, *logits.shape[-1:]))
    if not per_step:
        return logits, label, None
    asked = label != NOT_ASKED
    return logits, jnp.where(asked, label, jnp.zeros_like(label)), asked


def _nats(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """Returns -log p(label) `[...]`, and which of them count (None: all)."""
    logits, label, asked = _logits(model, batch)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label), asked


def _squared_errors(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """Returns the mean over components of (output - target)^2, `[...]`, and which of them count (None: all)."""
    key = "target" if "target" in batch else "targets"
    ys = run_model(model, batch)
    target = jnp.asarray(batch[key], ys.dtype)
    _check_shape(ys, target.shape)
    true_steps = None
    if key == "targets" and "lengths" in batch:
        steps = jnp.arange(ys.shape[1], dtype=jnp.int32)
        true_steps = steps[None, :] < jnp.asarray(batch["lengths"], jnp.int32)[:, None]
    return jnp.mean(optax.losses.squared_error(ys, target), axis=-1), true_steps


def _mean(values: jax.Array, counted: jax.Array | None) -> jax.Array:
    """Mean of values, in float32 at least, over those that count."""
    if counted is None:
        return jnp.mean(_precise(values))
    total, count = _sum_and_count(values, counted)
    return total / jnp.maximum(count.astype(total.dtype), 1)


def _sum_and_count(values: jax.Array, counted: jax.Array | None) -> Score:
    values = _precise(values)
    if counted is None:
        return jnp.sum(values), jnp.asarray(values.size, jnp.int32)
    return jnp.sum(jnp.where(counted, values, jnp.zeros_like(values))), jnp.sum(counted, dtype=jnp.int32)


def _precise(values: jax.Array) -> jax.Array:
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def _check_shape(ys: jax.Array, wanted: tuple[int, ...]) -> None:
    # Outputs of [B, T, 1] against targets of [B, 1] would broadcast, and train.
    if ys.shape != wanted:
        rows = "one row for each sequence, read at the last step" if len(wanted) == 2 else "one row for each step"
        raise ValueError(f"the model returned an array of shape {ys.shape}; the task needs {wanted}, {rows}.")


def fingerprint(
    train: Source,
    test: Source,
    packages: Sequence[str],
    first: int | None = None,
    validation: Source | None = None,
) -> dict[str, str]:
    """What a run must note to be made again: the content of the splits and who produced it.

    Args:
      train, test, validation: the splits.
      packages: names of distributions, as pip knows them.
      first: how many examples of each split to read; None reads all.

    Returns:
      "train_sha256", "test_sha256", "validation_sha256" if there is such a split, and the installed version of every
      package under its name.
    """
    splits = {"train": train, "validation": validation, "test": test}
    digests = {f"{name}_sha256": _sha256(split, first) for name, split in splits.items() if split is not None}
    return digests | {package: package_version(package) for package in packages}


def package_version(package: str) -> str:
    """Returns the version of what is installed, as pip knows it; "python" is the interpreter, for its library."""
    return platform.python_version() if package == "python" else importlib.metadata.version(package)


def _sha256(source: Source, first: int | None) -> str:
    digest = hashlib.sha256()
    for index in range(len(source) if first is None else min(first, len(source))):
        for name, array in sorted(source[index].items()):
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
