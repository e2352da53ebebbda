"""Tasks whose examples are computed, not kept: each from its number alone, the same on every machine.

Example i of a split is a function of (seed, split, i). It costs no memory, it is made when it is asked for, and it is
the same whatever was asked for before, on every machine and under every version of numpy.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from rnn_jax.memory import check_memory, host_memory
from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint

FINGERPRINTED = 256  # examples of each split: each is a function of its number, so a few show any change
_FINGERPRINTED_STEPS = 2**28  # of very long sequences
_BYTES_A_STEP = 64  # of an example while it is made
TRAIN, TEST, VALIDATION = 0, 1, 2  # of the key of a source

# The fields of a `Task` that say how its answers are judged.
CLASSES: dict[str, Any] = {
    "loss": task.cross_entropy,
    "score": task.accuracy,
    "metric": "accuracy",
    "higher_is_better": True,
}
VALUES: dict[str, Any] = {
    "loss": task.mean_squared_error,
    "score": task.squared_error,
    "metric": "mse",
    "higher_is_better": False,
}


class GeneratedSource:
    """Examples made on the spot.

    Philox is a random number generator with a counter: any block of its stream is one function call away, so
    example i takes the blocks whose counter has i in its highest word, and no two examples share one. Its raw
    integers are read rather than numpy's distributions, whose streams numpy may change between versions.

    Args:
      example: makes an example of `draws` random integers, uint64 `[draws]`, each uniform on 0 to 2**64 - 1.
      draws: how many of them it takes.
      size: number of examples.
      key: of the stream: (seed, split).
    """

    lengths: np.ndarray | None = None

    def __init__(
        self, example: Callable[[np.ndarray], dict[str, np.ndarray]], draws: int, size: int, key: tuple[int, int]
    ):
        self.example = example
        self.draws = draws
        self.size = size
        self.key = np.array(key, np.uint64)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"example {index} of {self.size}")
        counter = np.array((0, 0, 0, index), np.uint64)
        return self.example(np.random.Philox(key=self.key, counter=counter).random_raw(self.draws))


def generated_task(
    example: Callable[[int], Callable[[np.ndarray], dict[str, np.ndarray]]],
    draws: Callable[[int], int],
    *,
    description: str,
    seq_len: int,
    test_seq_len: int | None,
    train_size: int,
    test_size: int,
    seed: int,
    **fields: Any,
) -> task.Task:
    """Makes a task of generated examples. The validation split has the size of the test split and T of the training.

    Args:
      example, draws: of sequences of T steps, given T: as `GeneratedSource`.
      description: of the `Task`; where T of the test split differs, that is added.
      seq_len: T of the training and the validation split.
      test_seq_len: T of the test split; None: as in training.
      train_size, test_size: examples in the splits.
      seed: of the examples.
      **fields: of the `Task`, all others but its splits and its fingerprint.

    Raises:
      ValueError: if a size or the seed is out of range.
    """
    check_sizes(train_size, test_size, seed)
    longest = max(seq_len, test_seq_len or 0)
    check_memory(_BYTES_A_STEP * max(longest, draws(longest)), host_memory(), seq_len=longest)

    def source(steps: int, size: int, split: int) -> GeneratedSource:
        return GeneratedSource(example(steps), draws(steps), size, (seed, split))

    first = max(1, min(FINGERPRINTED, _FINGERPRINTED_STEPS // longest))
    train = source(seq_len, train_size, TRAIN)
    test = source(seq_len if test_seq_len is None else test_seq_len, test_size, TEST)
    return task.Task(
        description=description + tested_on(seq_len, test_seq_len),
        train=train,
        validation=source(seq_len, test_size, VALIDATION),
        test=test,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        fingerprint=fingerprint(train, test, ("numpy", "grain"), first=first),
        **fields,
    )


def tested_on(seq_len: int, test_seq_len: int | None) -> str:
    """Returns what a description adds where T of the test split differs: a sentence, or nothing."""
    return "" if test_seq_len in (None, seq_len) else f" Tested on sequences of {test_seq_len} steps."


def check_lengths(seq_len: int, test_seq_len: int | None, low: int, reason: str = "") -> None:
    """Raises ValueError, in one sentence, unless T of the training and of the test split is `low` or more."""
    check_range("seq_len", seq_len, low, reason=reason)
    if test_seq_len is not None:
        check_range("test_seq_len", test_seq_len, low, reason=reason)


def check_sizes(train_size: int, test_size: int, seed: int) -> None:
    """Raises ValueError, in one sentence, unless there can be splits of these sizes from this seed."""
    check_range("train_size", train_size, 1)
    check_range("test_size", test_size, 1)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is out of range; allowed: 0 to 2**64 - 1.")


def check_range(name: str, value: int, low: int, high: int | None = None, reason: str = "") -> None:
    """Raises ValueError, in one sentence, unless low <= value <= high (None: no upper bound)."""
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}={value} is out of range; allowed: {allowed}{', ' * bool(reason)}{reason}.")


def integers(bits: np.ndarray, n: int) -> np.ndarray:
    """Turns raw integers into int32 uniform on 0 to n - 1; the bias of the remainder is below n / 2**64."""
    return (bits % np.uint64(n)).astype(np.int32)


def uniform(bits: np.ndarray) -> np.ndarray:
    """Turns raw integers into float32 uniform on [0, 1): the upper 24 bits, as many as a float32 holds exactly."""
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def permutation(bits: np.ndarray) -> np.ndarray:
    """Turns n raw integers into a uniform permutation of 0 to n - 1: the order that sorts them."""
    return np.argsort(bits, kind="stable")
