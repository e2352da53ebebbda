"""Dyck words: which bracket must close next? Memory as a stack."""

import functools

import numpy as np

from rnn_jax.tasks import generated, task


def dyck(
    seq_len: int = 64,
    brackets: int = 8,
    depth: int = 5,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """Dyck-(k, m): after each closing bracket, which of the k kinds must close next?

    "tokens" is [T], the beginning of a word of well-nested brackets of `brackets` kinds, at most `depth` open at once:
    0 to brackets - 1 open, brackets to 2 brackets - 1 close. Where nothing is open a bracket opens, where `depth` are
    open one closes, and else either happens with probability 1/2; the kind of an opening bracket is uniform. "labels"
    asks after every closing bracket for the kind of the innermost one still open, if there is one. For seq_len = 12,
    brackets = 2, depth = 3:

        tokens   ( [ ( ) ] [ ] ) [ [ ( )
        labels   . . . [ ( . ( . . . . [

    The answer is never the bracket just read, and may have been read long ago: what lies between has closed. Each kind
    on the stack needs its own place in the memory, depth * log2(brackets) bits in all.

    The baseline is right with probability 1 / brackets: kinds are uniform and independent of where brackets
    open and close, so of which step asks, too.

    Hewitt et al. train a language model and measure the probability that it gives to the right closing bracket, among
    closing ones, where one closes. Right behind an opening bracket that is the bracket just read, so those steps are
    not asked here; and words are cut at T, where theirs are complete.

    Args:
      seq_len: T, 4 or more.
      brackets: k, kinds of brackets, 2 or more.
      depth: m, the max number of brackets open at once, 2 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      J. Hewitt et al. (2020). RNNs can generate bounded hierarchical languages with optimal memory. arXiv:2010.07515.
      M. Suzgun et al. (2019). Memory-augmented recurrent neural networks can learn generalized Dyck languages.
        arXiv:1911.03329.
    """
    generated.check_lengths(seq_len, test_seq_len, 4, reason="the shortest word that asks something, as in (())")
    generated.check_range("brackets", brackets, 2)
    generated.check_range("depth", depth, 2)
    return generated.generated_task(
        lambda steps: functools.partial(_dyck, brackets, depth),
        lambda steps: 2 * steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="dyck",
        description=f"The bracket that must close next, of {brackets} kinds, at most {depth} deep.",
        source="Hewitt et al. 2020, arXiv:2010.07515; Suzgun et al. 2019, arXiv:1911.03329",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=2 * brackets,
        out_features=brackets,
        baseline_score=1 / brackets,
        **generated.CLASSES,
    )


def _dyck(brackets: int, depth: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    opens, kinds = generated.integers(bits[::2], 2).tolist(), generated.integers(bits[1::2], brackets).tolist()
    tokens, labels = [], []
    stack: list[int] = []
    for opens_here, kind in zip(opens, kinds):
        if not stack or (opens_here and len(stack) < depth):
            stack.append(kind)
            tokens.append(kind)
            labels.append(task.NOT_ASKED)
        else:
            tokens.append(brackets + stack.pop())
            labels.append(stack[-1] if stack else task.NOT_ASKED)
    return {"tokens": np.array(tokens, np.int32), "labels": np.array(labels, np.int32)}
