"""Multi-query associative recall: a list of keys and values is read, then the keys are asked for."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def associative_recall(
    seq_len: int = 64,
    pairs: int = 8,
    alphabet: int = 32,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Multi-query associative recall (MQAR): key, value, key, value, ..., and later every key is asked for.

    "tokens" is [T]: first `pairs` keys, all different, each with its value behind it; in the steps after that every
    key comes once more, at steps and in an order drawn again, among blanks. There "labels" asks for its value. Keys are
    the numbers 0 to alphabet - 1, values alphabet to 2 alphabet - 1 (and 0 to alphabet - 1 in "labels"), each uniform;
    the blank is 2 alphabet. For seq_len = 11, pairs = 3, alphabet = 4, with keys as letters, values as digits:

        tokens   c 1 a 3 d 1 _ a c _ d
        labels   . . . . . . . 3 1 . 1

    The memory must hold all pairs at once, and answer by content: a recurrent network needs a state that grows with
    `pairs`, attention looks back.

    The baseline is right with probability 1 / alphabet, as every value is uniform and independent.

    Arora et al. draw the distance of a question from its pair by a power law, have values all different, and fill the
    other steps with random tokens.

    Args:
      seq_len: T, 3 pairs or more.
      pairs: how many keys with their values, 1 to alphabet.
      alphabet: how many different keys there are, and how many values, 2 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      S. Arora et al. (2023). Zoology: measuring and improving recall in efficient language models. arXiv:2312.04927.
    """
    generated.check_range("alphabet", alphabet, 2)
    generated.check_range("pairs", pairs, 1, alphabet, reason=f"as alphabet={alphabet} keys can differ")
    generated.check_lengths(seq_len, test_seq_len, 3 * pairs, reason=f"as pairs={pairs} are read and asked")
    return generated.generated_task(
        lambda steps: functools.partial(_associative_recall, steps, pairs, alphabet),
        lambda steps: alphabet + pairs + steps - 2 * pairs,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="associative_recall",
        description=f"{pairs} keys with their values are read, then every key is asked for.",
        source="Arora et al. 2023, arXiv:2312.04927",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=2 * alphabet + 1,
        out_features=alphabet,
        baseline_score=1 / alphabet,
        **generated.CLASSES,
    )


def _associative_recall(seq_len: int, pairs: int, alphabet: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    keys = generated.permutation(bits[:alphabet])[:pairs]
    values = generated.integers(bits[alphabet : alphabet + pairs], alphabet)
    steps = 2 * pairs + generated.permutation(bits[alphabet + pairs :])[:pairs]
    tokens = np.full(seq_len, 2 * alphabet, np.int32)
    tokens[: 2 * pairs : 2] = keys
    tokens[1 : 2 * pairs : 2] = alphabet + values
    tokens[steps] = keys
    labels = np.full(seq_len, task.NOT_ASKED, np.int32)
    labels[steps] = values
    return {"tokens": tokens, "labels": labels}
