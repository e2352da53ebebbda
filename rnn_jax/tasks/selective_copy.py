"""Selective copy: say again the few symbols that stood somewhere among many blanks."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def selective_copy(
    seq_len: int = 128,
    alphabet: int = 8,
    symbols: int = 8,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Selective copying: symbols are scattered among blanks; at the end they must be said in their order.

    "tokens" is [T]. Its first seq_len - symbols steps hold `symbols` symbols, each uniform among `alphabet` of them,
    at different steps that are drawn again for every example, and blanks (the number `alphabet`) elsewhere. The last
    `symbols` steps are a sign (`alphabet` + 1), and there "labels" asks for the symbols. For seq_len = 10,
    alphabet = 3, symbols = 3, with the blank as `_` and the sign as `!`:

        tokens   _ c _ _ a c _ ! ! !
        labels   . . . . . . . c a c

    In `copy` the lag is fixed, and a shift by so many steps solves it whatever is read. Here the lag of each symbol
    is another in every example: a network has to choose by content what it writes to its memory.

    The baseline is right with probability 1 / alphabet, as every symbol is uniform and independent.

    Gu and Dao read 4096 steps with 16 symbols to copy. Jing et al. give one sign, and blanks while the answer is said.

    Args:
      seq_len: T, 2 symbols or more.
      alphabet: how many different symbols there are, 2 or more.
      symbols: how many are to be copied.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      A. Gu, T. Dao (2023). Mamba: linear-time sequence modeling with selective state spaces. arXiv:2312.00752.
      L. Jing et al. (2019). Gated orthogonal recurrent units: on learning to forget. Neural Computation 31(4),
        arXiv:1706.02761. The denoise task.
    """
    generated.check_range("alphabet", alphabet, 2)
    generated.check_range("symbols", symbols, 1)
    generated.check_lengths(seq_len, test_seq_len, 2 * symbols, reason=f"as symbols={symbols} are read and asked")
    return generated.generated_task(
        lambda steps: functools.partial(_selective_copy, steps, alphabet, symbols),
        lambda steps: steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="selective_copy",
        description=f"{symbols} symbols scattered among {seq_len - 2 * symbols} blanks, to be said in their order.",
        source="Gu and Dao 2023, arXiv:2312.00752; Jing et al. 2019, arXiv:1706.02761",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=alphabet + 2,
        out_features=alphabet,
        baseline_score=1 / alphabet,
        **generated.CLASSES,
    )


def _selective_copy(seq_len: int, alphabet: int, symbols: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    word = generated.integers(bits[:symbols], alphabet)
    tokens = np.full(seq_len, alphabet, np.int32)
    tokens[np.sort(generated.permutation(bits[symbols:])[:symbols])] = word
    tokens[-symbols:] = alphabet + 1
    labels = np.full(seq_len, task.NOT_ASKED, np.int32)
    labels[-symbols:] = word
    return {"tokens": tokens, "labels": labels}
