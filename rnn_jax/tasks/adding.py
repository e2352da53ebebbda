"""The adding problem: two numbers, far apart in a sequence of noise, are marked; say their sum."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def adding(
    seq_len: int = 100,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """The adding problem, the oldest yardstick for memory over a known lag.

    "xs" is [T, 2]: at every step a value, uniform on [0, 1), and a marker, which is 1 at one step of the
    first half (steps 0 to T // 2 - 1), at one step of the second half, and 0 elsewhere. "target" is [1], the
    sum of the two marked values. For T = 4:

        value   0.9  0.2  0.7  0.4
        marker   0    1    1    0      target 0.2 + 0.7 = 0.9

    The first of the two must be carried over at least half the sequence, past unmarked values all the way.

    The baseline always answers 1. The target is U + V with U and V independent and uniform on [0, 1),
    of mean 1/2 + 1/2 = 1 and variance 1/12 + 1/12 = 1/6, so a constant c has the mean squared error
    1/6 + (c - 1)^2: none does better than 1, and its score is 1/6 = 0.1667 (Le et al. print 0.1767).

    Hochreiter and Schmidhuber draw values from [-1, 1], the length at random, and both markers from the
    first half. Values and fixed length here are those of Le et al., a marker in each half is Arjovsky et al.

    Args:
      seq_len: T, 2 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      S. Hochreiter, J. Schmidhuber (1997). Long short-term memory. Neural Computation 9(8).
      Q. V. Le, N. Jaitly, G. E. Hinton (2015). A simple way to initialize recurrent networks of rectified
        linear units. arXiv:1504.00941.
      M. Arjovsky, A. Shah, Y. Bengio (2016). Unitary evolution recurrent neural networks. arXiv:1511.06464.
    """
    generated.check_lengths(seq_len, test_seq_len, 2, reason="one step for each marker")
    return generated.generated_task(
        lambda steps: functools.partial(_adding, steps),
        lambda steps: steps + 2,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="adding",
        description=f"The sum of the two marked numbers among {seq_len}.",
        source="Hochreiter and Schmidhuber 1997; Le, Jaitly, Hinton 2015, arXiv:1504.00941; "
        "Arjovsky, Shah, Bengio 2016, arXiv:1511.06464",
        kind=task.Kind.ONE_ANSWER,
        in_features=2,
        out_features=1,
        baseline_score=1 / 6,
        **generated.VALUES,
    )


def _adding(seq_len: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    half = seq_len // 2
    first = int(bits[-2]) % half
    second = half + int(bits[-1]) % (seq_len - half)
    xs = np.zeros((seq_len, 2), np.float32)
    xs[:, 0] = generated.uniform(bits[:-2])
    xs[[first, second], 1] = 1
    return {"xs": xs, "target": xs[first, :1] + xs[second, :1]}
