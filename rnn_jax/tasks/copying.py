"""Copy, and delayed copy: say again what was read, much later, or all the time some steps late."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def copy(
    seq_len: int = 120,
    alphabet: int = 8,
    symbols: int = 10,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """The copy problem: some symbols, a long silence, a sign, and the symbols must be said again.

    "tokens" is [T]: `symbols` symbols, each uniform among `alphabet` of them (0 to alphabet - 1), blanks (the number
    `alphabet`), one sign (`alphabet` + 1), and a blank for each symbol to be said, where "labels" asks for them in
    their order. For seq_len = 9, alphabet = 3, symbols = 2, with the blank as `_` and the sign as `!`:

        tokens   c a _ _ _ _ ! _ _
        labels   . . . . . . . c a

    Every symbol is asked for seq_len - symbols steps after it was read: that is the lag, and the answer has to be
    carried over all of it, past blanks that say nothing.

    The baseline knows when to speak but not what to say: a symbol is uniform and independent of everything
    else, so whatever it answers is right with probability 1 / alphabet, at a loss of ln(alphabet).

    Arjovsky et al. also ask for a blank at each of the seq_len - symbols steps before, which is soon learned. From
    there on their loss is ours times symbols / seq_len: with 10 symbols of 8, and T for seq_len - 20, their trivial
    loss is 10 ln(8) / (T + 20). Blanks are not asked here, so that a score means the same at any length.

    Args:
      seq_len: T, 2 symbols + 1 or more.
      alphabet: how many different symbols there are, 2 or more.
      symbols: how many are to be copied.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      S. Hochreiter, J. Schmidhuber (1997). Long short-term memory. Neural Computation 9(8).
      M. Arjovsky, A. Shah, Y. Bengio (2016). Unitary evolution recurrent neural networks. arXiv:1511.06464.
    """
    generated.check_range("alphabet", alphabet, 2)
    generated.check_range("symbols", symbols, 1)
    generated.check_lengths(seq_len, test_seq_len, 2 * symbols + 1, reason=f"as symbols={symbols} are read and asked")
    return generated.generated_task(
        lambda steps: functools.partial(_copy, steps, alphabet),
        lambda steps: symbols,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="copy",
        description=f"{symbols} symbols, to be said again {seq_len - symbols} steps later.",
        source="Hochreiter and Schmidhuber 1997; Arjovsky, Shah, Bengio 2016, arXiv:1511.06464",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=alphabet + 2,
        out_features=alphabet,
        baseline_score=1 / alphabet,
        **generated.CLASSES,
    )


def delayed_copy(
    seq_len: int = 100,
    delay: int = 10,
    alphabet: int = 8,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Delayed copy: at every step, say what was read `delay` steps before.

    "tokens" is [T], each uniform among `alphabet` symbols; "labels" is the same sequence, `delay` steps late. For
    seq_len = 8, delay = 3, alphabet = 4:

        tokens   b d a a c b d c
        labels   . . . b d a a c

    The memory must hold `delay` symbols at all times, each in its order: delay * log2(alphabet) bits, for as long as
    one likes. Nothing is forgotten until it has been said, and everything is once it has.

    The baseline is right with probability 1 / alphabet, as every symbol is uniform and independent.

    Jaeger measures the same, with real inputs, a linear readout for each delay and their correlations summed.

    Args:
      seq_len: T, 2 or more.
      delay: steps between a symbol and its answer, 1 to seq_len - 1.
      alphabet: how many different symbols there are, 2 or more.
      train_size, test_size, seed, test_seq_len: as `copy`.

    Raises:
      ValueError: if an argument is out of range.

    References:
      H. Jaeger (2002). Short term memory in echo state networks. GMD Report 152.
    """
    generated.check_range("alphabet", alphabet, 2)
    generated.check_lengths(seq_len, test_seq_len, 2, reason="a symbol and its answer")
    for name, steps in (("seq_len", seq_len), ("test_seq_len", test_seq_len)):
        if steps is not None:
            generated.check_range(
                "delay", delay, 1, steps - 1, reason=f"so that {name}={steps} steps ask for something"
            )
    return generated.generated_task(
        lambda steps: functools.partial(_delayed_copy, delay, alphabet),
        lambda steps: steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="delayed_copy",
        description=f"At every step, the symbol read {delay} steps before.",
        source="Jaeger 2002, GMD Report 152",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=alphabet,
        out_features=alphabet,
        baseline_score=1 / alphabet,
        **generated.CLASSES,
    )


def _copy(seq_len: int, alphabet: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    word = generated.integers(bits, alphabet)
    tokens = np.full(seq_len, alphabet, np.int32)
    tokens[: len(word)] = word
    tokens[-len(word) - 1] = alphabet + 1
    labels = np.full(seq_len, task.NOT_ASKED, np.int32)
    labels[-len(word) :] = word
    return {"tokens": tokens, "labels": labels}


def _delayed_copy(delay: int, alphabet: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    tokens = generated.integers(bits, alphabet)
    labels = np.full(len(tokens), task.NOT_ASKED, np.int32)
    labels[delay:] = tokens[:-delay]
    return {"tokens": tokens, "labels": labels}
