"""What a task is: two splits of examples, a loss, a score, and the score of whoever has learned nothing.

A task is one file beside this one: a function that returns a `Task`, with the functions below as its parts.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = Mapping[str, Any]  # of arrays, [B, ...] each
Model = Callable[[Any], jax.Array]  # xs [B, T, F] -> ys [B, out_features]


class Source(Protocol):
    """Examples by their number, 0 to len - 1: in memory, on disk, or made on the spot.

    Every example has "xs", float32 [T, F], and either "label", an int32 scalar, or "target", float32
    [out_features].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


# Compared and hashed as an object: sources hold arrays, and `==` on arrays answers no yes or no.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One thing to learn from sequences: all of equal length, one answer each, read after the last step.

    Attributes:
      name: the task's name in `rnn_jax.tasks.TASKS`.
      description: one sentence for a person who reads a plot.
      source: where the data come from, as a citation.
      train, test: the two splits.
      seq_len: T, steps in a sequence.
      in_features: F, size of the last axis of "xs".
      out_features: size of the last axis of what a model returns: classes, or components of the target.
      loss: `(model, batch) -> scalar`, what training lowers. The model is any callable that takes the "xs"
        of a batch and returns [B, out_features].
      score: `(model, batch) -> scalar`, the metric averaged over the batch.
      metric: what the score is called, "accuracy" or "mse".
      higher_is_better: whether a larger score is a better one.
      trivial_score: the score of the best answer that ignores the input. A curve that does not leave it has
        learned nothing.
      fingerprint: versions of packages and SHA-256 of the content, for the `config.json` of a run.
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
    score: Callable[[Model, Batch], jax.Array]
    metric: str
    higher_is_better: bool
    trivial_score: float
    fingerprint: dict[str, str]


class ArraySource:
    """A `Source` over arrays in memory, [N, ...] each, which it makes read-only."""

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


def batches(source: Source, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Endless batches, every example once an epoch, in an order drawn anew for each epoch.

    Epochs follow each other without a gap: where the batch size does not divide the number of examples, a
    batch holds the last of one epoch and the first of the next, and no example is ever dropped.

    Args:
      source: the examples.
      batch_size: B, at most as many as there are examples.
      seed: of the order. Equal seeds give equal batches.

    Returns:
      an iterator over dicts of numpy arrays, [B, ...] each. `get_state()` is a small JSON-able dict; after
      `set_state`, an iterator made with the same arguments goes on with the batch that would have been next.

    Raises:
      ValueError: if the batch size or the seed is out of range.
    """
    if not 1 <= batch_size <= len(source):
        raise ValueError(
            f"batch_size={batch_size} is out of range; allowed: 1 to {len(source)}, the examples there are."
        )
    if seed < 0:
        raise ValueError(f"seed={seed} is out of range; allowed: 0 or more.")
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    stream = examples.batch(batch_size, drop_remainder=True)
    # One thread prepares the next batch while the model works on this one. More of them only contend for
    # Python's lock: for examples that cost microseconds, grain's default of 16 is slower than none at all.
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def as_batch(source: Source) -> dict[str, np.ndarray]:
    """Stacks all examples of a source in one batch, in their order: for a test split that fits in memory."""
    examples = [source[index] for index in range(len(source))]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def cross_entropy(model: Model, batch: Batch) -> jax.Array:
    """Mean over the batch of -log p(label), in nats, where the model returns logits [B, classes].

    Raises:
      ValueError: if the model returns another shape, such as outputs at every step.
    """
    logits = _outputs(model, batch)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def accuracy(model: Model, batch: Batch) -> jax.Array:
    """Share of the batch, float32, whose largest logit is the label's.

    Raises:
      ValueError: if the model returns another shape than [B, classes].
    """
    logits = _outputs(model, batch)
    label = jnp.asarray(batch["label"])
    return jnp.mean(jnp.argmax(logits, axis=-1).astype(label.dtype) == label)


def mean_squared_error(model: Model, batch: Batch) -> jax.Array:
    """Mean over batch and components of (output - target)^2.

    Raises:
      ValueError: if the model returns another shape than the target's, [B, out_features].
    """
    ys = _outputs(model, batch)
    return optax.losses.squared_error(ys, jnp.asarray(batch["target"], ys.dtype)).mean()


def _outputs(model: Model, batch: Batch) -> jax.Array:
    """The model's outputs, at least float32 so that a low-precision model is judged in full precision.

    The shape is checked because outputs of [B, T, 1] against targets of [B, 1] would broadcast, and train.
    """
    ys = jnp.asarray(model(batch["xs"]))
    wanted = batch["target"].shape if "target" in batch else (*batch["label"].shape, *ys.shape[-1:])
    if ys.shape != wanted:
        raise ValueError(
            f"the model returned an array of shape {ys.shape}; the task needs {wanted},"
            " one row for each sequence, read at the last step."
        )
    return ys if ys.dtype == jnp.float64 else ys.astype(jnp.float32)


def fingerprint(train: Source, test: Source, packages: Sequence[str], first: int | None = None) -> dict[str, str]:
    """What a run must note to be made again: the content of both splits and who produced it.

    Args:
      train, test: the splits.
      packages: names of distributions, as pip knows them.
      first: how many examples of each split to read; None reads all.

    Returns:
      "train_sha256", "test_sha256", and the installed version of every package under its name.
    """
    digests = {"train_sha256": _sha256(train, first), "test_sha256": _sha256(test, first)}
    return digests | {package: importlib.metadata.version(package) for package in packages}


def _sha256(source: Source, first: int | None) -> str:
    digest = hashlib.sha256()
    for index in range(len(source) if first is None else min(first, len(source))):
        for name, array in sorted(source[index].items()):
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
