"""Addition of two long numbers, read and answered digit by digit: an algorithm, and a carry that must not be lost."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task

_SIGN = 10  # behind the digits 0 to 9


def addition(
    digits: int | None = None,
    train_size: int = 1_000_000,
    test_size: int = 1_000,
    seed: int = 0,
    *,
    lowest_first: bool | None = None,
    seq_len: int | None = None,
    test_seq_len: int | None = None,
) -> task.Task:
    """Addition: two numbers of `digits` digits, one digit a step, then their sum, one digit a step.

    "tokens" is [3 digits + 3]: the first number, a sign (10), the second number, a sign, and a sign for each of the
    digits + 1 places of the sum, which "labels" asks for. A number is uniform on 0 to 10**digits - 1, and is written
    with zeros in front. For digits = 3, with the sign as `-`:

        tokens   1 2 3 - 8 9 9 - - - - -
        labels   . . . . . . . . 1 0 2 2

    A place of the sum depends on all places below it: the carry runs from the end of the numbers to their front, while
    the answer begins at the front. With `lowest_first` numbers and sum are written from the lowest place on, so that
    the carry runs with the answer:

        lowest   3 2 1 - 9 9 8 - - - - -
        labels   . . . . . . . . 2 2 0 1

    The baseline answers 0 everywhere. All places of the sum but the highest are uniform on 0 to 9, as a digit of the
    first number is, whatever is added to it: right with probability 1/10. The highest is 1 if the sum reaches
    10**digits, with probability (1 - 10**-digits) / 2, and else 0. The score is the share of right digits, the mean
    over all places.

    Kalchbrenner et al. write the sum without zeros in front, and so ask for fewer places where it is short.

    Args:
      digits: of each number, 1 or more; 15 by default.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      lowest_first: from the lowest place on; by default from the highest.
      seq_len: another way to say digits: as many as fit, with signs in front of the first number where steps are left.
      test_seq_len: the same of the test split, whose numbers are longer or shorter then; None: as in training.

    Raises:
      ValueError: if an argument is out of range, or no number of digits has such a length.

    References:
      N. Kalchbrenner, I. Danihelka, A. Graves (2015). Grid long short-term memory. arXiv:1507.01526. Section 4.2.
      W. Zaremba, I. Sutskever (2014). Learning to execute. arXiv:1410.4615.
    """
    if digits is not None:
        generated.check_range("digits", digits, 1)
        if seq_len is not None and _digits_in(seq_len) != digits:
            raise ValueError(f"digits={digits} and seq_len={seq_len} contradict each other; allowed: one of them.")
    if seq_len is None:
        seq_len = 3 * (15 if digits is None else digits) + 3
    generated.check_lengths(seq_len, test_seq_len, 6, reason="two numbers of a digit, their signs and their sum")
    digits, test_digits = _digits_in(seq_len), _digits_in(seq_len if test_seq_len is None else test_seq_len)
    return generated.generated_task(
        lambda steps: functools.partial(_addition, steps, bool(lowest_first)),
        lambda steps: 2 * _digits_in(steps),
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="addition",
        description=f"The sum of two numbers of {digits} digits"
        + (", from the lowest place on." if lowest_first else "."),
        source="Kalchbrenner, Danihelka, Graves 2015, arXiv:1507.01526",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=11,
        out_features=10,
        baseline_score=(test_digits / 10 + (1 + 10.0**-test_digits) / 2) / (test_digits + 1),
        class_names=tuple("0123456789"),
        **generated.CLASSES,
    )


def _digits_in(steps: int) -> int:
    """Returns the digits of each number in a sequence of so many steps."""
    return steps // 3 - 1


def _addition(steps: int, lowest_first: bool, bits: np.ndarray) -> dict[str, np.ndarray]:
    numbers = generated.integers(bits, 10).reshape(2, -1)  # the highest place first
    digits = numbers.shape[1]
    total = np.zeros(digits + 1, np.int32)
    for place in reversed(range(digits)):
        carry, total[place + 1] = divmod(numbers[:, place].sum() + total[place + 1], 10)
        total[place] = carry
    if lowest_first:
        numbers, total = numbers[:, ::-1], total[::-1]
    tokens = np.full(steps, _SIGN, np.int32)
    start = steps - 3 * digits - 3
    tokens[start : start + digits], tokens[start + digits + 1 : start + 2 * digits + 1] = numbers
    labels = np.full(steps, task.NOT_ASKED, np.int32)
    labels[-len(total) :] = total
    return {"tokens": tokens, "labels": labels}
