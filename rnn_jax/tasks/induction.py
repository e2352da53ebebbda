"""Induction heads: what stood behind the sign, when it was last seen?"""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def induction(
    seq_len: int = 64,
    alphabet: int = 16,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Induction heads: a sign occurs once, and again at the end; say the symbol that stood behind it.

    "tokens" is [T]: symbols, each uniform among `alphabet` of them (0 to alphabet - 1), and a sign (the number
    `alphabet`) at one of the steps 0 to T - 3, uniform, and at the last one. "label" is the symbol behind the first
    sign. For seq_len = 9, alphabet = 4, with the sign as `!`:

        tokens   b d ! c a a d b !      label c

    A network has to see the pair of sign and symbol go by, and to keep the symbol past all that follows it, 1 to
    T - 2 steps.

    The baseline is right with probability 1 / alphabet, as the symbol is uniform.

    Gu and Dao train on T = 256, with a vocabulary of 16, and test on lengths up to 2**20. Olsson et al. found the
    mechanism in transformers, where it serves any pair that is repeated, not just that behind one sign.

    Args:
      seq_len: T, 3 or more.
      alphabet: how many different symbols there are beside the sign, 2 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      C. Olsson et al. (2022). In-context learning and induction heads. arXiv:2209.11895.
      A. Gu, T. Dao (2023). Mamba: linear-time sequence modeling with selective state spaces. arXiv:2312.00752.
    """
    generated.check_lengths(seq_len, test_seq_len, 3, reason="a sign, the symbol behind it, and the sign again")
    generated.check_range("alphabet", alphabet, 2)
    return generated.generated_task(
        lambda steps: functools.partial(_induction, alphabet),
        lambda steps: steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="induction",
        description=f"The symbol that stood behind the sign, somewhere in {seq_len} steps.",
        source="Olsson et al. 2022, arXiv:2209.11895; Gu and Dao 2023, arXiv:2312.00752",
        kind=task.Kind.ONE_ANSWER,
        reads_tokens=True,
        in_features=alphabet + 1,
        out_features=alphabet,
        baseline_score=1 / alphabet,
        **generated.CLASSES,
    )


def _induction(alphabet: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    tokens = generated.integers(bits, alphabet)
    step = int(bits[-1]) % (len(bits) - 2)  # the draw of the last step, which holds the sign in any case
    tokens[[step, -1]] = alphabet
    return {"tokens": tokens, "label": np.asarray(tokens[step + 1])}
