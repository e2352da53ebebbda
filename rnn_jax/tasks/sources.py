"""Where the examples of a split come from: arrays in memory, sequences of different lengths, one long stream.

An example is a dict of arrays with the names of `rnn_jax.tasks.task.Batch`, without the batch axis and without
"lengths". `rnn_jax.tasks.generated` has a source of examples that are computed.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Examples by their number, 0 to len - 1: in memory, on disk, or made on the spot.

    Attributes:
      lengths: true steps of every example, int `[N]`; None if all have the same.
    """

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


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
