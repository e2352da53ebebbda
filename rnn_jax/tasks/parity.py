"""Parity: has there been an even or an odd number of ones so far? The smallest state there is to track."""

import numpy as np

from rnn_jax.tasks import generated, task


def parity(
    seq_len: int = 40,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Parity of a string of bits, asked at every step.

    "tokens" is [T], each 0 or 1 with probability 1/2; "labels" is 1 where the number of ones read so far is odd. For
    seq_len = 8:

        tokens   0 1 1 0 1 0 0 1
        labels   0 1 0 0 1 1 1 0

    One bit of memory does it, but that bit must never be wrong: a single slip turns all answers after it round, and no
    average over the sequence helps. A linear recurrence whose eigenvalues are all positive cannot keep it (Grazzi et
    al.).

    The baseline is right with probability 1/2 at every step: the bit of that step alone makes both answers
    equally likely.

    Delétang et al. ask once, at the end of strings of 1 to 40 bits. The prefixes of one sequence are such strings, so
    to ask at every step is to ask for each of them; and a single answer to a long string is a needle in a haystack
    that gradient descent does not find.

    Args:
      seq_len: T, 1 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      G. Delétang et al. (2022). Neural networks and the Chomsky hierarchy. arXiv:2207.02098.
      R. Grazzi et al. (2024). Unlocking state-tracking in linear RNNs through negative eigenvalues. arXiv:2411.12537.
    """
    generated.check_lengths(seq_len, test_seq_len, 1)
    return generated.generated_task(
        lambda steps: _parity,
        lambda steps: steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="parity",
        description="At every step, whether the number of ones so far is odd.",
        source="Delétang et al. 2022, arXiv:2207.02098",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=2,
        out_features=2,
        baseline_score=1 / 2,
        class_names=("even", "odd"),
        **generated.CLASSES,
    )


def _parity(bits: np.ndarray) -> dict[str, np.ndarray]:
    tokens = generated.integers(bits, 2)
    return {"tokens": tokens, "labels": np.bitwise_xor.accumulate(tokens)}
