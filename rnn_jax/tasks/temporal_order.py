"""Temporal order: two or three signs, far apart among distractors; in which order did they come?"""

import functools
import itertools

import numpy as np

from rnn_jax.tasks import generated, task

_X, _FIRST, _LAST = 4, 6, 7  # behind the distractors 0 to 3; Y is 5


def temporal_order(
    seq_len: int = 100,
    symbols: int = 2,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Temporal order: which of X and Y came first, which second (and which third)?

    "tokens" is [T]: E at the first step, B at the last, between them distractors, uniform among a, b, c and d, but for
    the `symbols` steps that hold X or Y, with probability 1/2 each. The first of these is uniform on steps T // 10 to
    2 (T // 10), number j = 1, 2 after it on the T // 10 + 1 steps from j T // symbols on. "label" is the word they
    form, in alphabetical order. For seq_len = 12 and two symbols:

        tokens   E b X a d c c X a b b B      XX: label 0 of XX, XY, YX, YY
        tokens   E Y a a d c X b a c d B      YX: label 2

    In the tokens, 0 to 3 are a to d, 4 and 5 are X and Y, 6 and 7 are E and B. The first sign stands 0.8 T steps or
    more from the end, past distractors all the way, and the order matters: a sum over the sequence is not enough.

    The baseline is right with probability 1 / 2**symbols: all words are equally likely.

    Hochreiter and Schmidhuber draw the length from 100 to 110, and the steps of the signs as here at T = 100 (their
    tasks 6a, with 4 classes, and 6b, with three signs and 8 classes). The length is fixed here.

    Args:
      seq_len: T, 10 or more.
      symbols: how many steps hold X or Y: 2 or 3.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      S. Hochreiter, J. Schmidhuber (1997). Long short-term memory. Neural Computation 9(8). Experiment 6.
    """
    generated.check_lengths(seq_len, test_seq_len, 10, reason="so that no two signs share a step")
    generated.check_range("symbols", symbols, 2, 3)
    return generated.generated_task(
        lambda steps: functools.partial(_temporal_order, steps, symbols),
        lambda steps: steps + 2 * symbols,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="temporal_order",
        description=f"The order of {symbols} signs among {seq_len - symbols} other steps.",
        source="Hochreiter and Schmidhuber 1997",
        kind=task.Kind.ONE_ANSWER,
        reads_tokens=True,
        in_features=8,
        out_features=2**symbols,
        baseline_score=1 / 2**symbols,
        class_names=tuple("".join(word) for word in itertools.product("XY", repeat=symbols)),
        **generated.CLASSES,
    )


def _temporal_order(seq_len: int, symbols: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    tokens = generated.integers(bits[:seq_len], 4)
    tokens[0], tokens[-1] = _FIRST, _LAST
    width = seq_len // 10
    starts = np.array([width] + [j * seq_len // symbols for j in range(1, symbols)])
    steps = starts + generated.integers(bits[seq_len:-symbols], width + 1)
    word = generated.integers(bits[-symbols:], 2)
    tokens[steps] = _X + word
    return {"tokens": tokens, "label": np.asarray(word @ 2 ** np.arange(symbols)[::-1], np.int32)}
